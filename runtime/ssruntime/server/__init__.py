"""An OpenAI-compatible server: `create_app` makes the ASGI application, `Server` runs it."""

from __future__ import annotations

from ssruntime.server.app import create_app
from ssruntime.server.run import Server
from ssruntime.server.settings import ApiKeys, ServerSettings, read_api_keys

__all__ = ["ApiKeys", "Server", "ServerSettings", "create_app", "read_api_keys"]
