"""How a server behaves: names, limits and keys."""

from __future__ import annotations

import hashlib
import hmac
import logging
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ssruntime.checks import check_float, check_int
from ssruntime.errors import ConfigError

logger = logging.getLogger(__name__)

DEFAULT_MAX_BODY: Final = 2**20
MIN_KEY_LENGTH: Final = 16


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings of a server.

    Attributes:
        model_names: names that requests may give as `model`; the first one is reported. Empty for the name of
            the artifact's folder.
        api_keys: accepted API keys. If there are none, requests need no key.
        max_body: most bytes in a request's body.
        request_timeout: seconds that a request may take, with its time in the queue; then it fails.
        read_timeout: seconds that a client may take to send a request's body.
        write_timeout: seconds after which a connection is closed whose client has stopped reading.
        grace: seconds that running requests get to finish when the server stops.
        log_prompts: whether the log has the requests' bodies.
        share_prefixes: whether cached prefixes of prompts are shared between API keys.
    """

    model_names: tuple[str, ...] = ()
    api_keys: ApiKeys = field(default_factory=lambda: ApiKeys(()))
    max_body: int = DEFAULT_MAX_BODY
    request_timeout: float = 600.0
    read_timeout: float = 30.0
    write_timeout: float = 30.0
    grace: float = 30.0
    log_prompts: bool = False
    share_prefixes: bool = False

    def __post_init__(self) -> None:
        check_int("max_body", self.max_body, 1)
        for name in ("request_timeout", "read_timeout", "write_timeout"):
            check_float(name, getattr(self, name), 0.0, above=True)
        check_float("grace", self.grace, 0.0)
        if any(not name for name in self.model_names):
            raise ConfigError("model_names has an empty name", "give each name at least one character")


class ApiKeys:
    """The keys that a server accepts, compared in constant time."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Takes the keys, of which only digests are kept."""
        self._digests = tuple(_digest(key) for key in keys)

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, key: str) -> str | None:
        """Returns a name for a key, which does not reveal it; None if the key is not accepted."""
        given, found = _digest(key), None
        for digest in self._digests:  # all of them, so that the time says nothing
            if hmac.compare_digest(digest, given):
                found = digest
        return None if found is None else f"key-{found.hex()[:8]}"


def read_api_keys(path: Path) -> ApiKeys:
    """Returns the keys of a file: one on each line, except for empty lines and those that begin with `#`.

    Raises:
        ConfigError: if the file cannot be read, or has no key, or one that is too short or not printable.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        is_public = bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except (OSError, ValueError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else err
        raise ConfigError(f"{path} cannot be read: {reason}", "give a text file with one API key on each line") from err
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    keys = [(number, key) for number, key in numbered if key and not key.startswith("#")]
    for number, key in keys:
        if len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"{path}, line {number}: not an API key: at least {MIN_KEY_LENGTH} printable ASCII characters without spaces are needed",
                "to make a key: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )
    if not keys:
        raise ConfigError(f"{path} has no API key", "give a text file with one API key on each line")
    if is_public:
        logger.warning("%s can be read by other users of this machine: chmod 600 %s", path, path)
    return ApiKeys([key for _, key in keys])


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
