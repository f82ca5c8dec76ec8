"""A session of a graph that is not one of the artifact's engines (see `backends.base.OpenGraph`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io


class OrtGraph:
    """An open graph over an artifact's weights."""

    def __init__(self, session: ort.InferenceSession, rope: Mapping[str, NDArray[np.float32]]) -> None:
        """Takes the session, and the RoPE tables by input name."""
        self._session = session
        self._rope = rope
        self._inputs = {value.name: value.shape for value in session.get_inputs()}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[Any]]:
        """Returns outputs of one pass with an empty KV cache; see `backends.base.OpenGraph`."""
        every = {**feeds, **self._rope}
        batch, length = next(iter(feeds.values())).shape[:2]
        for name, shape in self._inputs.items():
            if name.startswith(graph_io.PAST_PREFIX):
                every[name] = np.zeros((batch, shape[1], length, shape[3]), dtype=np.float32)
        results = self._session.run(list(outputs), {name: feed for name, feed in every.items() if name in self._inputs})
        return [np.asarray(result) for result in results]
