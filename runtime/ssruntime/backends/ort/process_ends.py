"""Engines in a process that forks, and in one that ends while a daemon thread generates.

A fork copies no threads, so a session's thread pool is dead in the child, and destroying it would wait for
ever. The child therefore refuses to use inherited engines, and never frees their sessions.

At the end of a process, Python ends a daemon thread when it returns from a pass; ONNX Runtime's binding does
not survive that, and the process aborts. Passes in progress are therefore waited for, and daemon threads
begin no further one.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import Final, Protocol

import onnxruntime as ort

from ssruntime.backends.ort.engine_port import EnginePort
from ssruntime.backends.ort.port import Port
from ssruntime.backends.ort.ragged_port import RaggedPort
from ssruntime.errors import BackendUnavailableError


class Inheritable(Protocol):
    """A backend whose sessions a forked process may inherit."""

    def abandon(self, refusal: BackendUnavailableError) -> list[ort.InferenceSession]:
        """Refuses every later use with this error; returns the sessions."""

    def open_ports(self) -> Iterable[Port]:
        """Returns the ports of all slots."""


_LONGEST_PASS: Final = 60.0
"""Seconds after which the end of the process waits no longer for a pass."""
_INTERVAL: Final = 0.001
_open: weakref.WeakSet[Inheritable] = weakref.WeakSet()


def watch(backend: Inheritable) -> None:
    """Makes forked processes abandon a backend."""
    _open.add(backend)


def _abandon_all() -> None:
    for backend in list(_open):
        refusal = BackendUnavailableError(
            "this engine was loaded before the process forked, and cannot run in the child",
            "load it in each worker, after the fork; the packed weights are shared, so that is fast",
        )
        for session in backend.abandon(refusal):
            # One reference more than anything drops.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    _open.clear()


def _end_passes() -> None:
    for backend in list(_open):
        for port in backend.open_ports():
            port.intercept(_block_daemons)
    own, deadline = threading.get_ident(), time.monotonic() + _LONGEST_PASS
    while time.monotonic() < deadline and any(_is_in_pass(f) for t, f in sys._current_frames().items() if t != own):  # noqa: SLF001
        time.sleep(_INTERVAL)


def _block_daemons() -> None:
    """Called before each pass while the process ends; a daemon thread waits here for the end."""
    if threading.current_thread().daemon:
        threading.Event().wait()


def _is_in_pass(frame: FrameType) -> bool:
    codes = set(_codes_of(frame))
    return not codes.isdisjoint(_PASSES) and _block_daemons.__code__ not in codes


def _codes_of(frame: FrameType | None) -> Iterator[CodeType]:
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


_PASSES: Final = frozenset({EnginePort.run.__code__, EnginePort.run_any_length.__code__, RaggedPort.run.__code__})

atexit.register(_end_passes)
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_abandon_all)
