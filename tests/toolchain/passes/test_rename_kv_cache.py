"""The KV cache's inputs and outputs get the contract's names and shapes; unpaired ones are refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime.errors import UnsupportedModelError
from sstool.graph.passes.rename_kv_cache import RenameKvCachePass
from tests.toolchain.passes.small_graphs import drawn, floats, model_of, named, run, typed

PAIRS = [f"{layer}.{kind}" for layer in (0, 3) for kind in ("key", "value")]


def model(past: list[str], present: list[str]) -> ir.Model:
    """Returns a model that appends `x` to each KV cache; one without an input counts as empty."""
    x = floats("x", 1, 2, "new", 4)
    inputs = {pair: floats(f"past_key_values.{pair}", 1, 2, "past", 4) for pair in past}
    nodes = []
    for pair in present:
        parts = [inputs[pair], x] if pair in inputs else [x]
        node = named(ir.node("Concat", parts, attributes={"axis": 2}), f"present.{pair}")
        typed(node.outputs[0], ir.DataType.FLOAT, [1, 2, "past + new", 4])
        nodes.append(node)
    return model_of([x, *inputs.values()], [node.outputs[0] for node in nodes], nodes)


def test_kv_caches_have_the_contract_s_names_and_the_same_content() -> None:
    given = model(PAIRS, PAIRS)
    rows = {f"past_key_values.{pair}": drawn(1, 2, 3, 4, seed=n) for n, pair in enumerate(PAIRS)}
    new = drawn(1, 2, 1, 4, seed=9)
    before = run(given, x=new, **rows)
    done = RenameKvCachePass()(given)
    assert done.modified
    assert [v.name for v in done.model.graph.inputs] == ["x", *(f"past.{pair}" for pair in PAIRS)]
    assert [v.name for v in done.model.graph.outputs] == [f"present.{pair}" for pair in PAIRS]
    for value in [*done.model.graph.inputs[1:], *done.model.graph.outputs]:
        assert value.shape == ir.Shape([1, 2, "max_context", 4])
    after = run(done.model, x=new, **{name.replace("past_key_values", "past"): row for name, row in rows.items()})
    for name, content in before.items():
        np.testing.assert_array_equal(after[name], content)


def test_other_inputs_and_outputs_keep_their_names_and_shapes() -> None:
    given = model(PAIRS, PAIRS)
    given.graph.outputs.append(named(ir.node("Neg", given.graph.inputs[:1]), "present.9.other").outputs[0])
    given.graph.append(given.graph.outputs[-1].producer())  # type: ignore[arg-type] # it has one
    typed(given.graph.outputs[-1], ir.DataType.FLOAT, [1, 2, "new", 4])
    done = RenameKvCachePass()(given).model
    assert done.graph.inputs[0].shape == ir.Shape([1, 2, "new", 4])
    assert done.graph.outputs[-1].name == "present.9.other"
    assert done.graph.outputs[-1].shape == ir.Shape([1, 2, "new", 4])


@pytest.mark.parametrize(("past", "present"), [(PAIRS[:3], PAIRS), (PAIRS, PAIRS[1:]), ([], []), (["0.key"], ["0.value"])])
def test_an_input_without_its_output_is_refused(past: list[str], present: list[str]) -> None:
    with pytest.raises(UnsupportedModelError, match="do not pair up"):
        RenameKvCachePass().call(model(past, present))
