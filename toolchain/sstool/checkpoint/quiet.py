"""Keeps the libraries that read checkpoints from writing to the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Final

_NOISY_LOGGERS: Final = ("mobius", "onnxscript", "onnx_ir", "transformers")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block, hides these libraries' progress bars, warnings, and log lines below ERROR."""
    levels = {name: logging.getLogger(name).level for name in _NOISY_LOGGERS}
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
