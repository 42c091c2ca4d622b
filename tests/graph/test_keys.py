"""Op keys and the structure digest: what a plan holds on to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.graph import keys, walk
from tests.small import feeds, model, plan_of

BODIES = """(bool c, float[2,8] x, float[8,8] w) => (float[2,8] z) {
    h = MatMul(x, w)
    y = If (c) <
        then_branch = a () => (float[2,8] t) { s = Relu(h)  t = MatMul(s, w) },
        else_branch = b () => (float[2,8] t) { s = Sigmoid(h)  t = Add(s, h) }
    >
    z = local.Twice(y)
}"""
TWICE = """<domain: "local", opset_import: ["" : 21]>
Twice (a) => (b) { c = Relu(a)  b = Add(c, a) }"""


def test_a_walk_visits_bodies_and_functions_with_their_scopes():
    work = ir.from_proto(model(BODIES, functions=TWICE))
    keys.name_everything(work)
    seen = [(place.scope, place.node.op_type, place.key) for place in walk.walk(work)]
    assert seen == [
        ("", "MatMul", "h"),
        ("", "If", "y"),
        ("y.then_branch/", "Relu", "y.then_branch/s"),
        ("y.then_branch/", "MatMul", "y.then_branch/t"),
        ("y.else_branch/", "Sigmoid", "y.else_branch/s"),
        ("y.else_branch/", "Add", "y.else_branch/t"),
        ("", "Twice", "z"),
        ("fn:local::Twice/", "Relu", "fn:local::Twice/c"),
        ("fn:local::Twice/", "Add", "fn:local::Twice/b"),
    ]
    assert [scope for scope, _ in walk.graphs(work)] == ["", "y.then_branch/", "y.else_branch/", "fn:local::Twice/"]


LOOPS = """(float[2,8] x, float[8,8] w, int64 w_n, bool w_go) => (float[2,8] z) {
    z = Loop (w_n, w_go, x) <
        body = b (int64 i, bool go, float[2,8] a) => (bool on, float[2,8] m) {
            on = Identity(go)
            q = MatMul(a, w)
            m = If (go) <
                then_branch = t () => (float[2,8] r) { r = Relu(q) },
                else_branch = e () => (float[2,8] r) { r = Sigmoid(q) }
            >
        }
    >
}"""


def test_bodies_within_bodies_nest_their_scopes():
    plan = plan_of(model(LOOPS, w_n=np.int64(2), w_go=np.bool_(True)))
    assert list(plan.ops) == [
        "z", "z.body/on", "z.body/q", "z.body/m", "z.body/m.then_branch/r", "z.body/m.else_branch/r",
    ]  # fmt: skip


def test_keys_are_stable_under_rewriting():
    """The plan's keys are the first outputs of the source, and stand in the metadata of what is written."""
    proto = model(BODIES, functions=TWICE)
    done = fp8graph.optimize(proto, data=[{**feed, "c": np.array(True)} for feed in feeds(proto)])
    work = ir.from_proto(done.model)
    found = {place.key: place.node.op_type for place in walk.walk(work) if place.key}
    assert found == {key: op.op_type.rpartition(":")[2] for key, op in done.plan.ops.items()}
    inserted = [place.node for place in walk.walk(work) if walk.FOR in place.node.metadata_props]
    assert {node.op_type for node in inserted} == {"QuantizeLinear", "DequantizeLinear"}
    assert {node.metadata_props[walk.FOR] for node in inserted} <= set(done.plan.ops)


def test_names_are_made_unique_and_others_stay():
    text = """(float[2,8] x) => (float[2,8] y) {
        [dense] a = Relu(x)
        [dense] b = Relu(a)
        c = Relu(b)
        [last] y = Relu(c)
    }"""
    work = ir.from_proto(model(text))
    keys.name_everything(work)
    names = [node.name for node in work.graph]
    assert names[0] == "dense" and names[3] == "last" and len(set(names)) == 4 and all(names)


def test_nodes_without_a_named_output_get_one():
    work = ir.from_proto(model("(float[2,8] x) => (float[2,8] y) { y = Relu(x) }"))
    for _ in range(2):
        stray = ir.node("Relu", [work.graph.inputs[0]], num_outputs=2)
        work.graph.append(stray)
        for output in stray.outputs:
            output.name = None
    keys.name_everything(work)
    assert [walk.first_output(node) for node in work.graph] == ["y", "Relu_out", "Relu_out_1"]
    assert [len([o for o in node.outputs if o.name]) for node in work.graph] == [1, 1, 1]


COLLIDING = """(bool c, float[2,8] x) => (float[2,8] z) {
    [one] h = Relu(x)
    y = If (c) <
        then_branch = a () => (float[2,8] t) { t = Relu(h) },
        else_branch = b () => (float[2,8] t) { t = Sigmoid(h) }
    >
    z = Add(y, h)
}"""


def test_keys_are_unique_even_where_names_look_like_scopes():
    proto = model(COLLIDING)
    for node in proto.graph.node:  # the main graph calls a value what a body's op would be called
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == "h":
                    names[index] = "y.then_branch/t"
        for attribute in node.attribute:
            for inner in attribute.g.node:
                inner.input[:] = ["y.then_branch/t" if name == "h" else name for name in inner.input]
    plan = plan_of(proto, allow_unquantized=True)
    assert len(plan.ops) == 5, list(plan.ops)


def test_keys_that_a_model_brings_along_do_not_hide_an_op():
    """Metadata of a foreign or damaged file: one key on two nodes."""
    proto = model("(float[2,8] x, float[8,8] w) => (float[2,8] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }")
    for node in proto.graph.node:
        node.metadata_props.add(key=walk.KEY, value="a")
    plan = plan_of(proto)
    assert [op.op_type for op in plan.ops.values()] == ["MatMul", "Relu", "MatMul"]


def test_what_an_earlier_optimization_inserted_is_an_op_of_its_own():
    proto = model(
        "(float[2,8] x, float[8,8] w, float[8,8] w_b) => (float[2,8] y) { a = MatMul(x, w) y = MatMul(a, w_b) }"
    )
    once = fp8graph.optimize(
        proto, high_precision_dtype="fp16", nodes_to_exclude=["*"], allow_unquantized=True, compare=False
    ).model
    types = [node.op_type for node in once.graph.node]
    assert "Cast" in types
    plan = plan_of(once)
    assert [op.op_type for op in plan.ops.values()] == types
    assert [op.op_type for _, op in plan.quantized()] == ["MatMul", "MatMul"]


CHAIN = "(float[2,8] x, float[8,8] w, float[8] w_b) => (float[2,8] y) { a = MatMul(x, w) y = Add(a, w_b) }"


def digest(proto: onnx.ModelProto) -> str:
    return plan_of(proto).structure


def test_the_structure_digest_leaves_weights_out():
    assert digest(model(CHAIN)) == digest(model(CHAIN, seed=5)) == digest(model(CHAIN, w=np.ones((8, 8))))


CHANGES: dict[str, Callable[[onnx.ModelProto], object]] = {
    "an op type": lambda p: setattr(p.graph.node[1], "op_type", "Sub"),
    "an op more": lambda p: p.graph.node.insert(1, onnx.helper.make_node("Relu", ["x"], ["unused"])),
    "wiring": lambda p: p.graph.node[1].input.__setitem__(slice(None), ["w_b", "a"]),
    "an input's shape": lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 4),
    "a name": lambda p: (p.graph.node[0].output.__setitem__(0, "b"), p.graph.node[1].input.__setitem__(0, "b")),
    "an attribute": lambda p: p.graph.node.append(onnx.helper.make_node("LeakyRelu", ["y"], ["z"], alpha=0.5)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_structure_digest_tells_structures_apart(change):
    proto = model(CHAIN)
    CHANGES[change](proto)
    assert digest(proto) != digest(model(CHAIN))


def test_an_attributes_value_and_a_shape_constant_are_structure():
    leaky = "(float[2,8] x, float[8,8] w) => (float[2,8] y) { a = MatMul(x, w) y = LeakyRelu <alpha = 0.%d> (a) }"
    assert digest(model(leaky % 1)) != digest(model(leaky % 2))
    text = "(float[2,8] x, float[8,8] w, int64[2] w_s) => (float[a,b] y) { m = MatMul(x, w) y = Reshape(m, w_s) }"
    shapes = [model(text, w_s=np.array(shape)) for shape in ([2, 8], [16, 1])]
    assert digest(shapes[0]) != digest(shapes[1])


def test_the_structure_digest_is_that_of_every_process():
    """Attributes are spelt by value: nothing that differs from run to run, such as an address, goes in."""
    proto = model(
        "(float[2,8] x, float[8,8] w) => (float[2,8] y) { a = MatMul(x, w) y = local.Odd(a) }",
        functions="""
        <domain: "local", opset_import: ["" : 21]> Odd (a) => (b) { b = Identity(a) }""",
    )
    tensor = onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32), "t")
    proto.graph.node[1].attribute.append(onnx.helper.make_attribute("tensors", [tensor, tensor]))
    proto.graph.node[1].attribute.append(onnx.helper.make_attribute("kind", onnx.helper.make_tensor_type_proto(1, [2])))
    first = keys.structure_digest(ir.from_proto(proto))
    assert first == keys.structure_digest(ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString())))
    text = str([keys._attribute(a) for a in list(ir.from_proto(proto).graph)[1].attributes.values()])
    assert " at 0x" not in text
