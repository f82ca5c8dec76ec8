"""The thread pool that sessions compute on: one of their own, or the process-wide one where it exists.

Each session owns a pool whose idle threads spin, so draft and verify sessions that take turns would fight for the cores;
`session.force_spinning_stop` ends the spinning with each run. A process-wide pool is a little faster for small models, but it
binds every session of the host program, so it is made only if asked for.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Final

import onnxruntime as ort

from ssruntime.backends.ort.packing import OPTIMIZATION_LEVEL

logger = logging.getLogger(__name__)

PROVIDERS: Final = ["CPUExecutionProvider"]
_global_pool_lock = threading.Lock()
_global_pool_threads: list[int] = []
"""The size of the process-wide pool, if this module made it."""


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How every session of one backend gets its threads.

    Attributes:
        threads: that one engine computes with.
        global_threads: use the process-wide pool.
    """

    threads: int
    global_threads: bool

    def make(self) -> ort.SessionOptions:
        """Returns fresh options: sessions may change the ones they are given."""
        options = ort.SessionOptions()
        options.graph_optimization_level = OPTIMIZATION_LEVEL
        options.log_severity_level = 3
        options.use_per_session_threads = not self.global_threads
        if not self.global_threads:
            options.intra_op_num_threads = self.threads
            options.inter_op_num_threads = 1
            options.add_session_config_entry("session.force_spinning_stop", "1")
        return options


def choose_threads(threads: int, global_threads: bool) -> SessionSettings:
    """Settles which threads the sessions run on, and makes ONNX Runtime's process-wide pool if that is asked for and not done.

    Where that pool exists, ONNX Runtime (1.32) opens sessions on it alone, and its size cannot be changed.
    """
    with _global_pool_lock:
        exists = _has_global_pool()
        if global_threads and not exists:
            ort.set_global_thread_pool_sizes(threads, 1)
            _global_pool_threads.append(threads)
        if not exists:
            return SessionSettings(threads=threads, global_threads=global_threads)
        size = _global_pool_threads[0] if _global_pool_threads else None  # None: the host program's
    if global_threads and size != threads:
        found = "the host program's" if size is None else f"{size} threads"
        logger.warning("the process-wide thread pool exists already and keeps its size: %s, where %d were asked for", found, threads)
    elif not global_threads:
        logger.info("this process has a process-wide thread pool, and its sessions can use no other")
    return SessionSettings(threads=threads if size is None else size, global_threads=True)


def _has_global_pool() -> bool:
    """Finds out whether anyone in this process made the process-wide pool; ONNX Runtime tells only by refusing sessions without it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(b"", options, providers=PROVIDERS, enable_fallback=False)
    except Exception as err:  # noqa: BLE001 - it fails either way, as there is no model in no bytes, and its errors share no nearer base
        return "use_per_session_threads" in str(err)
    return False
