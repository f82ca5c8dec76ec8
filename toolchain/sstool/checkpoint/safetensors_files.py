"""The tensors of a checkpoint, found and checked from its files alone: whole shards, known dtypes, finite numbers; never a pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.errors import CheckpointError, UnsupportedModelError

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_LENGTH_BYTES: Final = 8
_MAX_HEADER: Final = 100_000_000
_CHUNK: Final = 1 << 22
_AGAIN: Final = "download the checkpoint again"

_EXPONENTS: Final[dict[str, tuple[type[np.unsignedinteger[Any]], int]]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""By dtype: the integer of its width, and the bits that are all set in NaN and infinity only."""


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """One tensor in a safetensors file. `offset` counts bytes from the start of the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def num_elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


def read_tensors(folder: Path) -> list[TensorRecord]:
    """Reads the headers of a checkpoint's weight files and checks them against the files' sizes and the index.

    Raises:
        CheckpointError: if there are no safetensors, a shard is missing, a file is cut or corrupt, or a tensor of the index is absent.
    """
    files, listed = _weight_files(folder)
    tensors = [record for file in files for record in _read_header(file)]
    absent = set(listed) - {t.name for t in tensors}
    if absent:
        raise CheckpointError(f"{folder / _INDEX} lists tensor {min(absent)!r}, which no weight file holds", _AGAIN)
    if not tensors:
        raise CheckpointError(f"the weight files in {folder} hold no tensors", _AGAIN)
    return tensors


def check_dtypes(tensors: Iterable[TensorRecord]) -> None:
    """Refuses tensors that are not plain floating-point numbers.

    Raises:
        UnsupportedModelError: naming the first such tensor.
    """
    for tensor in tensors:
        if tensor.dtype not in _EXPONENTS:
            raise UnsupportedModelError(
                f"tensor {tensor.name!r} has dtype {tensor.dtype}; sstool reads {', '.join(_EXPONENTS)}",
                "export the checkpoint before it was quantized",
            )


def check_finite(tensors: Iterable[TensorRecord]) -> None:
    """Reads every number once, a few megabytes at a time.

    Raises:
        CheckpointError: naming the first tensor that holds a NaN or an infinity.
    """
    for tensor in tensors:
        integer, exponent = _EXPONENTS[tensor.dtype]
        bad = 0
        with tensor.file.open("rb") as handle:
            handle.seek(tensor.offset)
            left = tensor.size
            while left > 0:
                data = handle.read(min(left, _CHUNK))
                if not data:
                    raise CheckpointError(f"{tensor.file} ends within tensor {tensor.name!r}", _AGAIN)
                left -= len(data)
                bad += _count_set(np.frombuffer(data, dtype=integer), exponent)
        if bad:
            raise CheckpointError(
                f"tensor {tensor.name!r} in {tensor.file} holds {bad} numbers that are NaN or infinite",
                "the weights are damaged or diverged",
            )


def _count_set(bits: NDArray[np.unsignedinteger[Any]], mask: int) -> int:
    wide = bits.dtype.type(mask)
    return int(np.count_nonzero((bits & wide) == wide))


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Returns the weight files and the tensors that an index lists (none without an index)."""
    index = folder / _INDEX
    if not index.exists():
        if (folder / _SINGLE).exists():
            return [folder / _SINGLE], []
        pickled = next(iter(sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])), None)
        if pickled is not None:
            raise CheckpointError(
                f"{folder} has no {_SINGLE}, only {pickled.name}", "save the weights as safetensors; pickles are not read"
            )
        raise CheckpointError(f"{folder} has no weights: neither {_SINGLE} nor {_INDEX}", _AGAIN)
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(listed.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise CheckpointError(f"{index} is not a weight index: {err!r}", _AGAIN) from err
    files = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index} names a weight file outside its folder: {name!r}", _AGAIN)
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing: {index.name} lists it", _AGAIN)
        files.append(folder / name)
    return files, list(listed)


def _read_header(file: Path) -> list[TensorRecord]:
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or not 2 <= length <= min(_MAX_HEADER, size - _LENGTH_BYTES):
            raise CheckpointError(f"{file} is cut or not a safetensors file: {size} bytes, a header of {length}", _AGAIN)
        header = handle.read(length)
    try:
        entries = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
        tensors = [_record(file, name, entry, _LENGTH_BYTES + length) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise CheckpointError(f"{file} has a damaged header: {err!r}", _AGAIN) from err
    end = max((t.offset + t.size for t in tensors), default=_LENGTH_BYTES + length)
    if end != size:
        raise CheckpointError(f"{file} has {size} bytes where its header says {end}", _AGAIN)
    return tensors


def _record(file: Path, name: str, entry: dict[str, Any], start: int) -> TensorRecord:
    first, last = (int(n) for n in entry["data_offsets"])
    record = TensorRecord(
        name=name,
        file=file,
        dtype=str(entry["dtype"]),
        shape=tuple(int(n) for n in entry["shape"]),
        offset=start + first,
        size=last - first,
    )
    integer, _ = _EXPONENTS.get(record.dtype, (None, 0))
    if first < 0 or last < first or (integer is not None and record.num_elements * integer().itemsize != record.size):
        raise ValueError(f"tensor {name!r} of shape {record.shape} spans {record.size} bytes")
    return record
