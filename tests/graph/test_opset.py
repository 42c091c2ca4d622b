"""Raising the opset with onnx's converter, which loses what is put back here."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import InputError
from fp8graph.graph.opset import opset_of, raise_opset
from fp8graph.runners.onnxruntime import OnnxRuntime
from tests.small import feeds, model, refused

OLD = """(float[2,64] x, float[64,64] w, float[64] w_b, float[2,64] w_small) => (float[2,64] y) {
    [first] a = MatMul(x, w)
    [second] b = Add(a, w_b)
    [third] c = Softmax <axis = 1> (b)
    [fourth] y = Mul(c, w_small)
}"""


def old(opset: int = 11) -> ir.Model:
    proto = model(OLD, opset=opset, ir=7)
    proto.graph.doc_string = "graph"
    work = ir.from_proto(proto)
    for index, node in enumerate(work.graph):
        node.metadata_props["mine"] = str(index)
    work.graph.initializers["w"].metadata_props["about"] = "weight"
    work.metadata_props["author"] = "me"
    return work


def test_raising_keeps_metadata_names_weights_and_the_interface():
    work, before = old(), old()
    weight = work.graph.initializers["w"].const_value
    assert raise_opset(work, 21) and opset_of(work) == 21
    by_name = {node.name: node for node in work.graph}
    assert [by_name[name].metadata_props["mine"] for name in ("first", "second", "third", "fourth")] == list("0123")
    assert work.graph.initializers["w"].const_value is weight  # carried over unread
    assert work.graph.initializers["w"].metadata_props["about"] == "weight"
    assert work.metadata_props["author"] == "me" and work.graph.doc_string == "graph"
    for values in (lambda m: m.graph.inputs, lambda m: m.graph.outputs):
        assert [(v.name, str(v.type), str(v.shape)) for v in values(work)] == [
            (v.name, str(v.type), str(v.shape)) for v in values(before)
        ]
    assert set(work.graph.initializers) == set(before.graph.initializers)


def test_raising_changes_no_number():
    work = old()
    raise_opset(work, 21)
    for feed in feeds(ir.to_proto(old())):
        one, other = OnnxRuntime(old()).run(feed), OnnxRuntime(work).run(feed)
        np.testing.assert_array_equal(one["y"], other["y"])


@pytest.mark.parametrize(("opset", "least", "then"), [(21, 21, 21), (23, 21, 23), (13, 21, 21)])
def test_an_opset_is_raised_and_never_lowered(opset, least, then):
    work = ir.from_proto(model("(float[2,8] x) => (float[2,8] y) { y = Relu(x) }", opset=opset))
    assert raise_opset(work, least) is (then != opset)
    assert opset_of(work) == then


@pytest.mark.parametrize(
    ("body", "inlined"), [("b = Relu(a)", False), ("b = ReduceMax <axes = [1], keepdims = 1> (a)", True)]
)
def test_a_function_is_inlined_where_an_op_of_it_has_changed_since(body, inlined):
    """ReduceMax takes its axes as an input from opset 18 on; Relu is the same."""
    function = f'<domain: "local", opset_import: ["" : 17]> F (a) => (b) {{ {body} }}'
    text = "(float[2,8] x) => (float[2,n] y) { y = local.F(x) }"
    work = ir.from_proto(model(text, opset=17, functions=function))
    feed = feeds(ir.to_proto(work))[0]
    before = OnnxRuntime(work).run(feed)["y"]
    assert raise_opset(work, 21) and (not work.functions) is inlined
    onnx.checker.check_model(ir.to_proto(work))
    np.testing.assert_array_equal(OnnxRuntime(work).run(feed)["y"], before)


def test_an_op_that_cannot_be_raised_is_an_input_error():
    work = ir.from_proto(model("(float[2] x) => (float[2] y) { y = Foo(x) }", opset=13))
    with refused(InputError, "FG106", "the model's opset 13 cannot be raised to 21", "Foo"):
        raise_opset(work, 21)
    assert opset_of(work) == 13 and [node.op_type for node in work.graph] == ["Foo"]


def test_a_model_without_the_default_domain_is_refused():
    work = ir.from_proto(model("(float[2,8] x) => (float[2,8] y) { y = Relu(x) }"))
    work.graph.opset_imports.clear()
    work.graph.opset_imports["local"] = 1
    with refused(InputError, "FG106", "no opset of the default domain"):
        opset_of(work)


def test_the_other_spelling_of_the_default_domain_is_raised_too():
    proto = model("(float[2,8] x) => (float[2,8] y) { y = Relu(x) }", opset=13)
    proto.opset_import[0].domain = "ai.onnx"
    work = ir.from_proto(proto)
    raise_opset(work, 21)
    assert opset_of(work) == 21
    onnx.checker.check_model(ir.to_proto(work))


# The types that the file holds decide.
VERSIONS = [
    ("fp8-default", "reference", 10),
    ("w4a8", "reference", 10),
    ("mxfp8", "reference", 12),
    ("mxfp4", "reference", 12),
    ("mxfp6", "reference", 14),
    ("nvfp4", "reference", 11),
    ("nvfp4", "tensorrt-rtx:sm120", 11),
    ("fp8-block128-ue8m0", "reference", 12),
    ("fp8-block128-ue8m0", "onnxruntime", 12),  # found in the graph, by a Cast
    ("fp8-e5m2", "onnxruntime", 10),
]


@pytest.mark.parametrize(("recipe", "target", "version"), VERSIONS)
def test_a_file_has_the_first_ir_version_that_knows_its_types(recipe, target, version):
    proto = model("(float[4,256] x, float[256,32] w) => (float[4,32] y) { y = MatMul(x, w) }")
    done = fp8graph.optimize(proto, recipe=recipe, target=target, data=feeds(proto, 2))
    assert done.planned_by and done.model.ir_version == version
    onnx.checker.check_model(done.model, full_check=not target.startswith("tensorrt"))
    assert [item.code for item in done.findings if item.code == "FG311"] == []
