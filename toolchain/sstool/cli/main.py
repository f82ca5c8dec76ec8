"""The entry point: every failure ends in one line on stderr, and exit code 1, or 2 for wrong usage."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from sstool.cli.run_state import RunState

if TYPE_CHECKING:
    import click

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

_EXTRAS: Final = {
    "cli": ("click", "rich", "httpx2"),
    "cpu": ("onnxruntime",),
    "server": ("fastapi", "starlette", "uvicorn", "h11", "prometheus_client", "pydantic"),
    "toolchain": (
        *("torch", "transformers", "mobius", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub", "yaml", "ax", "plotly"),
        "scipy",
    ),
}
_EXTRA_OF: Final = {package: extra for extra, packages in _EXTRAS.items() for package in packages}


_SLOW_WORK: Final = "ssruntime.backends.tensorrt.trt_engine"
"""Logger whose messages tell that something takes minutes: TensorRT builds an engine."""


class _WarningsOnStderr(logging.Handler):
    """Writes the warnings of our own loggers as lines to the current `sys.stderr`."""

    def emit(self, record: logging.LogRecord) -> None:
        from ssruntime.text.printable import printable

        kind = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        sys.stderr.write(f"{kind}{printable(record.getMessage())}\n")


def main() -> None:
    """Runs `sstool` with the process's arguments and exits."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Runs `sstool` with `args` and returns its exit code; errors that a user can cause do not raise."""
    # Python sets a stream to None that was closed before it started, as daemons do.
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        _survive_other_encodings(stream)
    _show_warnings()
    state = RunState()
    try:
        return _invoke(args, state)
    except KeyboardInterrupt:  # before click was imported, which turns it into an Abort
        return EXIT_INTERRUPTED
    except Exception as err:  # noqa: BLE001 - the one place where errors become a line and an exit code
        if state.debug:
            traceback.print_exc()
        return _report(err)


def _invoke(args: list[str], state: RunState) -> int:
    import click

    from sstool.cli.group import cli

    try:
        code = cli.main(args=args, prog_name="sstool", standalone_mode=False, obj=state)
    except click.exceptions.NoArgsIsHelpError as err:
        err.show()
        return EXIT_USAGE
    except click.UsageError as err:
        _print_error(err.format_message(), f"see {_command_path(err)} -h")
        return EXIT_USAGE
    except click.Abort:
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else EXIT_OK


def _report(err: Exception) -> int:
    if (missing := _missing_package(err)) is not None:
        _print_error(f"this needs the package {missing}, which is not installed", f"pip install 'sstool[{_EXTRA_OF[missing]}]'")
        return EXIT_FAILED
    from ssruntime.errors import SelfSpecError

    if isinstance(err, SelfSpecError):
        _print_error(err.message, err.hint)
    elif isinstance(err, OSError):
        _print_error(str(err), "check the path, its permissions and the free space there")
    else:
        _print_error(f"unexpected {type(err).__name__}: {err}", "run again with --debug for the traceback, and please report it")
    return EXIT_FAILED


def _missing_package(err: BaseException | None) -> str | None:
    """Returns the missing package of our extras that caused an error, directly or indirectly; else None."""
    while err is not None:
        package = (err.name or "").partition(".")[0] if isinstance(err, ModuleNotFoundError) else ""
        if package in _EXTRA_OF:
            return package
        err = err.__cause__
    return None


def format_error(message: str, hint: str) -> str:
    """Returns an error as one printable line, in the form that all commands use."""
    from ssruntime.text.printable import printable

    return printable(f"error: {message}; hint: {hint}" if hint else f"error: {message}")


def _print_error(message: str, hint: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(format_error(message, hint) + "\n")


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _show_warnings() -> None:
    for name in ("ssruntime", "sstool"):
        logger = logging.getLogger(name)
        if not any(isinstance(h, _WarningsOnStderr) for h in logger.handlers):
            logger.addHandler(_WarningsOnStderr(logging.WARNING))
            logger.propagate = False
    slow = logging.getLogger(_SLOW_WORK)
    if not slow.handlers:
        slow.addHandler(_WarningsOnStderr(logging.INFO))
        slow.setLevel(logging.INFO)
        slow.propagate = False


def _command_path(err: click.UsageError) -> str:
    return err.ctx.command_path if err.ctx is not None else "sstool"


def _survive_other_encodings(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
