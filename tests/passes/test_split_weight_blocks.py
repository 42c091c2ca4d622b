"""Weights that came in blocks: the split that keeps them, what it computes, and when the plan chooses it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fp8graph
from fp8graph.base.errors import UsageError
from fp8graph.data.plan import Scale
from fp8graph.graph import tensors, walk
from fp8graph.graph.load import load
from fp8graph.testing import outputs
from tests.small import feeds, model, needs_rtx, refused

TARGET = "tensorrt-rtx:sm89"


def scales(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).uniform(0.005, 0.05, shape).astype(np.float32)


# Inputs, weight, scales, and the product `y`; the axis of the weight that is summed over.
FORMS = {
    "a MatMul": ("float[4,256] x", (256, 48), 128, "y = MatMul(x, d)", 0),
    "a ragged last block": ("float[4,300] x", (300, 48), 128, "y = MatMul(x, d)", 0),
    "a batch, any length": ("float[2,n,256] x", (256, 48), 128, "y = MatMul(x, d)", 0),
    "the weight on the left": ("float[2,256,4] x", (48, 256), 128, "y = MatMul(d, x)", 1),
    "a Gemm": ("float[4,256] x", (48, 256), 128, "y = Gemm <transB = 1> (x, d)", 1),
    "a Gemm, all attributes": (
        "float[256,4] x, float[48] w_c",
        (256, 48),
        64,
        "y = Gemm <transA = 1, alpha = 0.5, beta = 2.0> (x, d, w_c)",
        0,
    ),
    "transposed": ("float[4,256] x", (48, 256), 128, "t = Transpose <perm = [1, 0]> (d) y = MatMul(x, t)", 1),
}


def source(head: str, shape: tuple[int, int], block: int, body: str, axis: int, result: str = "y") -> onnx.ModelProto:
    """A product of weights in blocks along an axis."""
    count = [-(-size // block) if at == axis else size for at, size in enumerate(shape)]
    text = f"({head}, float8e4m3fn[{shape[0]},{shape[1]}] w, float[{count[0]},{count[1]}] w_s) => (float {result}) {{ "
    dequantize = f"d = DequantizeLinear <axis = {axis}, block_size = {block}> (w, w_s) "
    proto = model(
        text.replace(f"(float {result})", f"(float[] {result})") + dequantize + body + " }", w_s=scales(*count)
    )
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(proto)


@pytest.fixture
def wish(tmp_path):
    """A recipe that wants blocks treated in one way."""

    def written(blocks: str, base: str = "fp8-default") -> str:
        path = tmp_path / f"{blocks}-{base}.toml"
        path.write_text(f'extends = "{base}"\n[quantize]\nblocks = "{blocks}"\n')
        return str(path)

    return written


def optimized(proto: onnx.ModelProto, target: str = TARGET, **options):
    return fp8graph.optimize(proto, target=target, data=feeds(proto, 2), **options)


def nodes(done, op_type: str):
    return [place.node for place in walk.walk(load(done.model).model) if place.node.op_type == op_type]


@pytest.mark.parametrize("form", FORMS)
def test_codes_and_scales_are_those_that_came_cut(form, wish):
    proto, (_, shape, block, body, axis) = source(*FORMS[form]), FORMS[form]
    done = optimized(proto, recipe=wish("split"))
    onnx.checker.check_model(done.model, full_check=True)
    came = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    weights = [node for node in nodes(done, "DequantizeLinear") if tensors.is_constant(node.inputs[0])]
    turned = "Transpose" in body
    across = axis if turned else 1 - axis  # where output channels lie
    codes = np.concatenate([tensors.read(node.inputs[0]).view(np.uint8) for node in weights], 1 - across)
    np.testing.assert_array_equal(codes.T if turned else codes, came["w"].view(np.uint8))
    found = np.stack([tensors.read(node.inputs[1]) for node in weights], axis)
    np.testing.assert_array_equal(found, came["w_s"])
    assert {(node.attributes["axis"].as_int(), "block_size" in node.attributes) for node in weights} == {
        (across, False)
    }
    assert len(weights) == -(-shape[axis] // block) and len(nodes(done, "Split")) == len(nodes(done, "Sum")) == 1
    assert len(nodes(done, "QuantizeLinear")) == 1 and done.plan.ops["y"].inputs[
        1 if "(x" in body else 0
    ].scale == Scale("given", "model")


@pytest.mark.parametrize("form", FORMS)
def test_it_computes_what_the_blocks_do(form, wish):
    proto = source(*FORMS[form])
    ours, plain = optimized(proto, recipe=wish("split")), optimized(proto, "reference")
    assert nodes(plain, "Sum") == []
    for feed in feeds(proto, 3):
        got, want = (outputs(load(item.model).model, feed, by_reference=False)["y"] for item in (ours, plain))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("base", ["fp8-dynamic", "fp8-dynamic-token", "fp8-block128"])
def test_scales_of_each_run_go_with_it(base, wish):
    proto = source(*FORMS["a MatMul"])
    ours, coarse = (optimized(proto, recipe=wish(word, base)) for word in ("split", "channel"))
    assert len(nodes(ours, "Sum")) == 1 and nodes(coarse, "Sum") == []
    assert ours.comparison.outputs["y"].sqnr_db > coarse.comparison.outputs["y"].sqnr_db + 1


def test_the_sum_is_the_op_and_products_are_its_parts(wish):
    done = optimized(source(*FORMS["a Gemm, all attributes"]), recipe=wish("split"))
    (total,) = nodes(done, "Sum")
    parts = nodes(done, "Gemm")
    assert total.outputs[0].name == "y" and walk.node_key(total) == "y"
    assert [walk.node_key(node) for node in parts] == [f"y~block{index}" for index in range(4)]
    assert [len(node.inputs) for node in parts] == [3, 2, 2, 2]  # the bias once
    assert len({node.name for node in (*parts, total)}) == 5


def test_products_of_one_tensor_read_one_split_of_it():
    proto = model(
        """(float[2,256] x, float8e4m3fn[256,64] w_a, float8e4m3fn[256,64] w_b, float[2,64] w_s) => (float[2,64] y) {
        a = DequantizeLinear <axis = 0, block_size = 128> (w_a, w_s)
        b = DequantizeLinear <axis = 0, block_size = 128> (w_b, w_s)
        p = MatMul(x, a) q = MatMul(x, b) y = Mul(p, q) }""",
        w_s=scales(2, 64),
    )
    done = optimized(proto)
    assert len(nodes(done, "Split")) == len(nodes(done, "QuantizeLinear")) == 1 and len(nodes(done, "MatMul")) == 4


# Rows, length of the sum, output channels, block; what auto does, and words of its reason.
CHOICES = {
    "few rows, two blocks": ((4, 256, 256, 128), True, "split into 2 products"),
    "as many products as it takes unasked": ((4, 512, 256, 128), True, "split into 4 products"),
    "one more": ((4, 640, 256, 128), False, "5 products"),
    "many rows": ((64, 256, 256, 128), False, "times the bytes of fp16"),
    "small blocks": ((4, 64, 256, 16), False, "times the bytes of fp16"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_auto_splits_where_that_moves_no_more_bytes_than_fp16(case, wish):
    (rows, summed, channels, block), split, said = CHOICES[case]
    proto = source(f"float[{rows},{summed}] x", (summed, channels), block, "y = MatMul(x, d)", 0)
    for blocks, wanted in (("auto", split), ("split", True), ("channel", False)):
        done = optimized(proto, recipe=wish(blocks))
        op = done.plan.ops["y"]
        assert bool(nodes(done, "Sum")) == wanted == (op.inputs[1].scale.origin == "given")
        # Both numbers, whatever is done.
        assert " dB" in op.why.text and "times the bytes of fp16" in op.why.text
        assert (blocks != "auto") or said in op.why.text
        assert bool([item for item in done.findings if item.code == "FG229"]) != wanted


def test_what_rounding_anew_does_not_change_is_not_split():
    proto = model(
        """(float[4,256] x, float8e4m3fn[256,64] w, float[2,64] w_s) => (float[4,64] y) {
        d = DequantizeLinear <axis = 0, block_size = 128> (w, w_s) y = MatMul(x, d) }""",
        w=np.tile(np.float32([448, -224, 1, 2]), (256, 16)),
        w_s=np.full((2, 64), 0.5),
    )
    done = optimized(proto)
    assert nodes(done, "Sum") == [] and "leaves as much of the weight" in done.plan.ops["y"].why.text


def test_a_single_block_is_one_scale_per_output_channel(wish):
    proto = source("float[4,100] x", (100, 48), 128, "y = MatMul(x, d)", 0)
    for blocks in ("auto", "split", "channel"):
        done = optimized(proto, recipe=wish(blocks))
        (weight,) = [node for node in nodes(done, "DequantizeLinear") if tensors.is_constant(node.inputs[0])]
        assert weight.attributes["axis"].as_int() == 1 and "block_size" not in weight.attributes
        assert nodes(done, "Sum") == nodes(done, "Split") == [] and done.plan.ops["y"].inputs[1].scale.origin == "given"


def test_an_open_number_of_rows_is_not_split_unasked():
    proto = source(*FORMS["a batch, any length"])
    done = fp8graph.optimize(proto, target=TARGET, plan_only=True)
    assert done.plan.ops["y"].inputs[1].scale.origin == "computed"
    assert "with an open number of rows" in done.plan.ops["y"].why.text
    few = fp8graph.optimize(proto, target=TARGET, plan_only=True, shapes={"x": (2, 4, 256)})
    assert few.plan.ops["y"].inputs[1].scale.origin == "given"
    # The largest of a profile counts.
    many = {"x": ((2, 1, 256), (2, 4, 256), (2, 512, 256))}
    wide = fp8graph.optimize(proto, target=TARGET, plan_only=True, shapes=many)
    assert wide.plan.ops["y"].inputs[1].scale.origin == "computed"


def test_targets_that_run_blocks_keep_them(wish):
    done = optimized(source(*FORMS["a MatMul"]), "reference", recipe=wish("split"))
    assert nodes(done, "Sum") == [] and len(nodes(done, "MatMul")) == 1


def test_a_recipe_says_one_of_three(wish):
    with refused(UsageError, "FG140", "'rows' is none of auto, split, channel"):
        optimized(source(*FORMS["a MatMul"]), recipe=wish("rows"))


def test_a_plan_is_replayed_byte_for_byte(tmp_path, wish):
    proto = source(*FORMS["a ragged last block"])
    optimized(proto, recipe=wish("split"), output=tmp_path / "a.onnx")
    fp8graph.optimize(proto, plan=tmp_path / "a.onnx.plan.json", output=tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@needs_rtx
@pytest.mark.parametrize("high", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("form", FORMS)
def test_an_engine_runs_every_part_in_fp8(form, high, tmp_path, wish):
    path, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    proto = source(*FORMS[form])
    ours = optimized(proto, recipe=wish("split"), high_precision_dtype=high, output=path)
    fp8graph.build(path, output=engine, target=TARGET)
    found = fp8graph.attest(engine, model=path)
    assert {key: item.verdict for key, item in found.verdicts.items()} == {"y": "fp8"}
    coarse = optimized(proto, recipe=wish("channel"), high_precision_dtype=high)
    assert ours.comparison.outputs["y"].sqnr_db > coarse.comparison.outputs["y"].sqnr_db + 1


@needs_rtx
@pytest.mark.parametrize("block", [128, 256])
def test_a_packed_qkv_product_may_be_split_and_has_one_scale_else(block, tmp_path):
    proto = model(
        f"""(float[1,8,256] x, float8e4m3fn[256,384] w, float[{256 // block},384] w_s) => (float[1,8,128] y)
        <int64[5] heads = {{1,8,3,4,32}}> {{
        d = DequantizeLinear <axis = 0, block_size = {block}> (w, w_s) a = MatMul(x, d) r = Reshape(a, heads)
        q, k, v = Split <axis = 2, num_outputs = 3> (r) p = Add(q, k) s = Add(p, v)
        y = Relu(s) }}""",
        w_s=scales(256 // block, 384),
    )
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto = onnx.shape_inference.infer_shapes(proto)
    path, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    done = optimized(proto, high_precision_dtype="fp16", output=path)
    said = done.plan.ops["a"].why.text
    assert ("split into 2 products" in said and "one scale would leave" in said) == (block == 128)
    assert ("packed qkv: runs in FP8 with one weight scale" in said) == (block == 256)
    fp8graph.build(path, output=engine, target=TARGET)
    assert fp8graph.attest(engine, model=path).verdicts["a"].verdict == "fp8"
