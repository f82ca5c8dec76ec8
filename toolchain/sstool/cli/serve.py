"""`sstool serve`: serves an artifact to clients of OpenAI's API."""

from __future__ import annotations

import ipaddress
import logging
import sys
from pathlib import Path
from typing import Final, TextIO

import click

from sstool.cli.options import artifact_argument, debug_option

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000
# Repeated from ssruntime, whose import would slow `--help` down. A test keeps both equal.
MAX_SEQUENCES: Final = 4
QUEUE: Final = 64
REQUEST_TIMEOUT: Final = 600.0
GRACE: Final = 30.0
MAX_BODY: Final = 2**20


@click.command(name="serve")
@artifact_argument
@click.option("--host", default=DEFAULT_HOST, show_default=True, metavar="HOST", help="Address to listen at.")
@click.option("--port", type=int, default=DEFAULT_PORT, show_default=True, metavar="N", help="Port to listen at; 0 for a free one.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with an API key on each line, of which requests must give one.  [default: none is needed]",
)
@click.option(
    "--served-model-name", "names", multiple=True, metavar="NAME", help="Name of the model; may be repeated.  [default: the folder's]"
)
@click.option("--max-sequences", type=int, default=MAX_SEQUENCES, show_default=True, metavar="N", help="Requests that run at once.")
@click.option("--queue", type=int, default=QUEUE, show_default=True, metavar="N", help="Most requests that wait; more get status 429.")
@click.option("--threads", type=int, metavar="T", help="Threads per engine.  [default: the available physical cores]")
@click.option("--max-context", type=int, metavar="N", help="Most tokens of a sequence.  [default: the artifact's, at most 4096]")
@click.option("--no-draft", is_flag=True, help="Decode autoregressively, without drafts.")
@click.option(
    "--prefix-cache",
    type=int,
    metavar="BYTES",
    help="Most KV to keep of earlier texts, for prompts that begin like them; 0 keeps none.  [default: that of one sequence]",
)
@click.option("--share-prefixes", is_flag=True, help="Share it between API keys: response times then tell what others have asked.")
@click.option(
    "--request-timeout",
    type=float,
    default=REQUEST_TIMEOUT,
    show_default=True,
    metavar="S",
    help="Seconds that a request may take, with its time in the queue.",
)
@click.option(
    "--grace", type=float, default=GRACE, show_default=True, metavar="S", help="Seconds that running requests get after SIGTERM or Ctrl-C."
)
@click.option("--max-body", type=int, default=MAX_BODY, show_default=True, metavar="BYTES", help="Most bytes of a request's body.")
@click.option("--log-prompts", is_flag=True, help="Write prompts to the access log.")
@debug_option
def command(
    folder: Path,
    host: str,
    port: int,
    api_key_file: Path | None,
    names: tuple[str, ...],
    max_sequences: int,
    queue: int,
    threads: int | None,
    max_context: int | None,
    no_draft: bool,
    prefix_cache: int | None,
    share_prefixes: bool,
    request_timeout: float,
    grace: float,
    max_body: int,
    log_prompts: bool,
) -> None:
    """Serve an artifact to clients of OpenAI's API.

    Requests share passes and still get the text that each would get alone. The access log, on standard error,
    has a line of JSON for each request.
    """
    from ssruntime import load
    from ssruntime.server import ApiKeys, Server, ServerSettings, create_app, read_api_keys

    _log_to_stderr()
    settings = ServerSettings(
        model_names=names,
        api_keys=ApiKeys(()) if api_key_file is None else read_api_keys(api_key_file),
        max_body=max_body,
        request_timeout=request_timeout,
        grace=grace,
        log_prompts=log_prompts,
        share_prefixes=share_prefixes,
    )
    if api_key_file is None and not _is_loopback(host):
        click.echo(f"warning: other machines can reach {host}, and requests need no API key; --api-key-file FILE sets keys", err=True)
    with load(
        folder,
        threads=threads,
        max_context=max_context,
        max_sequences=max_sequences,
        draft=not no_draft,
        prefix_cache=prefix_cache,
    ) as engine:
        server = Server(create_app(engine, settings, max_waiting=queue), host, port)
        engine.warm_up()
        click.echo(f"serving {folder.resolve().name} at {server.url}", err=True)
        server.run()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _LinesOnStderr(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record as a line."""
        self.stream = sys.stderr
        super().emit(record)


def _log_to_stderr() -> None:
    """Lets the server's loggers write their lines to standard error."""
    handler = _LinesOnStderr()
    for name, level in (("ssruntime.server", logging.INFO), ("uvicorn.error", logging.WARNING)):
        found = logging.getLogger(name)
        found.handlers, found.propagate = [handler], False
        found.setLevel(level)
