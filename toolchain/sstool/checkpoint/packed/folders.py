"""Writes a packed checkpoint again with floating-point numbers, which transformers and mobius read.

Two folders have the same files but for the packed matrices. In one these are the numbers that they stand
for. In the other they are codes and zero points; a graph that is built from it tells, wherever a matrix went,
which codes its numbers had.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ssruntime.artifact import CHECKPOINT_CONFIG
from ssruntime.scratch import remove_tree
from ssruntime.strict_reader import parse_json
from sstool.checkpoint.linked_folder import link_or_copy
from sstool.checkpoint.packed.layout import PackedLayout, packed_layout
from sstool.checkpoint.packed.unpack import ORDER, SCALES, WEIGHTS, ZEROS, unpack
from sstool.checkpoint.safetensors_files import WEIGHT_INDEX, TensorRecord, all_tensors, read_tensor

if TYPE_CHECKING:
    import torch

_SUFFIXES: Final = (WEIGHTS, ZEROS, SCALES, ORDER)
_SHARD: Final = 1 << 30
"""Bytes after which a weight file ends, so that one file at a time fits in memory."""


@dataclass(frozen=True, slots=True)
class UnpackedFolders:
    """The two checkpoints that are written from a packed one.

    Attributes:
        numbers: folder with the numbers that the packed matrices stand for, in fp32.
        codes: folder with `codes + 16 * zeros` in their place, in fp16.
    """

    numbers: Path
    codes: Path


@contextlib.contextmanager
def unpacked_folders(folder: Path, layout: PackedLayout, scratch: Path) -> Iterator[UnpackedFolders]:
    """Yields both folders, which exist only meanwhile.

    Args:
        folder: folder of the packed checkpoint.
        layout: how its weights are stored.
        scratch: folder to write into; it needs room for the weights in fp32 and in fp16.

    Raises:
        CheckpointError: if a tensor is missing, damaged, or does not fit the others.
        UnsupportedModelError: if the weights are packed in a way that cannot be read.
        OSError: if the disk is full or a file cannot be written.
    """
    found = UnpackedFolders(scratch / "numbers", scratch / "codes")
    try:
        for made in (found.numbers, found.codes):
            made.mkdir()
            _write_text_files(folder, made)
        _write_weights(folder, layout, found)
        yield found
    finally:
        for made in (found.numbers, found.codes):
            remove_tree(made)


@contextlib.contextmanager
def readable_folder(folder: Path) -> Iterator[Path]:
    """Yields the folder of a checkpoint; if its weights are packed, a temporary one with their numbers.

    Raises:
        CheckpointError, UnsupportedModelError, OSError: as `packed_layout` and `unpacked_folders`.
    """
    layout = packed_layout(folder)
    if layout is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sstool-") as name, unpacked_folders(folder, layout, Path(name)) as unpacked:
        yield unpacked.numbers


def _write_text_files(folder: Path, made: Path) -> None:
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (CHECKPOINT_CONFIG, WEIGHT_INDEX):
            link_or_copy(path.resolve(), made / path.name)
    settings = parse_json((folder / CHECKPOINT_CONFIG).read_bytes())
    kept = {key: value for key, value in settings.items() if key != "quantization_config"}
    (made / CHECKPOINT_CONFIG).write_text(json.dumps(kept), encoding="utf-8")


def _write_weights(folder: Path, layout: PackedLayout, found: UnpackedFolders) -> None:
    records = all_tensors(folder)
    modules = _packed_modules(records)
    numbers, codes = _Shards(found.numbers), _Shards(found.codes)
    for name, record in records.items():
        module, suffix = name.rpartition(".")[0], f".{name.rpartition('.')[2]}"
        if module in modules and suffix in _SUFFIXES:
            continue
        values = read_tensor(record)
        numbers.add(name, values)
        codes.add(name, values)
    for module, parts in modules.items():
        matrix = unpack(module, {suffix: read_tensor(record) for suffix, record in parts.items()}, layout)
        numbers.add(f"{module}.weight", matrix.dense().T)
        codes.add(f"{module}.weight", matrix.marked().T)
    numbers.close()
    codes.close()


def _packed_modules(records: dict[str, TensorRecord]) -> dict[str, dict[str, TensorRecord]]:
    names = [name.removesuffix(WEIGHTS) for name in records if name.endswith(WEIGHTS)]
    return {name: {suffix: records[name + suffix] for suffix in _SUFFIXES if name + suffix in records} for name in names}


@dataclass(slots=True)
class _Shards:
    """Writes tensors to numbered weight files and their index."""

    folder: Path
    pending: dict[str, torch.Tensor] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    files: int = 0

    def add(self, name: str, values: torch.Tensor) -> None:
        self.pending[name] = values.contiguous()
        if sum(tensor.nbytes for tensor in self.pending.values()) >= _SHARD:
            self._flush()

    def close(self) -> None:
        self._flush()
        index: dict[str, Any] = {"metadata": {}, "weight_map": self.places}
        (self.folder / WEIGHT_INDEX).write_text(json.dumps(index), encoding="utf-8")

    def _flush(self) -> None:
        if not self.pending:
            return
        self.files += 1
        name = f"model-{self.files:05}.safetensors"
        _save(self.pending, self.folder / name)
        self.places |= dict.fromkeys(self.pending, name)
        self.pending = {}


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a weight file.

    Raises:
        OSError: if the disk is full or refuses; the library reports that as an error of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as err:
        code = re.search(r"os error (\d+)", str(err))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from err
