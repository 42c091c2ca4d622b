"""What parses and is no model all the same: found by the fuzz tests, told in words since."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph import InputError
from fp8graph.numerics.ranges import Ranges, Stat
from fp8graph.testing.models import from_text
from tests.small import feeds, refused

TEXT = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
m (float[2,16] x, bool which, float[16,16] w_0) => (float[2,16] y) {
  h = Gemm <transB = 1> (x, w_0) r = local.Act(h)
  [choose] y = If (which) <
    then_branch = a () => (float[2,16] a_out) { a_out = Neg(r) },
    else_branch = b () => (float[2,16] b_out) { b_out = Relu(r) }>
}
<domain: "local", opset_import: ["" : 21]> Act (a) => (b) { b = LeakyRelu <alpha = 0.5> (a) }"""


def body(proto: onnx.ModelProto) -> onnx.GraphProto:
    return proto.graph.node[2].attribute[0].g


def returns_outer(proto: onnx.ModelProto) -> None:
    body(proto).output[0].name = "r"


def transposes_by_float(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute[0].CopyFrom(onnx.helper.make_attribute("transB", 1.0))


CASES: list[tuple[str, Callable[[onnx.ModelProto], object], tuple[str, ...]]] = [
    ("an attribute of another type", transposes_by_float, ("'h' (Gemm)", "'transB' is of type FLOAT, INT is wanted")),
    (
        "an attribute of another type in a function",
        lambda p: p.functions[0].node[0].attribute[0].CopyFrom(onnx.helper.make_attribute("alpha", 1)),
        ("function 'local::Act'", "'alpha' is of type INT"),
    ),
    ("a node without an operator", lambda p: p.graph.node[0].ClearField("op_type"), ("'h' ()", "no operator")),
    ("an initialiser without a name", lambda p: p.graph.initializer.add(data_type=1, float_data=[1]), ("has no name",)),
    ("a body that returns a value from around it", returns_outer, ("'r'", "an Identity is missing")),
    (
        "a function that reads what is not there",
        lambda p: p.functions[0].node[0].input.__setitem__(0, "ghost"),
        ("function 'local::Act'", "reads 'ghost'"),
    ),
    (
        "a function of an opset to come",
        lambda p: setattr(p.functions[0].opset_import[0], "version", 2**40),
        ("opset 1099511627776 is not known",),
    ),
]


@pytest.mark.parametrize(("change", "says"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_what_no_runtime_takes_is_refused_at_the_door(change, says):
    proto = from_text(TEXT)
    given = feeds(proto)
    change(proto)
    with refused(InputError, "FG106", *says):
        fp8graph.optimize(proto, data=given)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    """protobuf reads it, hands it over as bytes, and refuses to write it."""
    proto = from_text(TEXT)
    proto.graph.node[2].name = "chooser"
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString().replace(b"chooser", b"choo\xf3er"))
    with refused(InputError, "FG106", "the name", "no UTF-8 text"):
        fp8graph.optimize(path, data=feeds(from_text(TEXT)))


def test_a_range_near_the_end_of_float32_gives_a_finite_scale():
    """Headroom for captured values must not carry it to infinity."""
    proto = from_text(TEXT)
    proto.graph.node[2].attribute[0].g.node[0].CopyFrom(onnx.helper.make_node("MatMul", ["r", "w_0"], ["a_out"]))
    huge = Stat.of(np.array([0, 3.4e38], np.float32))
    names = ["x", "h", "r", "y", "y.then_branch/a_out"]
    done = fp8graph.optimize(proto, ranges=Ranges("", "by hand", 1, {}, dict.fromkeys(names, huge)))
    scales = [quant.scale.value for quant in done.plan.quants() if quant.scale.origin == "observed"]
    assert len(scales) == 2 and all(scale is not None and np.isfinite(scale) for scale in scales)


def test_ranges_without_a_shape_leave_the_plan_without_one():
    proto = from_text(TEXT)
    seen = Ranges("", "by hand", 1, {"x": {}}, {"x": Stat.of(np.ones(3, np.float32))})
    assert fp8graph.optimize(proto, ranges=seen).plan.shapes == {}
