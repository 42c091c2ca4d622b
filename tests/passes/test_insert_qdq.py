"""Q/DQ pairs as the plan says: which scales, where, how often, and codes that are those of `numerics.cast`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph import formats
from fp8graph.base.errors import InputError
from fp8graph.data.plan import Scale
from fp8graph.formats.spec import PerAxis
from fp8graph.graph.load import load
from fp8graph.numerics import cast
from fp8graph.numerics.observed import peaks_of_weight
from fp8graph.runners.reference import reference
from fp8graph.testing import outputs, planned
from fp8graph_passes.insert_qdq import InsertQDQ
from tests.passes.doing import Done, planned_run
from tests.small import feeds, model, refused

E4M3 = formats.get("e4m3fn")


def pairs(done: Done, op: str) -> list[tuple[ir.Node | None, ir.Node]]:
    """Q and DQ behind the first two operands of an op; no Q in front of stored codes."""
    found = []
    for value in done.at(op).inputs[:2]:
        assert value is not None
        dequantize = value.producer()
        assert dequantize is not None and dequantize.op_type == "DequantizeLinear"
        codes = dequantize.inputs[0]
        assert codes is not None
        found.append((codes.producer(), dequantize))
    return found


def scale_of(node: ir.Node) -> np.ndarray:
    value = node.inputs[1]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


DENSE = "(float[2,16] x, float[16,8] w) => (float[2,8] y) { y = MatMul(x, w) }"


def test_a_product_gets_a_pair_on_its_activation_and_codes_for_its_weight():
    done = planned_run(InsertQDQ(), model(DENSE))
    assert done.count == 2
    assert done.kinds == {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1}
    assert "w" not in done.constants


def test_an_activations_scale_has_rank_0_and_is_float32():
    (quantize, dequantize), _ = pairs(planned_run(InsertQDQ(), model(DENSE)), "y")
    assert quantize is not None
    assert quantize.inputs[1] is dequantize.inputs[1]
    scale = scale_of(quantize)
    assert (scale.shape, scale.dtype) == ((), np.float32)


def test_the_scale_is_amax_over_the_feeds_by_the_largest_code():
    prepared = planned(model(DENSE))
    amax = max(float(np.abs(feed["x"]).max()) for feed in prepared.feeds)
    (_, dequantize), _ = pairs(planned_run(InsertQDQ(), model(DENSE)), "y")
    assert scale_of(dequantize) == np.float32(amax) / np.float32(448)


def test_the_format_is_said_by_output_dtype_and_there_is_no_zero_point():
    done = planned_run(InsertQDQ(), model(DENSE))
    for quantize, dequantize in pairs(done, "y"):
        assert len(dequantize.inputs) == 2
        if quantize is not None:
            assert len(quantize.inputs) == 2
            assert quantize.attributes["output_dtype"].as_int() == ir.DataType.FLOAT8E4M3FN


@pytest.mark.parametrize("kind", ["float", "float16", "bfloat16"])
@pytest.mark.parametrize(("recipe", "rule"), [("fp8-amax", "amax"), ("fp8-default", "mse")])
def test_stored_codes_are_those_of_the_one_encoder(kind, recipe, rule):
    proto = model(DENSE.replace("float[", f"{kind}["), opset=22)
    weight = planned(proto).before.graph.initializers["w"].const_value.numpy()
    done = planned_run(InsertQDQ(), proto, recipe=recipe)
    scale = done.constants["w_scale"]
    assert (scale.shape, scale.dtype) == ((8,), np.float32)
    peaks = peaks_of_weight(weight, PerAxis(1), E4M3, rule)
    assert np.array_equal(peaks, np.abs(weight.astype(np.float32)).max(axis=0)) == (rule == "amax")
    np.testing.assert_array_equal(scale, peaks / np.float32(448))
    codes = done.constants["w_fp8"].view(np.uint8)
    np.testing.assert_array_equal(codes, cast.encode(weight, E4M3, scale))


def test_codes_are_computed_as_they_are_written():
    done = planned_run(InsertQDQ(), model(DENSE))
    assert isinstance(done.model.graph.initializers["w_fp8"].const_value, ir.LazyTensor)


# op, shape of the weight, its slot, axis of the output channels
AXES = {
    "Conv": ("(float[2,3,6,6] x, float[8,3,3,3] w) => (float[2,8,4,4] y) { y = Conv(x, w) }", 1, 0),
    "Conv in groups": (
        "(float[2,4,6,6] x, float[8,2,3,3] w) => (float[2,8,4,4] y) { y = Conv <group = 2> (x, w) }", 1, 0
    ),
    "Conv over lines": ("(float[2,3,6] x, float[8,3,3] w) => (float[2,8,4] y) { y = Conv(x, w) }", 1, 0),
    "ConvTranspose": (
        "(float[2,3,6,6] x, float[3,8,3,3] w) => (float[2,8,8,8] y) { y = ConvTranspose(x, w) }", 1, 1
    ),
    "MatMul": (DENSE, 1, 1),
    "MatMul of a batch": ("(float[3,2,16] x, float[3,16,8] w) => (float[3,2,8] y) { y = MatMul(x, w) }", 1, 2),
    "MatMul from the left": ("(float[16,2] x, float[8,16] w) => (float[8,2] y) { y = MatMul(w, x) }", 0, 0),
    "Gemm": ("(float[2,16] x, float[16,8] w) => (float[2,8] y) { y = Gemm(x, w) }", 1, 1),
    "Gemm transB": ("(float[2,16] x, float[8,16] w) => (float[2,8] y) { y = Gemm <transB = 1> (x, w) }", 1, 0),
    "Gemm from the left": ("(float[16,2] x, float[8,16] w) => (float[8,2] y) { y = Gemm(w, x) }", 0, 0),
    "Gemm from the left transA": (
        "(float[16,2] x, float[16,8] w) => (float[8,2] y) { y = Gemm <transA = 1> (w, x) }", 0, 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", AXES)
def test_a_weights_scales_run_along_its_output_channels(op):
    text, slot, axis = AXES[op]
    options = {"fp8_everywhere": True}
    if op == "ConvTranspose":
        options |= {"nodes_to_quantize": ("y",)}
    done = planned_run(InsertQDQ(), model(text), **options)
    _, dequantize = pairs(done, "y")[slot]
    assert dequantize.attributes["axis"].as_int() == axis
    assert scale_of(dequantize).shape == (8,)
    assert "axis" not in pairs(done, "y")[1 - slot][1].attributes


@pytest.mark.parametrize(
    "text",
    [
        "(float[3,2,2] x, float[3,8,2] w) => (float[3,8,2] y) { y = MatMul(w, x) }",  # a batch from the left: none
        """(float[2,8,16] x, float[16,48] w) => (float[3,2,8,16] y) <int64[4] s = {2, 8, 3, 16}> {
            a = MatMul(x, w) b = Reshape(a, s) t = Transpose <perm = [2, 0, 1, 3]> (b)
            q, k, v = Split <axis = 0, num_outputs = 3> (t) y = Concat <axis = 0> (v, k, q) }""",
    ],
    ids=["a batch from the left", "packed qkv"],
)
def test_one_scale_serves_where_there_is_no_such_axis_or_the_engine_wants_one(text):
    done = planned_run(InsertQDQ(), model(text), target="tensorrt-rtx", high="fp16")
    assert done.constants["w_scale"].shape == ()
    (dequantize,) = (n for n in done.model.graph if n.op_type == "DequantizeLinear" and n.inputs[0].name == "w_fp8")
    assert "axis" not in dequantize.attributes


def test_equal_quants_share_one_pair():
    text = """(float[2,16] x, float[16,16] w) => (float[2,16] y) {
        a = MatMul(x, w) b = MatMul(x, w) c = Gemm(x, w) d = Sum(a, b, c) y = Tanh(d) }"""
    done = planned_run(InsertQDQ(), model(text))
    assert done.count == 6
    assert (done.kinds["QuantizeLinear"], done.kinds["DequantizeLinear"]) == (1, 2)
    assert done.inputs("a") == done.inputs("b") == done.inputs("c")


def test_a_weight_read_along_two_axes_is_stored_for_each():
    text = """(float[2,16] x, float[16,16] w) => (float[2,16] y) {
        a = MatMul(x, w) b = Gemm <transB = 1> (x, w) y = Add(a, b) }"""
    done = planned_run(InsertQDQ(), model(text))
    assert (done.kinds["QuantizeLinear"], done.kinds["DequantizeLinear"]) == (1, 3)
    axes = {op: pairs(done, op)[1][1].attributes["axis"].as_int() for op in "ab"}
    assert axes == {"a": 1, "b": 0}


def test_one_value_on_both_sides_of_a_product_is_quantized_once():
    done = planned_run(InsertQDQ(), model("(float[8,8] x) => (float[8,8] y) { y = MatMul(x, x) }"))
    assert done.kinds == {"QuantizeLinear": 1, "DequantizeLinear": 1, "MatMul": 1}


def test_who_else_reads_a_quantized_value_reads_it_as_it_was():
    text = """(float[2,16] x, float[16,16] w) => (float[2,16] y, float[2,16] r) {
        r = Relu(x) a = MatMul(r, w) y = Add(a, r) }"""
    done = planned_run(InsertQDQ(), model(text))
    assert done.inputs("y") == ["a", "r"]
    assert [value.name for value in done.model.graph.outputs] == ["y", "r"]
    assert pairs(done, "a")[0][0].inputs[0].name == "r"


def test_a_weight_that_others_read_stays_beside_its_codes():
    text = """(float[2,16] x, int64[1] i, float[16,16] w) => (float[2,16] y, float[1,16] z) {
        a = MatMul(x, w) y = Add(a, x) z = Gather(w, i) }"""
    done = planned_run(InsertQDQ(), model(text))
    assert {"w", "w_fp8", "w_scale"} <= set(done.constants)


BODY = """(float[2,16] x, bool c, float[16,16] w) => (float[2,16] y) {
    r = Relu(x)
    y = If (c) <then_branch = t () => (float[2,16] a) { a = MatMul(r, w) },
                else_branch = e () => (float[2,16] b) { n = Neg(r) b = MatMul(n, w) }>
}"""


def test_every_graph_that_reads_a_value_has_its_own_pair():
    done = planned_run(InsertQDQ(), model(BODY))
    assert [node.op_type for node in done.model.graph] == ["Relu", "If"]
    branches = {name: done.node("y").attributes[name].as_graph() for name in ("then_branch", "else_branch")}
    pair = ["QuantizeLinear", "DequantizeLinear"]
    assert [node.op_type for node in branches["then_branch"]] == [*pair, "DequantizeLinear", "MatMul"]
    assert [node.op_type for node in branches["else_branch"]] == ["Neg", *pair, "DequantizeLinear", "MatMul"]
    for graph in branches.values():  # the weight's codes and scale, too
        dequantize = [node for node in graph if node.op_type == "DequantizeLinear"][-1]
        assert {value.name for value in dequantize.inputs} <= set(graph.initializers)


def test_a_value_from_around_the_body_has_headroom_of_two():
    prepared = planned(model(BODY))
    amax = max(float(outputs(with_output(prepared.before, "r"), feed)["r"].max()) for feed in prepared.feeds)
    done = planned_run(InsertQDQ(), model(BODY))
    (captured, _), _ = pairs(done, "y.then_branch/a")
    assert captured is not None
    assert scale_of(captured) == np.float32(2 * amax) / np.float32(448)


def with_output(item: ir.Model, name: str) -> ir.Model:
    view = item.clone()
    view.graph.outputs.append(next(v for node in view.graph for v in node.outputs if v.name == name))
    return view


def test_a_weight_of_a_body_is_stored_in_the_body():
    text = """(float[2,16] x, bool c) => (float[2,16] y) {
        y = If (c) <then_branch = t () => (float[2,16] a) <float[16,16] own = {NUMBERS}> { a = MatMul(x, own) },
                    else_branch = e () => (float[2,16] b) { b = Neg(x) }>
    }"""
    done = planned_run(InsertQDQ(), model(text.replace("NUMBERS", ", ".join(str(i % 7 - 3) for i in range(256)))))
    body = done.node("y").attributes["then_branch"].as_graph()
    assert {name for name in body.initializers if "own" in name} == {"own_fp8", "own_scale"}


def test_an_inserted_node_says_which_op_it_serves():
    done = planned_run(InsertQDQ(), model(BODY))
    body = done.node("y").attributes["then_branch"].as_graph()
    serves = [node.metadata_props.get("fp8graph.for") for node in body]
    assert serves == ["y.then_branch/a", "y.then_branch/a", "y.then_branch/a", None]


def test_the_pair_yields_the_type_that_the_plan_says_and_scales_stay_float32():
    done = planned_run(InsertQDQ(), model(DENSE), high="fp16")
    for _, dequantize in pairs(done, "y"):
        assert dequantize.outputs[0].dtype == ir.DataType.FLOAT16
        assert scale_of(dequantize).dtype == np.float32


def test_what_the_pair_leaves_is_what_the_cast_leaves():
    prepared = planned(model(DENSE))
    weight = prepared.before.graph.initializers["w"].const_value.numpy()
    done = Done(prepared.before, prepared.model, 0, prepared.ctx)
    scale, scales = scale_of(pairs(done, "y")[0][1]), scale_of(pairs(done, "y")[1][1])
    for feed in prepared.feeds:
        left = cast.fake_quantize(feed["x"], E4M3, np.float32(scale))
        right = cast.fake_quantize(weight, E4M3, scales)
        np.testing.assert_allclose(outputs(prepared.model, feed)["y"], left @ right, rtol=1e-5, atol=1e-5)


def test_an_op_that_is_kept_gets_nothing():
    done = planned_run(InsertQDQ(), model(DENSE), nodes_to_exclude=("y",))
    assert done.count == 0
    assert done.kinds == {"MatMul": 1}


def test_without_a_plan_nothing_is_done():
    prepared = planned(model(DENSE), until=InsertQDQ())
    assert InsertQDQ().rewrite(prepared.model, replace(prepared.ctx, plan=None)) == 0


def test_a_scale_without_a_number_is_refused():
    prepared = planned(model(DENSE), until=InsertQDQ())
    plan = prepared.ctx.plan
    assert plan is not None
    op = plan.ops["y"]
    inputs = {0: replace(op.inputs[0], scale=Scale("observed", "amax")), 1: op.inputs[1]}
    ctx = replace(prepared.ctx, plan=replace(plan, ops={**plan.ops, "y": replace(op, inputs=inputs)}))
    with refused(InputError, "FG110", "x"):
        InsertQDQ().rewrite(prepared.model, ctx)


def test_a_weight_that_is_not_finite_is_refused_when_a_plan_for_other_weights_wants_it():
    proto = model(DENSE)
    plan = planned(proto).ctx.plan
    weight = np.ones((16, 8), np.float32)
    weight[3, 3] = np.inf
    prepared = planned(model(DENSE, w=weight), until=InsertQDQ())
    with refused(InputError, "FG212", "w"):
        InsertQDQ().rewrite(prepared.model, replace(prepared.ctx, plan=plan))


def test_e5m2_is_written_as_well(tmp_path):
    recipe = tmp_path / "e5m2.toml"
    recipe.write_text(
        'name = "e5m2"\nsummary = "activations and weights in E5M2"\nextends = "fp8-default"\n'
        '[quantize.activations]\nformat = "e5m2"\n[quantize.weights]\nformat = "e5m2"\n'
    )
    done = planned_run(InsertQDQ(), model(DENSE), recipe=str(recipe))
    (quantize, _), _ = pairs(done, "y")
    assert quantize is not None
    assert quantize.attributes["output_dtype"].as_int() == ir.DataType.FLOAT8E5M2
    weight = planned(model(DENSE)).before.graph.initializers["w"].const_value.numpy()
    codes = cast.encode(weight, formats.get("e5m2"), done.constants["w_scale"])
    np.testing.assert_array_equal(done.constants["w_fp8"].view(np.uint8), codes)


# Recipes whose scales lie elsewhere than in one number per tensor or channel; the shape of the weight's scale, what it
# is stored as, and how much the products keep (dB).
WIDE = "(float[3,96] x, float[96,40] w, float[40] b) => (float[3,40] y) { y = Gemm (x, w, b) }"
RECIPES = {
    "fp8-dynamic": ((40,), "FLOAT", "FLOAT8E4M3FN", 28),
    "fp8-dynamic-token": ((40,), "FLOAT", "FLOAT8E4M3FN", 28),
    "fp8-weight-only": ((40,), "FLOAT", "FLOAT8E4M3FN", 30),
    "fp8-block128": ((1, 40), "FLOAT", "FLOAT8E4M3FN", 28),
    "fp8-block128-ue8m0": ((1, 40), "FLOAT8E8M0", "FLOAT8E4M3FN", 26),
    "mxfp8": ((3, 40), "FLOAT8E8M0", "FLOAT8E4M3FN", 26),
    "mxfp6": ((3, 40), "FLOAT8E8M0", "FLOAT6E2M3", 24),
    "mxfp4": ((3, 40), "FLOAT8E8M0", "FLOAT4E2M1", 12),
    "nvfp4": ((6, 40), "FLOAT8E4M3FN", "FLOAT4E2M1", 14),
    "w4a8": ((1, 40), "FLOAT", "INT4", 15),
    "int8": ((40,), "FLOAT", "INT8", 35),
}


@pytest.mark.parametrize(
    ("name", "shape", "stored", "codes", "least"), [(k, *v) for k, v in RECIPES.items()], ids=RECIPES
)
def test_each_recipe_stores_what_its_format_says_and_stays_near(name, shape, stored, codes, least):
    proto = model(WIDE)
    done = fp8graph.optimize(proto, recipe=name, target="reference", data=feeds(proto), nodes_to_quantize=["y"])
    held = {item.name: item for item in done.model.graph.initializer}
    kinds = {name: onnx.TensorProto.DataType.Name(item.data_type) for name, item in held.items()}
    assert [n for n, kind in kinds.items() if kind == codes and list(held[n].dims) == [96, 40]]
    scales = [n for n, kind in kinds.items() if kind == stored and tuple(held[n].dims) == shape]
    assert scales, kinds
    onnx.checker.check_model(done.model, full_check=True)
    assert done.comparison is not None and (done.comparison.outputs["y"].sqnr_db or 0) > least
    again = fp8graph.optimize(proto, plan=type(done.plan).from_json(done.plan.to_json()))
    assert again.model.SerializeToString(deterministic=True) == done.model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("text", [
    "(float[1,8,9,9] x, float[16,8,3,3] w, float[16] b) => (float[1,16,7,7] y) { y = Conv (x, w, b) }",
    "(float[3,96] x, float[40,96] w, float[40] b) => (float[3,40] y) { y = Gemm <transB = 1, beta = 0.5> (x, w, b) }",
    "(float[2,5,32] x, float[32,16] w) => (float[2,5,16] y) { h = MatMul (x, w) y = Relu (h) }",
    "(float[2,5,32] x, float[2,32,7] z) => (float[2,5,7] y) { y = MatMul (x, z) }",
])  # fmt: skip
@pytest.mark.parametrize("name", ["fp8-dynamic", "fp8-dynamic-token"])
@pytest.mark.parametrize("high", [None, "fp16"])
def test_a_scale_found_in_the_graph_fits_every_size_of_input(text, name, high):
    """The product is multiplied by the scales before its bias is added; values far from those seen stay as exact."""
    proto = model(text)
    done = fp8graph.optimize(proto, recipe=name, target="reference", high_precision_dtype=high, fp8_everywhere=True)
    for size in (1e-3, 1.0, 50.0):
        given = feeds(proto, 1, scale=size)[0]
        old, new = (reference(load(item).model).run(given)["y"].astype(np.float64) for item in (proto, done.model))
        assert 10 * np.log10((old**2).sum() / ((old - new) ** 2).sum()) > 25


@pytest.mark.parametrize("name", ["fp8-block128", "mxfp8", "nvfp4"])
def test_blocks_are_cut_along_an_axis_of_open_length_too(name):
    """Attention over an open sequence: at every length, the numbers of the model with that length written down."""
    text = "(float[2,5,L] x, float[2,L,7] z) => (float[2,5,7] y) { p = Softmax(x) y = MatMul (p, z) }"
    lengths = (2, 31, 33, 160)
    data = [feeds(model(text.replace("L", str(length))), 1, seed=length)[0] for length in lengths]
    done = fp8graph.optimize(model(text), recipe=name, target="reference", data=data)
    assert done.plan.ops["y"].do == "quantize"
    for length, feed in zip(lengths, data, strict=True):
        proto = model(text.replace("L", str(length)))
        closed = fp8graph.optimize(proto, recipe=name, target="reference", data=[feed])
        left, right = (outputs(load(one.model).model, feed)["y"] for one in (done, closed))
        if name == "nvfp4":  # the scale above the others is that of all data
            np.testing.assert_allclose(left, right, atol=0.5)
        else:
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("recipe", ["fp8-dynamic-token", "fp8-dynamic", "fp8-block128", "fp8-block128-ue8m0", "mxfp8"])
def test_tokens_of_zeros_and_nearly_so_stay_finite_where_scales_are_found_in_each_run(recipe):
    proto = model("(float16[3,32] x, float16[32,8] w) => (float16[3,8] y) { y = MatMul(x, w) }")
    x = np.random.default_rng(0).standard_normal((4, 3, 32)).astype(np.float16)
    x[0], x[:, 1], x[:, 2] = 0, 0, np.float16(6e-8)
    done = fp8graph.optimize(proto, recipe=recipe, target="reference", data={"x": x})
    assert done.planned_by["fp8"] == 1 and done.comparison is not None
    assert done.comparison.outputs["y"].new_nonfinite == 0 and (done.comparison.outputs["y"].sqnr_db or 0) > 20
