"""Functions with a kernel in ONNX Runtime are dropped, and so are unused functions and imports."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime.errors import UnsupportedModelError
from sstool.graph.passes.drop_functions import DropFunctionsPass
from tests.toolchain.passes.small_graphs import drawn, floats, model_of, named, run


def function(domain: str, name: str) -> ir.Function:
    """Returns a function of one argument that computes `x * sigmoid(x)`."""
    x = ir.Value(name="x")
    sigmoid = ir.node("Sigmoid", [x])
    product = ir.node("Mul", [x, sigmoid.outputs[0]])
    body = ir.Graph([x], [product.outputs[0]], nodes=[sigmoid, product], opset_imports={"": 23})
    return ir.Function(domain=domain, name=name, graph=body, attributes=())


def model(domain: str, op: str, *functions: ir.Function) -> ir.Model:
    """Returns a model that calls one operator and contains these functions."""
    x = floats("x", 2, 3)
    call = named(ir.node(op, [x], domain=domain), "y")
    made = model_of([x], call.outputs, [call])
    made.functions.update({f.identifier(): f for f in functions})
    return made


def test_an_operator_with_a_kernel_computes_the_same_without_its_body() -> None:
    before = model("com.microsoft", "QuickGelu", function("com.microsoft", "QuickGelu"))
    before.graph[0].attributes.add(ir.AttrFloat32("alpha", 1.0))
    x = drawn(2, 3)
    after = DropFunctionsPass()(before).model
    assert not after.functions
    np.testing.assert_allclose(run(after, x=x)["y"], x / (1 + np.exp(-x)), rtol=1e-5)


def test_only_domains_in_use_stay_imported() -> None:
    unused = model("", "Relu", function("custom", "Unused"))
    unused.graph.opset_imports["custom"] = 1
    after = DropFunctionsPass()(unused).model
    assert not after.functions
    assert after.graph.opset_imports == {"": 24}
    x = drawn(2, 3)
    np.testing.assert_array_equal(run(after, x=x)["y"], np.maximum(x, 0))


def test_a_domain_in_use_is_imported() -> None:
    used = model("com.microsoft", "QuickGelu")
    del used.graph.opset_imports["com.microsoft"]
    assert DropFunctionsPass()(used).model.graph.opset_imports == {"": 24, "com.microsoft": 1}


@pytest.mark.parametrize(("domain", "op"), [("custom", "QuickGelu"), ("com.microsoft", "Invented")])
def test_a_function_in_use_without_a_kernel_is_refused(domain: str, op: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"calls {domain}.{op}, for which there is no kernel"):
        DropFunctionsPass()(model(domain, op, function(domain, op)))
