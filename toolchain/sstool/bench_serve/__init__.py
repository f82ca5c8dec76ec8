"""Sends load to a server with OpenAI's API and measures its answers; the server need not be ours."""

from __future__ import annotations

from sstool.bench_serve.errors import ServerError
from sstool.bench_serve.options import ServeBenchOptions
from sstool.bench_serve.report import Distribution, LoadReport, ServeReport
from sstool.bench_serve.rows import RequestRow
from sstool.bench_serve.run import run_bench_serve

__all__ = ["Distribution", "LoadReport", "RequestRow", "ServeBenchOptions", "ServeReport", "ServerError", "run_bench_serve"]
