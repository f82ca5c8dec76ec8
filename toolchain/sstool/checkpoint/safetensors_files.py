"""Finds and checks a checkpoint's weights: whole shards, known dtypes, finite numbers, never a pickle."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError, safe_open

from ssruntime.errors import CheckpointError, UnsupportedModelError
from ssruntime.strict_reader import parse_json

if TYPE_CHECKING:
    import torch

WEIGHT_INDEX: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
_DTYPES: Final = ("F64", "F32", "F16", "BF16")
_NO_HEADER: Final = ("header too small", "header too large", "invalid header length")
"""What the safetensors library says of a file that ends within its header, or has none."""
_WRONG_SIZE: Final = "file not fully covered"
_PART: Final = 1 << 15
"""Numbers in one call of torch: so few that it starts no threads, which are slow on cores that others use."""
_AGAIN: Final = "download the checkpoint again"


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """The header entry of one tensor in a safetensors file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


def read_tensors(folder: Path, used: Callable[[Iterable[str]], Collection[str]]) -> list[TensorRecord]:
    """Returns the used tensors of a checkpoint, as the headers of its weight files list them.

    Args:
        folder: folder of the checkpoint.
        used: returns which of some tensors, by name, the model uses. The others decide nothing.

    Raises:
        CheckpointError: if there are no safetensors, a shard is missing, a file is cut or corrupt, two files
            hold the same tensor, or a used tensor of the index is absent.
    """
    tensors, listed = _tensors(folder)
    wanted = used({*tensors, *listed})
    absent = (set(listed) - tensors.keys()) & set(wanted)
    if absent:
        raise _absent(folder, absent)
    return [record for name, record in tensors.items() if name in wanted]


def all_tensors(folder: Path) -> dict[str, TensorRecord]:
    """Returns all tensors of a checkpoint by name; errors are those of `read_tensors`."""
    tensors, listed = _tensors(folder)
    absent = set(listed) - tensors.keys()
    if absent:
        raise _absent(folder, absent)
    return tensors


def _tensors(folder: Path) -> tuple[dict[str, TensorRecord], list[str]]:
    """Returns the tensors in the weight files by name, and the names that an index lists."""
    files, listed = _weight_files(folder)
    tensors: dict[str, TensorRecord] = {}
    for record in itertools.chain.from_iterable(map(_read_header, files)):
        first = tensors.setdefault(record.name, record)
        if first is not record:
            raise CheckpointError(f"tensor {record.name!r} is in two weight files: {first.file} and {record.file.name}", _AGAIN)
    if not tensors:
        raise CheckpointError(f"the weight files in {folder} hold no tensors", _AGAIN)
    return tensors, listed


def _absent(folder: Path, names: Collection[str]) -> CheckpointError:
    return CheckpointError(f"{folder / WEIGHT_INDEX} lists tensor {min(names)!r}, which no weight file holds", _AGAIN)


def check_dtypes(tensors: Iterable[TensorRecord]) -> None:
    """Refuses tensors that are not plain floating-point numbers.

    Raises:
        UnsupportedModelError: naming the first such tensor.
    """
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"tensor {tensor.name!r} has dtype {tensor.dtype}; sstool reads {', '.join(_DTYPES)}",
                "export the checkpoint before it was quantized",
            )


def check_finite(tensors: Iterable[TensorRecord]) -> None:
    """Reads every number once, one tensor at a time.

    Raises:
        CheckpointError: naming the first tensor that holds a NaN or an infinity.
    """
    import torch  # imported here because reading the headers does not need it

    for file, records in itertools.groupby(tensors, key=lambda tensor: tensor.file):
        with _open(file, framework="pt") as weights:
            for record in records:
                values: torch.Tensor = weights.get_tensor(record.name)
                if values.numel() == 0:
                    continue
                # A NaN or an infinity is the least or greatest number of its part; finding it copies nothing.
                extremes = [number for part in torch.split(values.flatten(), _PART) for number in torch.aminmax(part)]
                if not torch.isfinite(torch.stack(extremes)).all():
                    raise CheckpointError(
                        f"tensor {record.name!r} in {file} holds {int((~torch.isfinite(values)).sum())} numbers that are NaN or infinite",
                        "the weights are damaged or diverged",
                    )


def read_tensor(record: TensorRecord) -> torch.Tensor:
    """Returns the values of a tensor, in its own dtype."""
    with _open(record.file, framework="pt") as weights:
        values: torch.Tensor = weights.get_tensor(record.name)
        return values


def weight_files(folder: Path) -> list[str]:
    """Returns the names of the weight files that an index in a folder lists, else that of the single file."""
    try:
        names = set(parse_json((folder / WEIGHT_INDEX).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [SINGLE_FILE]
    return sorted(name for name in names if isinstance(name, str))


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Returns the weight files and the tensors that an index lists (none without an index).

    A single file comes before an index, as in transformers.
    """
    index = folder / WEIGHT_INDEX
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE], []
    if not index.exists():
        pickled = next(iter(sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])), None)
        if pickled is not None:
            raise CheckpointError(
                f"{folder} has no {SINGLE_FILE}, only {pickled.name}", "save the weights as safetensors; pickles are not read"
            )
        raise CheckpointError(f"{folder} has no weights: neither {SINGLE_FILE} nor {WEIGHT_INDEX}", _AGAIN)
    try:
        listed = parse_json(index.read_bytes())["weight_map"]
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
    with _open(file, framework="numpy") as weights:
        slices = {name: weights.get_slice(name) for name in weights.offset_keys()}
        return [TensorRecord(name=n, file=file, dtype=s.get_dtype(), shape=tuple(s.get_shape())) for n, s in slices.items()]


def _open(file: Path, *, framework: str) -> safe_open:
    """Opens a file, whose header the library then has checked against the file's size.

    Raises:
        CheckpointError: if the file is cut or corrupt, or cannot be read.
    """
    try:
        file.open("rb").close()  # gives the true reason, which the library does not
        return safe_open(file, framework, backend="pread")  # tensors of a mapped file would all stay in memory
    except OSError as err:
        raise CheckpointError(f"{file} cannot be read: {err.strerror or err}", "check that this is a file, and its permissions") from err
    except SafetensorError as err:
        reason, size = str(err).removeprefix("Error while deserializing header: "), file.stat().st_size
        if reason.startswith(_NO_HEADER):
            message = f"{file} is cut or not a safetensors file: {size} bytes, {reason}"
        elif _WRONG_SIZE in reason:
            message = f"{file} has {size} bytes where its header says another number"
        else:
            message = f"{file} has a damaged header: {reason}"
        raise CheckpointError(message, _AGAIN) from err
