"""Every rule of `check` on a small graph that breaks it, and on neighbours that do not. Measured forms, all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fp8graph
from tests.small import model


def swap(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


GOOD = """(float[2,32] x, float w_s, float8e4m3fn[32,16] w, float w_t, float8e4m3fn w_z, float[16] w_b)
        => (float[2,16] y) {
    q = QuantizeLinear <output_dtype = 17> (x, w_s)
    d = DequantizeLinear (q, w_s)
    u = DequantizeLinear (w, w_t)
    y = MatMul(d, u)
}"""
NUMBERS = {"w_s": 0.5, "w_t": 0.5, "w_z": 0.0}
HALF = GOOD.replace("float[2,32] x, float w_s", "float16[2,32] x, float16 w_s").replace("float w_t", "float16 w_t")
HALF = HALF.replace("(float[2,16] y)", "(float16[2,16] y)")
CHANNELS = GOOD.replace("float w_t", "float[16] w_t").replace("DequantizeLinear (w", "DequantizeLinear <axis = 1> (w")
NORM = swap(
    GOOD,
    ("y = MatMul(d, u)", "y = MatMul(d, u) z = LayerNormalization(e, w_n)"),
    ("float[16] w_b", "float[32] w_n"),
    ("d = Deq", "p = QuantizeLinear <output_dtype = 17> (x, w_t) e0 = DequantizeLinear (p, w_t) e = Relu(e0) d = Deq"),
    ("float[2,16] y)", "float[2,16] y, float[2,32] z)"),
)
TRANSPOSED = "(bfloat16[1,4,8,8] x, bfloat16[4,4,2,2] w) => (bfloat16[1,4,9,9] y) { y = ConvTranspose(x, w) }"
CAST = """(float[2,32] x, float[32,16] w) => (float[2,16] y) {
    c = Cast <to = 17> (x) d = Cast <to = 1> (c) y = MatMul(d, w) }"""


# what it is, the model, its numbers, the worst finding
ROWS: list[tuple[str, str, dict[str, Any], tuple[str, str, str] | None]] = [
    ("nothing is wrong", GOOD, {}, None),
    ("nothing is wrong in fp16", HALF, {}, None),
    ("NaN in a weight", GOOD, {"w": np.full((32, 16), np.nan)}, ("FG326", "warning", "u")),
    (
        "Q and DQ differ",
        swap(GOOD, ("DequantizeLinear (q, w_s)", "DequantizeLinear (q, w_t)")),
        {"w_t": 0.25},
        ("FG324", "info", "d"),
    ),
    ("a scale too small for fp16", HALF, {"w_s": 1e-6, "w_t": 1}, ("FG325", "info", "q")),
    (
        "a zero point that is computed",
        swap(GOOD, ("w_z", "z"), ("DequantizeLinear (q, w_s)", "DequantizeLinear (q, w_s, z)")),
        {},
        ("FG309", "warning", "d"),
    ),
    (
        "a zero point of another type",
        swap(GOOD, ("float8e4m3fn w_z", "int8 w_z"), ("DequantizeLinear (w, w_t)", "DequantizeLinear (w, w_t, w_z)")),
        {},
        ("FG334", "warning", "u"),
    ),
    ("a Q that says no type", swap(GOOD, (" <output_dtype = 17>", "")), {}, ("FG333", "error", "y")),
    (
        "too few scales",
        swap(CHANNELS, ("float[16] w_t", "float[8] w_t")),
        {"w_t": np.full(8, 0.5)},
        ("FG335", "error", "u"),
    ),
    (
        "an axis that is not there",
        swap(CHANNELS, ("axis = 1", "axis = 2")),
        {"w_t": np.full(16, 0.5)},
        ("FG335", "error", "u"),
    ),
    (
        "blocks that do not divide",
        swap(GOOD, ("float w_t", "float[3,16] w_t"), ("(w, w_t)", "<axis = 0, block_size = 11> (w, w_t)")),
        {"w_t": np.full((3, 16), 0.5)},
        ("FG335", "error", "u"),
    ),
    (
        "bf16 scale of an fp16 tensor",
        swap(HALF, ("float16 w_s", "bfloat16 w_s"), ("(q, w_s)", "(q, w_t)")),
        {},
        ("FG329", "error", "q"),
    ),
    ("operands of two types", swap(HALF, ("float16 w_t", "float w_t")), {}, ("FG329", "error", "y")),
    ("a bias of another type", swap(HALF, ("MatMul(d, u)", "Gemm(d, u, w_b)")), {}, ("FG329", "error", "y")),
    (
        "FP8 into Relu",
        swap(GOOD, ("DequantizeLinear (q,", "DequantizeLinear (r,"), ("d = ", "r = Relu(q) d = ")),
        {},
        ("FG317", "error", "r"),
    ),
    (
        "FP8 through Reshape",
        swap(GOOD, ("DequantizeLinear (q,", "DequantizeLinear (r,"), ("d = ", "i = Shape(x) r = Reshape(q, i) d = ")),
        {},
        None,
    ),
    (
        "a stored weight through Transpose",
        swap(GOOD, ("(w, w_t)", "(v, w_t)"), ("u = ", "v = Transpose(w) u = "), ("8e4m3fn[32,16]", "8e4m3fn[16,32]")),
        {},
        ("FG317", "error", "v"),
    ),
    ("a Cast to FP8", CAST, {}, ("FG318", "error", "c")),
    ("a pair before a norm", NORM, {"w_t": 0.25}, ("FG323", "warning", "e0")),
    (
        "an operator on integers",
        "(uint8[2,4] a, uint8[4,2] b) => (int32[2,2] y) { y = MatMulInteger(a, b) }",
        {},
        ("FG328", "error", "y"),
    ),
    ("an operator that is not imported", "(float[4,4] x) => (float y) { y = Det(x) }", {}, ("FG328", "error", "y")),
    ("ConvTranspose in bf16", TRANSPOSED, {}, ("FG336", "error", "y")),
]


@pytest.mark.parametrize(("text", "numbers", "worst"), [pytest.param(*row[1:], id=row[0]) for row in ROWS])
def test_what_is_broken_is_found_and_its_neighbour_is_not(text, numbers, worst):
    given = {name: value for name, value in NUMBERS.items() if f" {name}" in text}
    shaped = {name: np.full(16, value) if f"[16] {name}" in text else value for name, value in given.items()}
    found = fp8graph.check(model(text, **{name: np.asarray(value) for name, value in (shaped | numbers).items()}))
    order = ("error", "warning", "info")
    first = min(found, key=lambda item: order.index(item.severity), default=None)
    assert ((first.code, first.severity, first.op) if first is not None else None) == worst, found
    assert all(item.do for item in found), found


PAIR = "{0}q = QuantizeLinear <output_dtype = 17> ({0}, {1}) {0}p = DequantizeLinear ({0}q, {1})"
SDPA = """({t}[{b},{h},{s},{d}] q, {t}[{b},{h},{s},{d}] v, {t} w_s, {t} w_p, {t} w_0) => ({t}[{b},{h},{s},{d}] y) {{
    k = Transpose <perm = [0, 1, 3, 2]> (v)
    {pairs}
    a = MatMul(qp, kp) {scored}
    p = Softmax <axis = -1> ({scores})
    {guarded}
    {after}
    y = MatMul({probability}, vp)
}}"""


def attention(t="float16", s=64, d=16, b=1, h=2, softmax=True, guard=False, scored=False) -> str:
    """Attention with Q/DQ on Q, K, V, and on what comes of Softmax."""
    pairs = " ".join(PAIR.format(name, "w_s") for name in ("q", "k", "v"))
    last = "g" if guard else "p"
    after = PAIR.format(last, "w_p") if softmax else ""
    return SDPA.format(
        **{"t": t, "s": s, "d": d, "b": b, "h": h, "pairs": pairs, "after": after},
        scored=PAIR.format("a", "w_s") if scored else "",
        scores="ap" if scored else "a",
        guarded="n = IsNaN(p) g = Where(n, w_0, p)" if guard else "",
        probability=f"{last}p" if softmax else last,
    )


@pytest.mark.parametrize(
    ("text", "worst"),
    [
        (attention(), None),
        (attention(s=16), ("FG319", "warning")),
        (attention(guard=True), ("FG319", "warning")),
        (attention(softmax=False), ("FG305", "warning")),
        (attention(scored=True), ("FG319", "warning")),
        (attention(s=1), ("FG338", "info")),
        (attention("float"), ("FG319", "info")),
    ],
)
def test_attention_that_loses_its_kernel_is_told(text, worst):
    found = fp8graph.check(model(text, w_s=np.asarray(0.5), w_p=np.asarray(1 / 448), w_0=np.asarray(0.0)))
    order = ("error", "warning", "info")
    codes = sorted({(item.code, item.severity) for item in found}, key=lambda item: order.index(item[1]))
    assert (worst in codes) if worst else not codes, codes
    assert not worst or codes[0][1] == worst[1], codes


OPERATOR = """({t}[{b},2,64,{d}] q, {t}[{b},2,64,{d}] k, {t}[{b},2,64,{d}] v) => ({t}[{b},2,64,{d}] y) {{
    y = Attention {a} (q, k, v) }}"""


@pytest.mark.parametrize(
    ("t", "d", "a", "found"),
    [
        ("float16", 16, "", []),
        ("float", 16, "", ["FG327"]),
        ("float", 16, "<TRT_decomposable = 1>", []),
        ("float16", 257, "", ["FG327"]),
        ("float16", 16, "<softcap = 5.0>", ["FG327"]),
    ],
)
def test_the_operator_attention_has_to_be_one_kernel(t, d, a, found):
    text = OPERATOR.format(t=t, b=1, d=d, a=a)
    assert [item.code for item in fp8graph.check(model(text, opset=23))] == found


def test_names_that_two_products_share_are_told_and_others_are_not():
    proto = model("(float[2,4] x, float[4,4] w) => (float[2,4] y) { a = MatMul(x, w) b = MatMul(a, w) y = Relu(b) }")
    for node in proto.graph.node:
        node.name = "n"
    assert [item.code for item in fp8graph.check(proto)] == ["FG322", "FG322"]


def test_a_function_that_is_called_twice_must_not_name_its_nodes():
    functions = """<domain: "local", opset_import: ["" : 21]> twice (x) => (y) { [named] y = Relu(x) }"""
    text = "(float[2,4] x) => (float[2,4] y) { a = local.twice (x) y = local.twice (a) }"
    assert [item.code for item in fp8graph.check(model(text, functions=functions))] == ["FG340"]
    assert fp8graph.check(model(text.replace("local.twice (a)", "Neg(a)"), functions=functions)) == ()


def test_open_shapes_are_told_where_no_plan_gives_them():
    text = GOOD.replace("float[2,32] x", "float[N,32] x").replace("float[2,16] y", "float[N,16] y")
    assert [item.code for item in fp8graph.check(model(text, **NUMBERS))] == ["FG339"]


def test_a_weight_alone_is_meant_where_no_activation_is_quantized():
    text = swap(GOOD, ("MatMul(d, u)", "MatMul(x, u)"), ("    q = QuantizeLinear <output_dtype = 17> (x, w_s)\n", ""))
    text = text.replace("    d = DequantizeLinear (q, w_s)\n", "")
    assert [(item.code, item.severity) for item in fp8graph.check(model(text, **NUMBERS))] == [("FG305", "info")]


def test_other_tools_operators_are_told_by_their_domain():
    proto = model(GOOD.replace("MatMul(d, u)", "FusedMatMul(d, u)"), **NUMBERS)
    proto.graph.node[-1].domain = "com.microsoft"
    proto.opset_import.add(domain="com.microsoft", version=1)
    assert ("FG328", "error") in [(item.code, item.severity) for item in fp8graph.check(proto)]
    proto.graph.node[-1].domain = "acme"
    proto.opset_import.add(domain="acme", version=1)
    assert ("FG328", "warning") in [(item.code, item.severity) for item in fp8graph.check(proto)]
    assert "FG328" not in [item.code for item in fp8graph.check(proto, target="onnxruntime")]


def test_of_an_attention_that_is_quantized_in_part_the_whole_is_told():
    found = fp8graph.check(model(attention(softmax=False), w_s=np.asarray(0.5), w_p=np.asarray(1 / 448)))
    said = {item.op: item for item in found if item.code == "FG319"}
    assert set(said) == {"y"} and "only 'a' runs in FP8" in said["y"].text


PACKED = """(float16[2,32,16] x, float w_s, float{t} w_t, {stored} w, int64[5] w_i, float16[48] w_b)
        => (float16[3,2,2,32,8] z) {{
    q = QuantizeLinear <output_dtype = 17> (x, w_s) dd = DequantizeLinear (q, w_s) d = Cast <to = 10> (dd)
    {weight} u = Cast <to = 10> (v)
    m = MatMul (d, u) a = Add (m, w_b)
    r = Reshape (a, w_i) t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
    f, g, h = Split <axis = 0, num_outputs = 3> (t)
    z = Concat <axis = 0> (h, g, f)
}}"""
STORED = "v = DequantizeLinear <axis = 1> (w, w_t)"
IN_THE_GRAPH = "w_q = QuantizeLinear <axis = 1, output_dtype = 17> (w, w_t) v = DequantizeLinear <axis = 1> (w_q, w_t)"


@pytest.mark.parametrize(
    ("t", "stored", "weight", "codes"),
    [
        ("[48]", "float8e4m3fn[16,48]", STORED, ["FG315"]),
        ("", "float8e4m3fn[16,48]", STORED.replace("<axis = 1> ", ""), []),
        ("[48]", "float[16,48]", IN_THE_GRAPH, []),
    ],
)
def test_a_packed_product_wants_one_scale_for_a_stored_weight(t, stored, weight, codes):
    text = PACKED.format(t=t, stored=stored, weight=weight)
    scale = np.full(48, 0.5) if t else np.asarray(0.5)
    proto = model(text, w_s=np.asarray(0.5), w_t=scale, w_i=np.array([2, 32, 3, 2, 8]))
    assert [item.code for item in fp8graph.check(proto)] == codes


# Reduced from what they write: ONNX Runtime 1.31.1 (quantize_static), ModelOpt 0.47.0 (fp8), NNCF 3.4.0 (FP8_E4M3).
RUNTIME = """(float[1,8,6,6] x, float w_s, float8e4m3fn w_z, float8e4m3fn[8,8,3,3] w, float[8] w_b)
        => (float[1,8,6,6] y) {
    q = QuantizeLinear (x, w_s, w_z) d = DequantizeLinear (q, w_s, w_z) u = DequantizeLinear (w, w_s, w_z)
    c = Conv <pads = [1, 1, 1, 1]> (d, u, w_b)
    p = QuantizeLinear (c, w_s, w_z) e = DequantizeLinear (p, w_s, w_z)
    a = Add (e, d) y = Relu (a)
}"""
MODELOPT = """(float16[2,8] x, float16 w_s, float8e4m3fn w_z, float16[8,4] w, float16[4] w_t, float8e4m3fn[4] w_y)
        => (float16[2,4] y) {
    q = QuantizeLinear (x, w_s, w_z) d = DequantizeLinear (q, w_s, w_z)
    v = QuantizeLinear <axis = 1> (w, w_t, w_y) u = DequantizeLinear <axis = 1> (v, w_t, w_y) y = MatMul (d, u)
}"""
NNCF = """(float16[2,8] x, float8e4m3fn[8,4] w, float[4] w_t, float8e4m3fn[4] w_y) => (float16[2,4] y) {
    u = DequantizeLinear <axis = -1> (w, w_t, w_y) y = MatMul (x, u)
}"""


@pytest.mark.parametrize(
    ("text", "codes"),
    [(RUNTIME, ["FG323"]), (MODELOPT, []), (NNCF, ["FG329", "FG305"])],
    ids=["ort", "modelopt", "nncf"],
)
def test_what_other_tools_write_is_read(text, codes):
    numbers = {"w_s": 0.5, "w_t": np.full(4, 0.5), "w_z": 0.0, "w_y": np.zeros(4)}
    given = {name: np.asarray(value) for name, value in numbers.items() if f" {name}" in text}
    assert [item.code for item in fp8graph.check(model(text, **given))] == codes
