"""What becomes of a product in an engine, foretold from the graph: forms that were measured on tensorrt_rtx 1.7.1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fp8graph.core.forecast import forecast
from fp8graph.data import target as targets
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types
from tests.small import model

MM = """(float16[{m},{k}] x, float w_s, float{t} w_t, float8e4m3fn{w} w, int64[2] w_i, float16 w_n, float16[8] w_v)
        => (float16{y} y) {{
    q = QuantizeLinear <output_dtype = 17> (x, w_s)
    dd = DequantizeLinear(q, w_s)
    d = Cast <to = 10> (dd)
    {act}
    uu = DequantizeLinear <axis = {axis}> (w, w_t)
    u = Cast <to = 10> (uu)
    {weight}
    y = {op}({a}, {b})
}}"""


def mm(act: str = "", weight: str = "", op: str = "MatMul", **given: Any) -> str:
    """`y = op(a, b)` of x[4,8] behind Q/DQ and a stored weight [8,16] behind DQ, with moves in between."""
    said = {"m": 4, "k": 8, "t": "", "w": "[8,16]", "axis": 1, "a": "e" if act else "d", "b": "v" if weight else "u"}
    return MM.format(act=act, weight=weight, op=op, **(said | {"y": "[n,p]"} | given))


def conv(
    act: str = "", a: str = "d", w: str = "[8,4,3,3]", t: str = "", axis: int = 0, s: str = "", op: str = "Conv"
) -> str:
    """`y = op(a, w)` of x[1,4,9,9] behind Q/DQ and a stored weight behind DQ."""
    return f"""(float16[1,4,9,9] x, float{s} w_s, float{t} w_t, float8e4m3fn{w} w, int64[8] w_p)
        => (float16[n,m,h,i] y) {{
        q = QuantizeLinear <output_dtype = 17> (x, w_s) dd = DequantizeLinear(q, w_s) d = Cast <to = 10> (dd)
        {act}
        uu = DequantizeLinear <axis = {axis}> (w, w_t) u = Cast <to = 10> (uu)
        y = {op}({a}, u)
    }}"""


PADS = [0, 0, 1, 1, 0, 0, 1, 1]
BARE = mm(weight="v = Transpose(w_x)").replace("int64[2] w_i", "int64[2] w_i, float16[16,8] w_x")
ROWS = mm().replace("float w_s", "float[4] w_s").replace("Linear(q", "Linear <axis = 0> (q")
ROWS = ROWS.replace("<output_dtype = 17> (x", "<output_dtype = 17, axis = 0> (x")
BLOCKS = mm(t="[2,16]", axis=0).replace("<axis = 0> (w,", "<axis = 0, block_size = 4> (w,")
ONE_BLOCK = mm(t="[1,16]", axis=0).replace("<axis = 0> (w,", "<axis = 0, block_size = 8> (w,")
COMPUTED = mm().replace("float w_s", "float s").replace("w_s", "s")
E5M2 = mm().replace("output_dtype = 17", "output_dtype = 19").replace("float8e4m3fn", "float8e5m2")
DEAD = "(float[2,8] x, float[8,4] w) => (float[2,8] z) { y = MatMul(x, w) z = Relu(x) }"
EINSUM = 'Einsum <equation = "{}">'

# what it is, the model, its numbers, verdict and code
TABLE: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("plain", mm(), {}, "fp8", ""),
    ("weight per channel", mm(t="[16]"), {}, "fp8", ""),
    ("weight per channel, axis from the end", mm(t="[16]", axis=-1), {}, "fp8", ""),
    ("weight per row of the sum", mm(t="[8]", axis=0), {}, "fell-back", "FG308"),
    ("transposed", mm(weight="v = Transpose(u)", w="[16,8]"), {}, "fp8", ""),
    ("transposed, per channel", mm(weight="v = Transpose(u)", w="[16,8]", t="[16]", axis=0), {}, "fp8", ""),
    ("transposed, per row of the sum", mm(weight="v = Transpose(u)", w="[16,8]", t="[8]"), {}, "fell-back", "FG308"),
    (
        "reshaped, the channels whole",
        mm(weight="v = Reshape(u, w_i)", w="[2,4,16]", t="[16]", axis=2),
        {"w_i": [8, 16]},
        "fp8",
        "",
    ),
    (
        "reshaped, the channels split",
        mm(weight="v = Reshape(u, w_i)", w="[4,32]", t="[32]"),
        {"w_i": [8, 16]},
        "fell-back",
        "FG308",
    ),
    ("times a number", mm(weight="v = Mul(w_n, u)"), {}, "fp8", ""),
    ("times a vector", mm("e = Mul(d, w_v)"), {}, "fell-back", "FG306"),
    ("times a tensor", mm("e = Mul(d, x)"), {}, "fell-back", "FG306"),
    ("negated", mm("e = Neg(d)"), {}, "fp8", ""),
    ("behind Relu", mm("e = Relu(d)"), {}, "fell-back", "FG306"),
    ("behind Softmax", mm("e = Softmax(d)"), {}, "fell-back", "FG306"),
    ("joined with itself", mm("e = Concat <axis = 0> (d, d)"), {}, "fp8", ""),
    ("joined with what is not quantized", mm("e = Concat <axis = 0> (d, x)"), {}, "fell-back", "FG306"),
    ("weights joined behind DQ", mm(weight="v = Concat <axis = 1> (u, u)"), {}, "refused", "FG335"),
    ("one side bare", mm(a="x"), {}, "storage", "FG305"),
    ("the weight bare", BARE, {}, "fell-back", "FG305"),
    ("Cast up", mm("e0 = Cast <to = 1> (d) e = Cast <to = 10> (e0)"), {}, "fell-back", "FG312"),
    ("a row each", ROWS, {}, "fp8", ""),
    ("Gemm", mm(op="Gemm", t="[16]"), {}, "fp8", ""),
    ("Gemm, transposed", mm(op="Gemm <transB = 1>", w="[16,8]", t="[16]", axis=0), {}, "fp8", ""),
    ("Gemm, transposed, per row of the sum", mm(op="Gemm <transB = 1>", w="[16,8]", t="[8]"), {}, "fell-back", "FG308"),
    ("Einsum", mm(op=EINSUM.format("mk,kn->mn"), t="[16]"), {}, "fp8", ""),
    ("Einsum over experts", mm(op=EINSUM.format("td,emd->tem"), w="[2,16,8]", y="[n,p,r]"), {}, "fp8", ""),
    (
        "Einsum over experts, per output",
        mm(op=EINSUM.format("td,emd->tem"), w="[2,16,8]", t="[16]", y="[n,p,r]"),
        {},
        "fell-back",
        "FG308",
    ),
    ("scales in blocks", BLOCKS, {}, "fp8", "FG316"),
    ("one block is a vector", ONE_BLOCK, {}, "fp8", ""),
    ("a computed scale", COMPUTED, {}, "fell-back", "FG307"),
    ("E5M2", E5M2, {}, "refused", "FG330"),
    ("INT8 weights", mm().replace("float8e4m3fn", "int8"), {"w": 1}, "refused", "FG333"),
    ("no Q/DQ", "(float[2,8] x, float[8,4] w) => (float[2,4] y) { y = MatMul(x, w) }", {}, "none", ""),
    ("nobody reads it", DEAD, {}, "absent", ""),
    ("Conv", conv(), {}, "fp8", ""),
    ("Conv, per channel", conv(t="[8]"), {}, "fp8", ""),
    ("Conv, per input channel", conv(t="[4]", axis=1), {}, "fell-back", "FG308"),
    ("Conv, the activation per channel", conv(s="[4]"), {}, "fell-back", "FG307"),
    ("Conv, a list of one on the activation", conv(s="[1]"), {}, "fell-back", "FG307"),
    ("Conv, a list of one on the weight", conv(t="[1]").replace("<axis = 0> (w", "(w"), {}, "refused", "FG307"),
    ("Conv, 32 elements", conv(w="[8,4,4,8]"), {}, "fp8", ""),
    ("Conv, 33 elements", conv(w="[8,4,3,11]"), {}, "fell-back", "FG313"),
    ("Conv behind a Pad with zeros", conv("e = Pad(d, w_p)", "e"), {"w_p": PADS}, "fp8", ""),
    (
        "Conv behind a Pad of channels",
        conv("e = Pad(d, w_p)", "e", w="[8,6,3,3]"),
        {"w_p": [0, 1, 0, 0, 0, 1, 0, 0]},
        "fell-back",
        "FG306",
    ),
    ("Conv behind MaxPool", conv("e = MaxPool <kernel_shape = [2, 2]> (d)", "e"), {}, "fell-back", "FG306"),
    ("ConvTranspose", conv(w="[4,8,3,3]", op="ConvTranspose"), {}, "fell-back", "FG313"),
    ("depthwise", conv(w="[4,1,3,3]", op="Conv <group = 4>"), {}, "fp8", "FG314"),
]


def said(text: str, numbers: dict[str, Any], target: str = "tensorrt-rtx:sm89") -> tuple[str, str]:
    proto = model(text, **{name: np.asarray(value) for name, value in numbers.items()})
    source = load(proto)
    infer_types(source.model)
    found = forecast(source.model, targets.load(target))
    (item,) = (item for node, item in found.items() if node.outputs[0].name == "y")
    return item.verdict, item.code


@pytest.mark.parametrize(("text", "numbers", "verdict", "code"), [pytest.param(*row[1:], id=row[0]) for row in TABLE])
def test_the_forecast_is_what_engines_do(text, numbers, verdict, code):
    scales = {name: 0.5 for name in ("w_s", "w_t") if f" {name}" in text}
    shaped = {name: np.full(_shape(text, name), value) for name, value in scales.items()}
    assert said(text, shaped | numbers) == (verdict, code)


def _shape(text: str, name: str) -> tuple[int, ...]:
    before = text.partition(f" {name}")[0].rpartition("float")[2]
    return tuple(int(size) for size in before.strip("[]").split(",") if size)


def test_a_depthwise_7x7_is_a_matter_of_the_chip():
    text = conv(w="[4,1,7,7]", op="Conv <group = 4>")
    assert said(text, {"w_s": 0.5, "w_t": 0.5}, "tensorrt-rtx:sm89")[0] == "fell-back"
    assert said(text, {"w_s": 0.5, "w_t": 0.5}, "tensorrt-rtx:sm120")[0] == "fp8"
    assert said(text, {"w_s": 0.5, "w_t": 0.5}, "tensorrt-rtx:sm89+sm120")[0] == "fell-back"


def test_a_runtime_that_computes_each_op_alone_keeps_whatever_is_quantized():
    assert said(conv(w="[8,4,3,11]"), {"w_s": 0.5, "w_t": 0.5}, "onnxruntime") == ("fp8", "")


BRANCH = """(bool c, float[4,8] x, float w_s, float w_t, float8e4m3fn[8,16] w, float[8,16] w_h) => (float[4,16] z) {{
    r = Relu(x)
    {around}
    z = If (c) <then_branch = t () => (float[4,16] y) {{ {inside} u = DequantizeLinear(w, w_t) y = MatMul(d, u) }},
                else_branch = e () => (float[4,16] o) {{ o = MatMul(r, w_h) }}>
}}"""
PAIR = "q{0} = QuantizeLinear <output_dtype = 17> (r, {1}) {2} = DequantizeLinear (q{0}, {1})"


@pytest.mark.parametrize(
    ("around", "inside", "verdict"),
    [
        ("", PAIR.format("", "w_s", "d"), "fp8"),
        (PAIR.format("", "w_s", "d"), "", "fell-back"),
        (PAIR.format("1", "w_s", "d1") + " w1 = Relu(d1)", PAIR.format("", "w_s", "d"), "fell-back"),
        (PAIR.format("1", "w_t", "d1") + " w1 = Relu(d1)", PAIR.format("", "w_s", "d"), "fp8"),
    ],
)
def test_a_branch_runs_in_fp8_what_is_quantized_in_it_alone(around, inside, verdict):
    text = BRANCH.format(around=around, inside=inside)
    assert said(text, {"w_s": 0.5, "w_t": 0.25})[0] == verdict


def test_a_function_is_followed_to_what_its_calls_give():
    functions = """<domain: "local", opset_import: ["" : 21]>
        pair (x, s) => (y) { q = QuantizeLinear <output_dtype = 17> (x, s) y = DequantizeLinear (q, s) }"""
    text = """(float[4,8] x, float w_s, float8e4m3fn[8,16] w) => (float[4,16] y) {
        d = local.pair (x, w_s) u = DequantizeLinear (w, w_s) y = MatMul(d, u) }"""
    source = load(model(text, functions=functions, w_s=np.asarray(0.5)))
    infer_types(source.model)
    assert [item.verdict for item in forecast(source.model, targets.load("tensorrt-rtx")).values()] == ["fp8"]


@pytest.mark.parametrize("domain", ["com.microsoft", "trt"])
def test_pairs_of_other_domains_are_read_alike(domain):
    proto = model(mm(), w_s=np.asarray(0.5), w_t=np.asarray(0.5))
    for node in proto.graph.node:
        node.domain = domain if "Linear" in node.op_type else ""
    proto.opset_import.add(domain=domain, version=1)
    source = load(proto)
    infer_types(source.model)
    assert [item.verdict for item in forecast(source.model, targets.load("tensorrt-rtx")).values()] == ["fp8"]
