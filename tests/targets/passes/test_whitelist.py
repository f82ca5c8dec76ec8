"""What TensorRT ignores in silence, or does not run, is refused by name."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from ssruntime.errors import UnsupportedModelError
from sstool.targets.passes.whitelist import TENSORRT_OPERATORS, WhitelistPass
from tests.toolchain.passes.small_graphs import floats, model_of, named

X, Y, Z = (floats(name, 1, 2, 3, 4) for name in "xyz")


def checked(kind: str, inputs: list[ir.Value | None], attributes: dict[str, Any] | None = None, domain: str = "") -> None:
    values = [floats(f"v{n}", 1, 2, 3, 4) if value is not None else None for n, value in enumerate(inputs)]
    node = named(ir.node(kind, values, attributes=attributes or {}, domain=domain), "out")
    WhitelistPass("tensorrt", TENSORRT_OPERATORS).call(model_of([v for v in values if v is not None], node.outputs, [node]))


REFUSED: dict[str, tuple[str, list[ir.Value | None], dict[str, Any], str, str]] = {
    "an operator of ONNX Runtime": ("QuickGelu", [X], {"alpha": 1.0}, "com.microsoft", r"operator 'QuickGelu'"),
    "an unknown operator": ("Erf", [X], {}, "", r"operator 'Erf'"),
    "a window": ("Attention", [X, Y, Z], {"left_window_size": 4}, "", r"attribute 'left_window_size' of 'Attention'"),
    "a soft cap": ("Attention", [X, Y, Z], {"softcap": 4.0}, "", r"attribute 'softcap' of 'Attention'"),
    "lengths of keys": ("Attention", [X, Y, Z, None, None, None, X, Y], {}, "", r"an input of 'Attention'"),
    "a mode of the KV cache": ("TensorScatter", [X, Y, Z], {"axis": -2, "circular": 1}, "", r"attribute 'circular' of 'TensorScatter'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(name: str) -> None:
    kind, inputs, attributes, domain, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=rf"target tensorrt does not run {message} of this model") as caught:
        checked(kind, inputs, attributes, domain)
    assert "ort-cpu" in caught.value.hint


def test_what_is_known_passes() -> None:
    checked("Attention", [X, Y, Z, X], {"scale": 0.5})
    checked("TensorScatter", [X, Y, Z], {"axis": -2, "mode": "linear"})
    checked("Softmax", [X], {"axis": -1})
