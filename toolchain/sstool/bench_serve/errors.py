"""Errors of a server, and its texts made fit to be shown: printable, on one line, of limited length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ssruntime.errors import SelfSpecError
from ssruntime.strict_reader import parse_json
from ssruntime.text.printable import printable

_MAX_SHOWN: Final = 200
"""Most characters of a server's text in a message."""


class ServerError(SelfSpecError):
    """The server cannot be reached, is no server with OpenAI's API, or refuses every request."""


class RequestFailedError(Exception):
    """One request failed, and the others may succeed.

    Attributes:
        reason: what happened, in one line.
        refused: whether the server refused the request because it is busy (status 429).
        hopeless: why every other request would fail in the same way; None if they might not.
    """

    def __init__(self, reason: str, *, refused: bool = False, hopeless: ServerError | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.refused = refused
        self.hopeless = hopeless


def shown(text: str, *, secret: str | None = None) -> str:
    """Returns a server's text as one printable line without the secret, cut after 200 characters."""
    if secret:  # before it is cut, or a part of the secret could remain
        text = text.replace(secret, "***")
    return printable(text, _MAX_SHOWN)


def message_of(body: bytes | str, *, secret: str | None = None) -> str:
    """Returns the message in the body of an error, as one printable line; empty if there is none.

    It reads OpenAI's form `{"error": {"message": ...}}` and the forms of other servers: `error`, `message` or
    `detail` as a text, and any other text that is not HTML. A `secret` that the server repeats is left out.
    """
    text = body.decode("utf-8", errors="replace") if isinstance(body, bytes) else body
    try:
        data = parse_json(text)
    except ValueError:
        return "" if text.lstrip()[:1] == "<" else shown(text, secret=secret)
    return shown(_message(data), secret=secret)


def _message(data: Any) -> str:
    if isinstance(data, str):
        return data
    if isinstance(data, list):
        return "; ".join(_message(entry) for entry in data[:4])
    if not isinstance(data, Mapping):
        return ""
    found = (_message(data[key]) for key in ("error", "message", "detail", "msg") if data.get(key))
    return next((text for text in found if text), "")
