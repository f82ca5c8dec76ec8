"""The threads that sessions compute with: a pool for each session, or ONNX Runtime's process-wide pool.

By default, each session owns a thread pool whose idle threads spin. Draft and verify sessions run
alternately, so the idle threads of one would take cores from the other; `session.force_spinning_stop` ends
the spinning after each run. The process-wide pool is a little faster for small models, but every session of
the host program must then use it. It is therefore created only on request.
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
"""The size of the process-wide pool as the only element, if this module created that pool; else empty."""


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """The thread settings of every session of one backend.

    Attributes:
        threads: number of threads that each engine computes with.
        global_threads: whether the sessions use the process-wide pool.
    """

    threads: int
    global_threads: bool

    def make(self) -> ort.SessionOptions:
        """Returns new options for one session: a session may change the options that it is given."""
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
    """Returns the thread settings for sessions; creates the process-wide pool if it is requested but missing.

    Once that pool exists, ONNX Runtime (1.32) opens only sessions that use it, and its size is fixed. The
    returned settings then name that pool and its size, whatever was requested.

    Args:
        threads: requested number of threads of each engine.
        global_threads: whether the process-wide pool is requested.
    """
    with _global_pool_lock:
        exists = _has_global_pool()
        if global_threads and not exists:
            ort.set_global_thread_pool_sizes(threads, 1)
            _global_pool_threads.append(threads)
        if not exists:
            return SessionSettings(threads=threads, global_threads=global_threads)
        size = _global_pool_threads[0] if _global_pool_threads else None  # None: created by the host program
    if global_threads and size != threads:
        found = "the size that the host program chose" if size is None else f"{size} threads"
        logger.warning("the process-wide thread pool already exists and keeps %s; %d threads were requested", found, threads)
    elif not global_threads:
        logger.info("this process has a process-wide thread pool; its sessions cannot use any other threads")
    return SessionSettings(threads=threads if size is None else size, global_threads=True)


def _has_global_pool() -> bool:
    """Returns whether this process has the process-wide pool.

    ONNX Runtime has no query for it, but it then refuses sessions with a pool of their own.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(b"", options, providers=PROVIDERS, enable_fallback=False)
    except Exception as err:  # noqa: BLE001 - always raised; ONNX Runtime's errors share no closer base class
        return "use_per_session_threads" in str(err)
    return False
