"""Tables of angles end where the context ends."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

_TABLE_INPUTS: Final = (7, 8)


class TrimRotaryPass(ir.passes.InPlacePass):
    """Cuts the cosine and sine tables of GroupQueryAttention to `max_context` rows.

    Requires: the tables are constants of at least `max_context` rows, used by attention only.
    Ensures: they have `max_context` rows.
    Edits in place.
    """

    def __init__(self, max_context: int) -> None:
        super().__init__()
        self._rows = max_context

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        tables: dict[str, ir.Value] = {}
        for node in model.graph:
            if node.op_type == "GroupQueryAttention":
                for value in [v for i, v in enumerate(node.inputs) if i in _TABLE_INPUTS]:
                    if value is not None and value.name is not None and value.const_value is not None:
                        tables[value.name] = value
        modified = False
        for name, value in tables.items():
            assert value.const_value is not None  # only such were taken
            table = value.const_value.numpy()
            if table.shape[0] > self._rows:
                value.const_value = ir.tensor(table[: self._rows].copy(), name=name)
                value.shape = ir.Shape([self._rows, *table.shape[1:]])
                modified = True
        return ir.passes.PassResult(model, modified=modified)
