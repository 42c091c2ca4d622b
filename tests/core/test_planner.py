"""Planning: one small graph for each rule, option and row, with the decision and the code that it must give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.data import recipe, target
from fp8graph.data.plan import Profile
from fp8graph.formats.spec import PerAxis, PerTensor
from tests.small import model, plan_of, refused, why

PRODUCT = "(float[2,32] x, float[32,32] w) => (float[2,32] y) { h = Relu(x)  y = MatMul(h, w) }"
BOTH = """(float[1,32,8,8] x, float[32,32,3,3] w) => (float[1,32,a,b] y) {
    h = MatMul(x, x)
    y = Conv(h, w)
}"""
GEMM = """(float[2,32] x, float[16,32] w, float[16] w_b) => (float[2,16] y) {
    y = Gemm <transB = 1> (x, w, w_b)
}"""
CONV = """(float[1,{i},8,8] x, float[{o},{k},{s}] w) => (float[1,{o},a,b] y) {{
    h = Relu(x)
    y = Conv <group = {g}> (h, w)
}}"""
IMAGE = "(float[1,{c},8,8] x, float[32,{c},3,3] w) => (float[1,32,6,6] y) {{ {before} y = Conv(h, w) }}"
NORMALISED = "f = Constant <value_float = 2.0> () d = Sub(x, f) h = Div(d, f)"
ATTENTION = """({t}[1,2,{n},{d}] q, {t}[1,2,{d},{n}] k, {t}[1,2,{n},{d}] v) => ({t}[1,2,{n},{d}] y) {{
    s = MatMul(q, k)
    p = Softmax <axis = -1> (s)
    y = MatMul(p, v)
}}"""
ROUTER = """(float[2,32] x, float[32,8] w, int64[1] w_k) => (float[2,1] v, int64[2,1] i) {{
    y = MatMul(x, w)
    {between}
    v, i = TopK(r, w_k)
}}"""
FOUR = "a = Softmax(y) b = Mul(a, a) c = Identity(b) r = Add(c, c)"
LSTM = """(float[3,2,4] x, float[1,12,4] w_a, float[1,12,3] w_b) => (float[3,1,2,3] y) {
    y = LSTM <hidden_size = 3> (x, w_a, w_b)
}"""
NORM = "(float[2,32] x, float[32] w) => (float[2,32] y) { y = LayerNormalization(x, w) }"
LOOK_UP = "(int64[2] x, float[9,8] w) => (float[2,8] y) { y = Gather(w, x) }"
VECTOR = "(float[32] x, float[32,4] z) => (float[4] y) { y = MatMul(x, z) }"


def conv(i: int, o: int, k: int, s: str, g: int = 1) -> str:
    """A Conv of `i` to `o` channels, `k` of them for each of `g` groups, with a kernel such as `3,3`."""
    return CONV.format(i=i, o=o, k=k, s=s, g=g)


def image(c: int, before: str = "h = Identity(x)") -> str:
    return IMAGE.format(c=c, before=before)


def attention(n: int = 64, d: int = 32, t: str = "float") -> str:
    """Attention over `n` keys with heads of `d`, in type `t`."""
    return ATTENTION.format(n=n, d=d, t=t)


def router(between: str = "r = Identity(y)") -> str:
    return ROUTER.format(between=between)


def typed(kind: str) -> str:
    """A product of two activations of one type."""
    return f"({kind}[2,8,8] x, {kind}[2,8,8] z) => ({kind}[2,8,8] y) {{ y = MatMul(x, z) }}"


TRANSPOSED = conv(32, 32, 32, "3,3").replace("Conv <", "ConvTranspose <")
DEPTHWISE = conv(32, 32, 1, "3,3", 32)
EVERYWHERE: dict[str, Any] = {"fp8_everywhere": True}
ASKED: dict[str, Any] = {"nodes_to_quantize": ["y"]}
OFF: dict[str, Any] = {"attention": "off"}
CONV_ALONE: dict[str, Any] = {"op_types_to_quantize": ["Conv"]}

TABLE: list[tuple[str, str, dict[str, Any], str]] = [
    ("a product with a weight", PRODUCT, {}, "y quantize FG201"),
    ("an op that no recipe quantizes", PRODUCT, {}, "h keep FG202"),
    ("a product of two activations", typed("float"), {}, "y quantize FG201"),
    ("Gemm", GEMM, {}, "y quantize FG201"),
    ("excluded by key", PRODUCT, {"nodes_to_exclude": ["y"]}, "y keep FG203"),
    ("excluded by type", PRODUCT, {"op_types_to_exclude": ["MatMul"]}, "y keep FG203"),
    ("not among the types asked for", BOTH, CONV_ALONE, "h keep FG203"),
    ("among the types asked for", BOTH, CONV_ALONE, "y quantize FG201"),
    ("asked for by key", PRODUCT, ASKED, "y quantize FG204"),
    ("asked for and excluded", PRODUCT, {**ASKED, "nodes_to_exclude": ["*"]}, "y keep FG203"),
    ("softmax", attention(), {}, "p keep FG206"),
    ("layer norm", NORM, {}, "y keep FG206"),
    ("embedding", LOOK_UP, {}, "y keep FG206"),
    ("a look-up of numbers in a vector", LOOK_UP.replace("[9,8]", "[9]").replace("[2,8]", "[2]"), {}, "y keep FG202"),
    ("LSTM", LSTM, {}, "y keep FG206"),
    ("GELU", "(float[2,32] x) => (float[2,32] y) { y = Gelu(x) }", {}, "y keep FG206"),
    ("transposed convolution", TRANSPOSED, {}, "y keep FG206"),
    ("router", router(), {}, "y keep FG207"),
    ("router behind softmax", router("r = Softmax(y)"), {}, "y keep FG207"),
    ("four ops to TopK", router(FOUR), {}, "y keep FG207"),
    ("a product far from TopK", router("r = Relu(y)"), {}, "y quantize FG201"),
    ("router, asked for", router(), ASKED, "y quantize FG204"),
    ("router, FP8 everywhere", router(), EVERYWHERE, "y quantize FG201"),
    ("first conv on an image", image(3), {}, "y keep FG208"),
    ("first conv behind a normalisation", image(3, NORMALISED), {}, "y keep FG208"),
    ("first conv of four channels", image(4), {}, "y keep FG208"),
    ("first conv of five channels", image(5), {}, "y quantize FG201"),
    ("a conv of four channels behind Relu", image(4, "h = Relu(x)"), {}, "y quantize FG201"),
    ("a conv of three channels behind Relu", image(3, "h = Relu(x)"), {}, "y keep FG304"),
    ("first conv, FP8 everywhere", image(3), EVERYWHERE, "y quantize FG201"),
    ("attention", attention(), {}, "s quantize FG201"),
    ("attention's second product", attention(), {}, "y quantize FG201"),
    ("heads of 15", attention(d=15), {}, "s keep FG209"),
    ("heads of 16", attention(d=16), {}, "s quantize FG201"),
    ("heads of 15, FP8 everywhere", attention(d=15), EVERYWHERE, "s quantize FG201"),
    ("attention switched off", attention(), OFF, "s keep FG211"),
    ("attention switched off, second product", attention(), OFF, "y keep FG211"),
    ("31 keys in single precision", attention(n=31), {}, "s quantize FG201"),
    ("31 keys in half precision", attention(n=31, t="float16"), {}, "s keep FG304"),
    ("32 keys in half precision", attention(n=32, t="float16"), {}, "s quantize FG201"),
    ("31 keys in bf16", attention(n=31, t="bfloat16"), {}, "s keep FG304"),
    ("31 keys in fp16 asked for", attention(n=31), {"high_precision_dtype": "fp16"}, "s keep FG304"),
    ("31 keys, FP8 everywhere", attention(n=31, t="float16"), EVERYWHERE, "s quantize FG201"),
    ("heads of 257", attention(d=257, t="float16"), {}, "s quantize FG201"),
    ("heads of 256", attention(d=256, t="float16"), {}, "s quantize FG201"),
    ("integer operands", typed("int32"), {}, "y keep FG215"),
    ("double operands", typed("double"), {}, "y keep FG215"),
    ("a kernel of 32 elements", conv(32, 32, 32, "4,8"), {}, "y quantize FG201"),
    ("a kernel of 36 elements", conv(32, 32, 32, "6,6"), {}, "y keep FG301"),
    ("a kernel of 36 elements, FP8 everywhere", conv(32, 32, 32, "6,6"), EVERYWHERE, "y keep FG301"),
    ("a kernel of 36 elements, another target", conv(32, 32, 32, "6,6"), {"target": "onnxruntime"}, "y quantize FG201"),
    ("a vector", VECTOR, {}, "y keep FG301"),
    ("depthwise", DEPTHWISE, {}, "y keep FG304"),
    ("depthwise, FP8 everywhere", DEPTHWISE, EVERYWHERE, "y quantize FG201"),
    ("depthwise, asked for", DEPTHWISE, ASKED, "y quantize FG204"),
    ("depthwise 7x7, FP8 everywhere", conv(32, 32, 1, "7,7", 32), EVERYWHERE, "y keep FG301"),
    ("groups of 8 channels", conv(32, 32, 8, "3,3", 4), {}, "y keep FG304"),
    ("groups of 16 channels", conv(32, 32, 16, "3,3", 2), {}, "y quantize FG201"),
    ("depthwise, a target without limits", DEPTHWISE, {"target": "reference"}, "y quantize FG201"),
]


@pytest.mark.parametrize(("text", "asked", "wanted"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_is_decided_and_why(text, asked, wanted):
    key, *said = wanted.split()
    plan = plan_of(model(text, w_k=np.array([1])), **({"target": "tensorrt-rtx:sm89"} | asked))
    reason = plan.ops[key].why
    assert why(plan, key) == tuple(said), reason
    assert reason.by and len(reason.text) > 8


def test_a_weight_that_is_not_finite_is_kept():
    weight = np.ones((32, 32))
    for value in (np.nan, np.inf, -np.inf):
        weight[3, 4] = value
        assert why(plan_of(model(PRODUCT, w=weight)), "y") == ("keep", "FG212")


def test_a_product_of_two_constants_is_kept():
    text = """(float[2,8] x, float[99,99] w_a, float[99,99] w_b) => (float[99,99] z, float[2,8] y) {
        z = MatMul(w_a, w_b)
        y = Relu(x)
    }"""
    assert why(plan_of(model(text)), "z") == ("keep", "FG217")


def test_an_op_of_another_domain_is_not_taken_for_onnxs_own():
    text = "(float[2,8] x, float[8,8] w) => (float[2,8] y) { h = MatMul(x, w) y = local.MatMul(h, w) }"
    function = '<domain: "local", opset_import: ["" : 21]> MatMul (a, b) => (c) { c = Add(a, b) }'
    plan = plan_of(model(text, functions=function))
    assert why(plan, "h")[0] == "quantize" and why(plan, "y") == ("keep", "FG202")
    assert plan.ops["y"].op_type == "local::MatMul"


def test_patterns_of_the_recipe_come_before_its_rules_and_behind_the_user():
    lines = {"keep": [{"ops": ["y", "h"], "why": "it was measured to matter"}]}
    policy = recipe.Recipe.from_mapping(recipe.load("fp8-default").to_json() | lines, "test")
    plan = plan_of(model(PRODUCT), recipe=policy)
    assert why(plan, "y") == why(plan, "h") == ("keep", "FG205")
    assert plan.ops["y"].why.text == "it was measured to matter" and "fp8-default" in plan.ops["y"].why.by
    assert why(plan_of(model(PRODUCT), recipe=policy, nodes_to_quantize=["y"]), "y") == ("quantize", "FG204")
    assert why(plan_of(model(PRODUCT), recipe=policy, nodes_to_exclude=["y"]), "y") == ("keep", "FG203")


@pytest.mark.parametrize(
    ("text", "asked", "says"),
    [
        (conv(32, 32, 32, "6,6"), {"nodes_to_quantize": ["y"]}, "more than 32 elements"),
        (PRODUCT, {"nodes_to_quantize": ["h"]}, "Relu has no operands"),
        (TRANSPOSED, {"nodes_to_quantize": ["y"]}, "transposed"),
        (PRODUCT, {"op_types_to_quantize": ["Relu"]}, "Relu has no operands"),
        (typed("int32"), {"nodes_to_quantize": ["y"]}, "INT32"),
    ],
)
def test_a_wish_that_the_target_refuses_stops_planning_with_status_2(text, asked, says):
    with refused(UsageError, "FG302", "was asked for in e4m3fn", "target 'tensorrt-rtx' refuses it", says) as _:
        plan_of(model(text), **asked)
    assert UsageError.status == 2


@pytest.mark.parametrize(
    ("asked", "where", "says"),
    [
        ({"nodes_to_exclude": ["yy"]}, "--nodes-to-exclude", "did you mean 'y'?"),
        ({"nodes_to_exclude": ["y", "MatMul_x"]}, "--nodes-to-exclude", "did you mean 'MatMul_y'?"),
        ({"nodes_to_quantize": ["layers.0/*"]}, "--nodes-to-quantize", "'layers.0/*' matches no op"),
        ({"nodes_to_exclude": ["type:Matmul"]}, "--nodes-to-exclude", "matches no op"),
        ({"nodes_to_exclude": ["re:("]}, "--nodes-to-exclude", "no regular expression"),
        ({"op_types_to_quantize": ["Matmul"]}, "--op-types-to-quantize", "did you mean 'MatMul'?"),
        ({"op_types_to_exclude": ["Conv"]}, "--op-types-to-exclude", "no op of type 'Conv'"),
    ],
)
def test_a_pattern_without_a_match_is_refused_with_the_nearest_name(asked, where, says):
    with refused(UsageError, "FG109", where, says):
        plan_of(model(PRODUCT), **asked)


def test_one_pattern_may_be_given_as_a_text():
    assert why(plan_of(model(PRODUCT), nodes_to_exclude="type:MatMul"), "y") == ("keep", "FG203")
    assert why(plan_of(model(PRODUCT), op_types_to_exclude="MatMul"), "y") == ("keep", "FG203")


def test_a_pattern_of_a_recipe_must_match_too():
    lines = {"keep": [{"ops": ["head*"], "why": "x"}]}
    policy = recipe.Recipe.from_mapping(recipe.load("fp8-default").to_json() | lines, "test")
    with refused(UsageError, "FG109", "'head*' matches no op", "recipe"):
        plan_of(model(PRODUCT), recipe=policy)


@pytest.mark.parametrize("asked", [{"attention": "on"}, {"high_precision_dtype": "fp64"}])
def test_an_option_has_one_of_its_values(asked):
    with refused(UsageError, "FG100", next(iter(asked.values()))):
        plan_of(model(PRODUCT), **asked)


def test_what_was_asked_stands_in_the_plan_beside_the_recipe():
    plan = plan_of(model(PRODUCT), nodes_to_exclude=["h"], fp8_everywhere=True)
    assert plan.asked == {"nodes_to_exclude": ["h"], "fp8_everywhere": True}
    assert plan.recipe == recipe.load("fp8-default").to_json() and plan.target == "tensorrt-rtx"
    assert plan_of(model(PRODUCT)).asked == {}


LEFT = "(float[32,2] x, float[8,32] w) => (float[8,2] y) { y = MatMul(w, x) }"
STACKED = "(float[2,4,8] x, float[2,8,8] w) => (float[2,4,8] y) { y = MatMul(x, w) }"
STACKED_LEFT = "(float[2,8,4] x, float[2,8,8] w) => (float[2,8,4] y) { y = MatMul(w, x) }"
PLAIN_GEMM = "(float[2,32] x, float[32,16] w) => (float[2,16] y) { y = Gemm(x, w) }"
GEMM_LEFT = "(float[32,2] x, float[16,32] w) => (float[16,2] y) { y = Gemm(w, x) }"
GEMM_TRANS_A = "(float[32,2] x, float[32,16] w) => (float[16,2] y) { y = Gemm <transA = 1> (w, x) }"
QKV = """(float[2,4,32] x, float[32,96] w) => (float[2,4,32] a, float[2,4,32] b, float[2,4,32] c) {
    y = MatMul(x, w)
    a, b, c = Split <axis = 2, num_outputs = 3> (y)
}"""
KV = """(float[2,4,32] x, float[32,64] w) => (float[2,4,32] a, float[2,4,32] b) {
    y = MatMul(x, w)
    a, b = Split <axis = 2, num_outputs = 2> (y)
}"""
QKV_GATHERED = """(float[2,4,32] x, float[32,96] w, float[96] w_b, int64[4] w_s) => (float[a,b,c,d] f) {
    y = MatMul(x, w)
    z = Add(w_b, y)
    r = Reshape(z, w_s)
    i = Constant <value_int = 0> ()
    j = Constant <value_int = 1> ()
    k = Constant <value_int = 2> ()
    q = Gather <axis = 2> (r, i)
    l = Gather <axis = 2> (r, j)
    v = Gather <axis = 2> (r, k)
    g = Add(q, l)
    f = Add(g, v)
}"""
GRANULARITY = [
    ("Conv", conv(32, 16, 32, "3,3"), 1, PerAxis(0)),
    ("MatMul, weight on the right", PRODUCT, 1, PerAxis(1)),
    ("MatMul, weight on the left", LEFT, 0, PerAxis(0)),
    ("MatMul, stacked weights", STACKED, 1, PerAxis(2)),
    ("MatMul, stacked weights on the left", STACKED_LEFT, 0, PerTensor()),
    ("Gemm", PLAIN_GEMM, 1, PerAxis(1)),
    ("Gemm, transB", GEMM, 1, PerAxis(0)),
    ("Gemm, weight on the left", GEMM_LEFT, 0, PerAxis(0)),
    ("Gemm, transA", GEMM_TRANS_A, 0, PerAxis(1)),
    ("packed qkv", QKV, 1, PerTensor()),
    ("packed kv", KV, 1, PerAxis(1)),
    ("packed qkv behind bias and reshape", QKV_GATHERED, 1, PerTensor()),
]


@pytest.mark.parametrize(
    ("text", "slot", "wanted"), [row[1:] for row in GRANULARITY], ids=[row[0] for row in GRANULARITY]
)
def test_a_weights_scales_run_along_its_output_channels(text, slot, wanted):
    plan = plan_of(model(text, w_s=np.array([2, 4, 3, 32])), target="tensorrt-rtx:sm89")
    inputs = plan.ops["y"].inputs
    assert inputs[slot].granularity == wanted and inputs[slot].scale.origin == "computed"
    assert inputs[1 - slot].granularity == PerTensor() and inputs[1 - slot].scale.origin == "observed"
    reason = plan.ops["y"].why.text
    assert ("one weight scale" in reason) is (text in (QKV, QKV_GATHERED))


def test_a_recipe_may_ask_for_one_scale_everywhere():
    table = recipe.load("fp8-default").to_json()
    table["quantize"]["weights"]["per"] = "tensor"
    plan = plan_of(model(PRODUCT), recipe=recipe.Recipe.from_mapping(table, "test"))
    assert plan.ops["y"].inputs[1].granularity == PerTensor()


def test_shapes_bound_attention_by_the_least_of_the_profile():
    text = attention(n=64, t="float16").replace("64", "n")
    sizes = {"q": ((8, 32), (99, 32)), "k": ((32, 8), (32, 99)), "v": ((8, 32), (99, 32))}
    few = {name: Profile((1, 2, *least), (1, 2, *least), (1, 2, *most)) for name, (least, most) in sizes.items()}
    many = {name: Profile(p.max, p.max, p.max) for name, p in few.items()}
    assert why(plan_of(model(text), shapes=few), "s") == ("keep", "FG304")
    assert why(plan_of(model(text), shapes=many), "s") == ("quantize", "FG201")
    assert plan_of(model(text), shapes=few).shapes == few


def test_of_several_chips_the_worst_decides():
    proto = model(conv(32, 32, 1, "7,7", 32))
    for spec, code in (
        ("tensorrt-rtx:sm120", "FG304"),
        ("tensorrt-rtx:sm89+sm120", "FG301"),
        ("tensorrt-rtx", "FG301"),
    ):
        assert why(plan_of(proto, target=spec), "y") == ("keep", code)
    assert target.load("tensorrt-rtx").asked == "tensorrt-rtx"


def with_weights(format: str) -> recipe.Recipe:
    """The default recipe with weights in another format."""
    table = recipe.load("fp8-default").to_json()
    table["quantize"]["weights"]["format"] = format
    return recipe.Recipe.from_mapping(table, "test")


def test_the_format_of_weights_is_held_against_the_target_too():
    e5m2 = with_weights("e5m2")
    with refused(UsageError, "FG341", "E5M2 is not imported", "fp8-default", "--target reference"):
        plan_of(model(PRODUCT), recipe=e5m2, target="tensorrt-rtx:sm89")
    assert why(plan_of(model(PRODUCT), recipe=e5m2, target="reference"), "y") == ("quantize", "FG201")
    with refused(UsageError, "FG302", "MatMul was asked for in e5m2", "tensorrt-rtx"):
        plan_of(model(PRODUCT), recipe=e5m2, nodes_to_quantize=("y",))
    # a product of two activations has no weight
    text = "(float[2,8,8] x) => (float[2,8,8] y) { h = Relu(x) y = MatMul(x, h) }"
    assert why(plan_of(model(text), recipe=e5m2), "y") == ("quantize", "FG201")


TRANSPOSED = """({t}[1,8,8,8] x, {t}[8,8,3,3] w_a, {t}[8,8,1,1] w_b) => ({t}[1,8,10,10] y) {{
    h = Relu(x)
    c = Conv(h, w_b)
    y = ConvTranspose(c, w_a)
}}"""


@pytest.mark.parametrize(("kind", "asked"), [("float", "bf16"), ("bfloat16", None)])
def test_a_type_that_an_op_has_no_kernel_for_is_fp32_there_and_is_said(kind, asked):
    proto = model(TRANSPOSED.format(t=kind))
    done = fp8graph.optimize(proto, plan_only=True, high_precision_dtype=asked, target="tensorrt-rtx:sm89")
    assert {key: op.high for key, op in done.plan.ops.items()} == {"h": "bf16", "c": "bf16", "y": "fp32"}
    assert why(done.plan, "y") == ("keep", "FG222") and "bf16" in done.plan.ops["y"].why.text
    assert [finding.op for finding in done.findings if finding.code == "FG222"] == ["y"]
    other = fp8graph.optimize(proto, plan_only=True, high_precision_dtype=asked, target="reference")
    assert other.plan.ops["y"].high == "bf16"


EPILOGUES = {  # type, body, ops with a note
    "bias behind MatMul": ("float16", "h = MatMul(x, w_a) y = Add(h, w_c)", ["h"]),
    "activation": ("bfloat16", "h = MatMul(x, w_a) y = Sigmoid(h)", ["h"]),
    "bias of Gemm": ("float16", "y = Gemm(x, w_a, w_c)", ["y"]),
    "Gemm without one": ("float16", "y = Gemm(x, w_a)", []),
    "product behind product": ("float16", "h = MatMul(x, w_a) y = MatMul(h, w_a)", []),
    "in fp32 there is another": ("float", "h = MatMul(x, w_a) y = Add(h, w_c)", []),
    "an op that is kept": ("float16", "y = Sigmoid(x)", []),
}


@pytest.mark.parametrize("case", EPILOGUES)
def test_a_lost_epilogue_is_a_note_and_keeps_nothing(case):
    kind, body, noted = EPILOGUES[case]
    text = f"({kind}[8,32] x, {kind}[32,32] w_a, {kind}[32] w_c) => ({kind}[8,32] y) {{ {body} }}"
    done = fp8graph.optimize(model(text), plan_only=True, target="tensorrt-rtx:sm89")
    found = [finding for finding in done.findings if finding.code == "FG225"]
    assert [finding.op for finding in found] == noted and all(finding.severity == "info" for finding in found)
    assert all(done.plan.ops[key].do == "quantize" for key in noted)


def test_a_conv_loses_the_residual_and_not_the_activation():
    text = """(float16[1,16,8,8] x, float16[16,16,3,3] w) => (float16[1,16,8,8] y, float16[1,16,8,8] z) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w) y = Add(a, x)
        b = Conv <pads = [1, 1, 1, 1]> (x, w) z = Relu(b) }"""
    done = fp8graph.optimize(model(text), plan_only=True, target="tensorrt-rtx:sm89")
    assert [finding.op for finding in done.findings if finding.code == "FG225"] == ["a"]


@pytest.mark.parametrize("text", [conv(32, 32, 1, "3,3", 32), conv(64, 64, 8, "3,3", 8)], ids=["depthwise", "groups"])
def test_what_costs_more_than_it_gains_is_kept_with_its_source_unless_fp8_is_wanted_everywhere(text):
    plan = plan_of(model(text), target="tensorrt-rtx:sm89")
    assert why(plan, "y") == ("keep", "FG304") and "tensorrt_rtx 1.7.1" in plan.ops["y"].why.by
    assert why(plan_of(model(text), target="tensorrt-rtx:sm89", fp8_everywhere=True), "y") == ("quantize", "FG201")
    # what the target refuses stays, whatever is wanted
    large = model(conv(32, 32, 32, "7,7"))
    assert why(plan_of(large, target="tensorrt-rtx:sm89", fp8_everywhere=True), "y") == ("keep", "FG301")
