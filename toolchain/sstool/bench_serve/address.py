"""The address of a server: its root, or its root and `/v1`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from sstool.bench_serve.errors import ServerError, shown

_FORM: Final = "pass the server's root, as http://127.0.0.1:8000"
_VERSION: Final = "/v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerAddress:
    """Where a server is.

    Attributes:
        root: scheme, host, port and the path before `/v1`, without a slash at its end.
    """

    root: str

    @classmethod
    def parse(cls, url: str) -> ServerAddress:
        """Returns the address that a user gave.

        Raises:
            ServerError: if it is not an http or https URL, or if it has a user name, a query or a fragment.
        """
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
            _ = parts.port  # it is checked only when it is read
        except ValueError:
            valid = False
        if not valid:
            raise ServerError(f"{shown(url)!r} is not an http or https URL", _FORM)
        if "@" in parts.netloc:
            raise ServerError("the URL must not hold a user name or a password", "put a key into a variable: --api-key-env VAR")
        if parts.query or parts.fragment:
            raise ServerError(f"{shown(url)!r} has a query or a fragment", _FORM)
        path = parts.path.rstrip("/").removesuffix(_VERSION).rstrip("/")
        return cls(root=f"{parts.scheme}://{parts.netloc}{path}")

    def of(self, path: str) -> str:
        """Returns the URL of a path of the API, such as `/models`."""
        return self.root + _VERSION + path

    @property
    def metrics(self) -> str:
        """The URL of the server's counters in Prometheus's text format."""
        return self.root + "/metrics"
