"""One copy of the weights in a device's memory, for every engine of an artifact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.artifact import Artifact
from ssruntime.backends.device import Device, Memory
from ssruntime.backends.device_engines.engine import ALIGNMENT
from ssruntime.backends.onnx_wire import external_data, external_initializers, weights_as_inputs
from ssruntime.errors import ArtifactError

_CHUNK: Final = 64 * 2**20
"""Bytes of a file that are uploaded at a time."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a weight lies in a file of the artifact."""

    file: str
    offset: int
    nbytes: int


class DeviceWeights:
    """The weights of the engines, and the RoPE tables, by the names of the graphs' inputs.

    Attributes:
        nbytes: size of the copy.
    """

    def __init__(self, artifact: Artifact, graphs: Iterable[bytes], tables: Mapping[str, NDArray[np.generic]], device: Device) -> None:
        """Uploads what the graphs refer to.

        Args:
            artifact: the artifact.
            graphs: serialized graphs, before `as_inputs`.
            tables: further constant inputs by name.
            device: device to upload to.

        Raises:
            ArtifactError: if two graphs take different weights for the same name.
            BackendUnavailableError: if the device lacks memory.
        """
        places = _places(graphs)
        self._offsets: dict[str, int] = {}
        end = 0
        for name, size in {**{n: p.nbytes for n, p in places.items()}, **{n: t.nbytes for n, t in tables.items()}}.items():
            self._offsets[name] = end
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self.nbytes = end
        self._memory: Memory = device.reserve(end, f"the weights of {artifact.folder.name}")
        for name, place in places.items():
            _upload_file(device, self._memory, self._offsets[name], artifact, place)
        for name, table in tables.items():
            device.upload(self._memory, self._offsets[name], np.ascontiguousarray(table).reshape(1, -1), table.nbytes)

    def addresses(self, names: Iterable[str]) -> dict[str, int]:
        """Returns the addresses of those of some inputs that are weights or tables."""
        return {name: self._memory.address + self._offsets[name] for name in names if name in self._offsets}


def as_inputs(graph: bytes, name: str) -> bytes:
    """Returns a graph whose weights are inputs.

    Raises:
        ArtifactError: if it is not an ONNX model.
    """
    try:
        return weights_as_inputs(graph)
    except ValueError as err:
        raise ArtifactError(f"{name} is not an ONNX graph: {err}", "export the model again") from err


def _places(graphs: Iterable[bytes]) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    for graph in graphs:
        for name, tensor in external_initializers(graph).items():
            record = external_data(tensor)
            place = _Place(record["location"], int(record.get("offset", 0)), int(record["length"]))
            if places.setdefault(name, place) != place:
                raise ArtifactError(f"two graphs have different weights {name!r}", "export the model again")
    return places


def _upload_file(device: Device, memory: Memory, offset: int, artifact: Artifact, place: _Place) -> None:
    with artifact.path(place.file).open("rb") as file:
        file.seek(place.offset)
        left = place.nbytes
        while left:
            part = file.read(min(left, _CHUNK))
            if not part:
                raise ArtifactError(f"{artifact.path(place.file)} ends before its last weight", "export the model again")
            device.upload(memory, offset, np.frombuffer(part, dtype=np.uint8).reshape(1, -1), len(part))
            offset, left = offset + len(part), left - len(part)
