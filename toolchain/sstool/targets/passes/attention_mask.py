"""Computes attention masks in the graph: what each new token attends to, for each sliding window once."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from sstool.targets.passes.inserter import Inserter


@dataclass(slots=True, kw_only=True)
class MaskInputs:
    """The graph's inputs that masks are computed from.

    Attributes:
        ids: `input_ids`, for the query length.
        positions: `position_ids`.
        start: `write_indices`, the first new entry of each row.
        tree: `tree_mask`; None in a graph for chains, where positions are entries of the KV cache.
        capacity: number of entries of the KV cache.
        dtype: data type of the model.
        hidden: score of a hidden token.
    """

    ids: ir.Value
    positions: ir.Value
    start: ir.Value
    tree: ir.Value | None
    capacity: int
    dtype: ir.DataType
    hidden: float


@dataclass(slots=True)
class MaskMaker:
    """Adds masks `dtype[batch, 1, sequence, capacity]` at the beginning of a graph."""

    insert: Inserter
    inputs: MaskInputs
    _made: dict[int, ir.Value] = field(default_factory=dict)
    _entries: ir.Value | None = None

    def mask(self, window: int) -> ir.Value:
        """Returns the mask of a sliding window, in entries of the KV cache; 0 for none."""
        if window not in self._made:
            self._made[window] = self._make(window)
        return self._made[window]

    def _make(self, window: int) -> ir.Value:
        add, given, long = self.insert.add, self.inputs, ir.DataType.INT64
        columns = self._columns()
        entries = self._own_entries()
        shape = ["batch", "sequence_len", given.capacity]
        visible = add("LessOrEqual", [columns, entries], ir.DataType.BOOL, shape)
        if window > 0:
            first = add("Sub", [entries, self.insert.integer(window)], long, ["batch", "sequence_len", 1])
            within = add("Greater", [columns, first], ir.DataType.BOOL, shape)
            visible = add("And", [visible, within], ir.DataType.BOOL, shape)
        hidden = self.insert.scalar(given.hidden, given.dtype)
        shown = self.insert.scalar(0.0, given.dtype) if given.tree is None else self._tree_bias(columns)
        # A mask of numbers: TensorRT cannot build most graphs with a mask of truth values that is computed.
        mask = add("Where", [visible, shown, hidden], given.dtype, shape)
        return add("Unsqueeze", [mask, self.insert.integers(1)], given.dtype, ["batch", 1, "sequence_len", given.capacity])

    def _columns(self) -> ir.Value:
        """Returns the entries of the KV cache, int64[capacity]."""
        bounds = [self.insert.integer(n) for n in (0, self.inputs.capacity, 1)]
        return self.insert.add("Range", bounds, ir.DataType.INT64, [self.inputs.capacity])

    def _own_entries(self) -> ir.Value:
        """Returns the entry of each new token, int64[batch, sequence, 1]."""
        if self._entries is not None:
            return self._entries
        add, given, long = self.insert.add, self.inputs, ir.DataType.INT64
        entries = given.positions
        if given.tree is not None:
            length = add("Shape", [given.ids], long, [1], {"start": 1, "end": 2})
            count = add("Squeeze", [length], long, [])
            offsets = add("Range", [self.insert.integer(0), count, self.insert.integer(1)], long, ["sequence_len"])
            start = add("Unsqueeze", [given.start, self.insert.integers(1)], long, ["batch", 1])
            entries = add("Add", [start, offsets], long, ["batch", "sequence_len"])
        self._entries = add("Unsqueeze", [entries, self.insert.integers(2)], long, ["batch", "sequence_len", 1])
        return self._entries

    def _tree_bias(self, columns: ir.Value) -> ir.Value:
        """Returns the tree mask at the entries of the new tokens, 0 at all others."""
        add, given, long = self.insert.add, self.inputs, ir.DataType.INT64
        assert given.tree is not None
        start = add("Unsqueeze", [given.start, self.insert.integers(1)], long, ["batch", 1])
        offsets = add("Sub", [columns, start], long, ["batch", given.capacity])
        is_new = add("GreaterOrEqual", [offsets, self.insert.integer(0)], ir.DataType.BOOL, ["batch", given.capacity])
        length = add("Shape", [given.ids], long, [1], {"start": 1, "end": 2})
        last = add("Sub", [length, self.insert.integers(1)], long, [1])
        inside = add("Max", [add("Min", [offsets, last], long, None), self.insert.integer(0)], long, ["batch", given.capacity])
        rows = add("Unsqueeze", [inside, self.insert.integers(1)], long, ["batch", 1, given.capacity])
        # An index for each new token: the zeros only bring the dimension.
        zeros = add("Mul", [self._own_entries(), self.insert.integer(0)], long, ["batch", "sequence_len", 1])
        index = add("Add", [rows, zeros], long, ["batch", "sequence_len", given.capacity])
        tree = add("Squeeze", [given.tree, self.insert.integers(1)], given.dtype, ["batch", "sequence_len", "sequence_len"])
        shape = ["batch", "sequence_len", given.capacity]
        gathered = add("GatherElements", [tree, index], given.dtype, shape, {"axis": 2})
        new = add("Unsqueeze", [is_new, self.insert.integers(1)], ir.DataType.BOOL, ["batch", 1, given.capacity])
        return add("Where", [new, gathered, self.insert.scalar(0.0, given.dtype)], given.dtype, shape)
