"""A scripted artifact, its entry in the packed-weights cache, and ways to damage an entry."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ssruntime import GenerationConfig
from ssruntime.artifact import read_artifact
from ssruntime.backends.ort import packing
from ssruntime.config import CheckpointDefaults, complete
from ssruntime.engine import load
from tests.runtime.scripted import plain_tokens, random_script, write_artifact

SCRIPT: Final = random_script(5, vocab=24, history=True, agreement=0.8)
CONFIG: Final = GenerationConfig(max_new_tokens=30, ignore_eos=True, temperature=0.0, exit="fixed", max_draft=4)
PROMPT: Final = [3, 1, 2]
EXPECTED: Final = plain_tokens(SCRIPT, PROMPT, complete(CONFIG, CheckpointDefaults(), None), 64)[0]
WITNESS: Final = "witness"
"""A file that tests put into an entry: it is gone once the entry is made again."""

LOAD_AND_REPORT: Final = """
import json, logging, sys
import ssruntime
from ssruntime import GenerationConfig

warnings = []
logging.getLogger().addHandler(type("Keep", (logging.Handler,), {"emit": lambda self, record: warnings.append(record.getMessage())})())
engine = ssruntime.load(sys.argv[1], threads=1)
config = GenerationConfig(max_new_tokens=30, ignore_eos=True, temperature=0.0, exit="fixed", max_draft=4)
print(json.dumps({"packing": engine.backend.packing, "tokens": engine.generate([3, 1, 2], config).token_ids, "warnings": warnings}))
"""


def entries(cache: Path) -> list[Path]:
    """Returns the entries of a cache, without temporary folders of killed processes."""
    return sorted(p for p in cache.iterdir() if not p.name.startswith("."))


def only_entry(cache: Path) -> Path:
    """Returns the only entry; the cache must contain nothing else, temporary folders included."""
    (entry,) = cache.iterdir()
    assert {"entry.json", "packed.bin", "packed.onnx"} <= {p.name for p in entry.iterdir()}
    return entry


def opened(folder: Path, *, verify: bool = False) -> str:
    """Loads, checks what is decoded, and returns the packing."""
    with load(folder, threads=1, verify=verify) as engine:
        assert engine.generate(PROMPT, CONFIG).token_ids == EXPECTED
        return engine.backend.packing


def run_child(program: str, *args: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs a program in a new process, and waits for its end."""
    command = [*prefix, sys.executable, "-c", program, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def keep_times(path: Path, edit: Callable[[bytes], bytes]) -> None:
    """Edits a file without changing its times."""
    status = path.stat()
    path.write_bytes(edit(path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flipped(data: bytes) -> bytes:
    """Returns bytes with one bit changed."""
    return data[:64] + bytes([data[64] ^ 1]) + data[65:]


def artifacts(tmp_path: Path, number: int) -> list[Path]:
    """Writes artifacts with different weights."""
    return [write_artifact(tmp_path / f"artifact{i}", random_script(100 + i, vocab=24)) for i in range(number)]


def entry_of(cache: Path, folder: Path) -> Path:
    """Returns the place of an artifact's entry, which may not exist."""
    return cache / packing._key(packing._source(read_artifact(folder)))


DAMAGE: Final[dict[str, Callable[[Path], object]]] = {
    "data cut": lambda e: keep_times(e / "packed.bin", lambda b: b[: len(b) // 2]),
    "data longer": lambda e: keep_times(e / "packed.bin", lambda b: b + b"\0"),
    "data touched": lambda e: os.utime(e / "packed.bin", ns=(1, 1)),
    "data missing": lambda e: (e / "packed.bin").unlink(),
    "graph cut": lambda e: keep_times(e / "packed.onnx", lambda b: b[: len(b) // 2]),
    "graph flipped": lambda e: keep_times(e / "packed.onnx", flipped),
    "graph missing": lambda e: (e / "packed.onnx").unlink(),
    "entry cut": lambda e: keep_times(e / "entry.json", lambda b: b[: len(b) // 2]),
    "entry a list": lambda e: (e / "entry.json").write_text("[]"),
    "entry of another form": lambda e: (e / "entry.json").write_text('{"graph_sha256": 1}'),
    "entry not text": lambda e: (e / "entry.json").write_bytes(b"\xff\xfe\x00"),
    "entry missing": lambda e: (e / "entry.json").unlink(),
}
"""Kinds of damage by their names."""
