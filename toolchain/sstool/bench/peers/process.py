"""A peer in a process of its own, which takes one JSON object a line and answers with one."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from ssruntime.results import DecodeStats
from sstool.bench.peers.known import Peer

_PREPARE_SECONDS: Final = 3600.0
"""Converting a large checkpoint takes many minutes."""
_DECODE_SECONDS: Final = 1800.0
_CLOSE_SECONDS: Final = 10.0
_CHUNK: Final = 1 << 16


class PeerError(Exception):
    """A peer cannot be run; the text says why, in one line."""


@dataclass(frozen=True, kw_only=True)
class PeerSetup:
    """What a peer is to run.

    Attributes:
        model: folder of the checkpoint.
        key: name for the converted model, the same for the same checkpoint.
        dtype: data type of the weights.
        threads: number of threads.
    """

    model: Path
    key: str
    dtype: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class PeerTask:
    """One completion: exactly `tokens` tokens after a prompt, none of which ends the text."""

    ids: Sequence[int]
    tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class PeerRun:
    """The tokens of a completion, and its times in the form of our own."""

    token_ids: tuple[int, ...]
    stats: DecodeStats


class PeerProcess:
    """A peer whose model is loaded and that waits for prompts.

    Attributes:
        version: version of its package.
    """

    def __init__(self, peer: Peer, setup: PeerSetup) -> None:
        """Starts the peer and waits until its model is loaded.

        Raises:
            PeerError: if the peer is not installed, lacks the data type, or cannot run the model.
        """
        if setup.dtype not in peer.dtypes:
            raise PeerError(f"has no {setup.dtype} weights that could be compared")
        if not peer.python.exists():
            raise PeerError(f"not installed; {peer.setup_command}")
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        command = [str(peer.python), str(peer.program)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(setup.threads), "PYTHONUNBUFFERED": "1"}
        for variable in ("PYTHONPATH", "PYTHONHOME"):  # what is ours must not be imported by another environment
            environment.pop(variable, None)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment, bufsize=0
        )
        self._buffer = b""
        try:
            models = peer.folder / "models" / f"{setup.key}-{setup.dtype}"
            wanted = {**asdict(setup), "model": str(setup.model.absolute()), "converted": str(models)}
            ready = self._ask({**wanted, "package": peer.package, "looks_up": peer.looks_up}, _PREPARE_SECONDS)
            self.version = str(ready["version"])
        except BaseException:
            self.close()
            raise

    def decode(self, task: PeerTask) -> PeerRun:
        """Returns a completion.

        Raises:
            PeerError: if the peer fails, or gives another number of tokens.
        """
        answer = self._ask(asdict(task), _DECODE_SECONDS)
        lacking = sorted({"ids", "first", "prefill_s", "decode_s"} - answer.keys())
        if lacking:
            raise PeerError(f"its answer lacks {lacking[0]!r}")
        ids = tuple(int(i) for i in answer["ids"])
        if len(ids) != task.tokens:
            raise PeerError(f"gave {len(ids)} tokens where {task.tokens} were asked for")
        # Tokens that came together with the first one are not timed.
        stats = DecodeStats(emitted=len(ids) - answer["first"], decode_s=answer["decode_s"], prefill_s=answer["prefill_s"])
        return PeerRun(token_ids=ids, stats=stats)

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def _ask(self, request: dict[str, object], seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError:
            raise PeerError(self._exit_reason()) from None
        try:
            answer: dict[str, Any] = json.loads(self._line(seconds))
        except ValueError:
            raise PeerError("its answer is not JSON") from None
        if not isinstance(answer, dict):
            raise PeerError("its answer is not a JSON object")
        if "error" in answer:
            raise PeerError(str(answer["error"]).strip().splitlines()[-1][:300])
        return answer

    def _line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        end, pipe = time.monotonic() + seconds, self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                raise PeerError(f"no answer in {seconds:.0f} s")
            chunk = os.read(pipe, _CHUNK)
            if not chunk:
                raise PeerError(self._exit_reason())
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _exit_reason(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its process ended: {lines[-1][:300]}" if lines else "its process ended"
