"""Codes times scale, whatever the scheme is called: ONNX Runtime finds the weight that the checkpoint stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import InputError
from fp8graph.importers.suffixes import ENDINGS
from tests.importers.making import Array, codes, config, linear, renamed, run, weight_in, write
from tests.small import contents, model, refused

OUT, IN = 136, 150  # the last blocks of 128 are cut
GRIDS: dict[str, tuple[int, ...]] = {
    "tensor, 0-d": (),
    "tensor, [1]": (1,),
    "channel, [out]": (OUT,),
    "channel, [out, 1]": (OUT, 1),
    "blocks": (2, 2),
    "groups of 15": (OUT, 10),
}


def scales(shape: tuple[int, ...], dtype: str) -> Array:
    """Positive numbers that the type holds exactly, as float32; powers of two for UE8M0."""
    steps = np.random.default_rng(5).integers(-6, 3, shape)
    numbers = np.exp2(steps.astype(np.float32)) * (1 if dtype == "F8_E8M0" else 1.375)
    return np.asarray(numbers, np.float32)


def spread(scale: Array, shape: tuple[int, int]) -> Array:
    """The scale of every element: blocks of 128, or of what divides the axis."""
    if scale.ndim < 2:
        return np.broadcast_to(scale.reshape(-1, 1), shape)
    for axis, size in enumerate(shape):
        count = scale.shape[axis]
        step = size // count if size % count == 0 and count != 2 else 128
        scale = np.repeat(scale, step, axis).take(range(size), axis)
    return scale


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F8_E8M0"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("layout", ["gemm", "matmul"])
def test_a_weight_comes_out_exact(grid: str, dtype: str, layout: str, tmp_path: Path):
    numbers, scale = codes((OUT, IN)), scales(GRIDS[grid], dtype)
    write(tmp_path / "m.safetensors", {"m.l.weight": ("F8_E4M3", numbers), "m.l.weight_scale": (dtype, scale)})
    given = linear((OUT, IN))
    if layout == "matmul":
        text = f"(float[n,{IN}] x, float[{IN},{OUT}] w) => (float[n,{OUT}] y) {{ y = MatMul(x, w) }}"
        given = renamed(model(text, w=np.zeros((IN, OUT))), w="l.weight")
    done = fp8graph.import_plan(tmp_path / "m.safetensors", model=given)
    assert np.array_equal(weight_in(done.model), numbers * spread(scale, (OUT, IN)))
    onnx.checker.check_model(done.model, full_check=True)
    assert [item.data_type for item in done.model.graph.initializer if "fp8" in item.name] == [17]
    assert done.rounded == ()


@pytest.mark.parametrize(
    ("dtype", "stored"), [("F8_E4M3", 17), ("F8_E5M2", 19), ("F8_E4M3FNUZ", 17), ("F8_E5M2FNUZ", 19)]
)
def test_every_fp8_type_is_read_and_fnuz_becomes_what_engines_have(dtype: str, stored: int, tmp_path: Path):
    numbers = codes((8, 16), dtype) / 4
    path = write(tmp_path / "m", {"l.weight": (dtype, numbers), "l.weight_scale": ("F32", np.float32([0.75]))})
    done = fp8graph.import_plan(path, model=linear((8, 16)))
    assert np.array_equal(weight_in(done.model), numbers * np.float32(0.75))
    assert stored in {item.data_type for item in done.model.graph.initializer}


def test_the_largest_fnuz_numbers_have_other_bits_and_the_same_value(tmp_path: Path):
    numbers = np.float32([[240, -240, 224, 0.5]])
    path = write(tmp_path / "m", {"l.weight": ("F8_E4M3FNUZ", numbers), "l.weight_scale": ("F32", np.float32([2]))})
    assert np.array_equal(weight_in(fp8graph.import_plan(path, model=linear((1, 4))).model), numbers * 2)


def test_bytes_are_exponents_where_they_scale(tmp_path: Path):
    """ModelOpt stores the scales of MXFP8 so: 127 is 1."""
    numbers, scale = codes((4, 64)), np.array([[127, 126]] * 4)
    path = write(tmp_path / "m", {"l.weight": ("F8_E4M3", numbers), "l.weight_scale": ("U8", scale)})
    expected = numbers * np.repeat(np.float32([[1, 0.5]] * 4), 32, 1)
    assert np.array_equal(weight_in(fp8graph.import_plan(path, model=linear((4, 64))).model), expected)


@pytest.mark.parametrize(
    "section",
    [
        {"quant_method": "fp8", "weight_block_size": [32, 16]},
        {"config_groups": {"group_0": {"weights": {"strategy": "block", "block_structure": [32, 16]}}}},
        {"config_groups": {"group_0": {"weights": {"strategy": "block", "block_structure": "32x16"}}}},
    ],
)
def test_the_block_that_the_config_says_counts(section: dict[str, Any], tmp_path: Path):
    config(tmp_path, **section)
    numbers, scale = codes((40, 24)), scales((2, 2), "F32")
    write(tmp_path / "a.safetensors", {"l.weight": ("F8_E4M3", numbers), "l.weight_scale_inv": ("F32", scale)})
    expected = numbers * np.repeat(np.repeat(scale, 32, 0)[:40], 16, 1)[:, :24]
    assert np.array_equal(weight_in(fp8graph.import_plan(tmp_path, model=linear((40, 24))).model), expected)


WEIGHTS = [row for row in ENDINGS if row.role in ("scale", "amax")]
INPUTS = [row for row in ENDINGS if row.role in ("input-scale", "input-amax")]


@pytest.mark.parametrize("row", WEIGHTS, ids=lambda row: row.ending)
def test_every_ending_of_a_weights_scale_is_read(row: Any, tmp_path: Path):
    numbers = codes((8, 16))
    given = np.float32(0.5) if row.role == "scale" else np.float32(224)  # 224 / 448
    given = np.float32([100, 224, 3]) if row.ending.endswith("_history") else given
    name = "l.weight" if row.of == "{}" else "l"
    path = write(tmp_path / "m", {"l.weight": ("F8_E4M3", numbers), name + row.ending: ("F32", np.asarray(given))})
    assert np.array_equal(weight_in(fp8graph.import_plan(path, model=linear((8, 16))).model), numbers / 2)


@pytest.mark.parametrize("row", INPUTS, ids=lambda row: row.ending)
def test_every_ending_of_an_inputs_scale_rounds_the_input(row: Any, tmp_path: Path):
    given = np.float32([0.5]) if row.role == "input-scale" else np.float32([100, 224, 3])
    name = "l.weight" if row.of == "{}" else "l"
    tensors = {"l.weight": ("F8_E4M3", codes((8, 16))), "l.weight_scale": ("F32", np.float32(1))}
    path = write(tmp_path / "m", tensors | {name + row.ending: ("F32", np.asarray(given))})
    done = fp8graph.import_plan(path, model=linear((8, 16)))
    assert done.rounded == ("x",)
    x = np.random.default_rng(3).standard_normal((5, 16)).astype(np.float32)
    rounded = (x / np.float32(0.5)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(0.5)
    plain = run(linear((8, 16), weight=codes((8, 16))), x=rounded)
    np.testing.assert_allclose(run(done.model, x=x), plain, rtol=1e-6)


def test_one_value_under_equal_scales_has_one_pair_and_under_others_its_own(tmp_path: Path):
    text = "(float[n,16] x, float[8,16] w_a, float[8,16] w_b, float[8,16] w_c) => (float[n,8] y) "
    text += "{ a = Gemm<transB=1>(x, w_a) b = Gemm<transB=1>(x, w_b) c = Gemm<transB=1>(x, w_c) y = Sum(a, b, c) }"
    given = renamed(model(text), w_a="a.weight", w_b="b.weight", w_c="c.weight")
    tensors = {}
    for name, scale in (("a", 0.5), ("b", 0.5), ("c", 0.25)):
        tensors[f"{name}.weight"] = ("F8_E4M3", codes((8, 16)))
        tensors[f"{name}.weight_scale"] = ("F32", np.float32(1))
        tensors[f"{name}.input_scale"] = ("BF16", np.float32([scale]))
    done = fp8graph.import_plan(write(tmp_path / "m", tensors), model=given)
    assert [node.op_type for node in done.model.graph.node].count("QuantizeLinear") == 2
    assert done.rounded == ("x", "x")


@pytest.mark.parametrize("ending", [row.ending for row in ENDINGS if row.role == "cache"])
def test_scales_of_caches_are_written_down(ending: str, tmp_path: Path):
    name = f"l.self_attn{ending}"
    tensors = {"l.weight": ("F8_E4M3", codes((8, 16))), "l.weight_scale": ("F32", np.float32(1))}
    done = fp8graph.import_plan(
        write(tmp_path / "m", tensors | {name: ("BF16", np.float32([0.5]))}), model=linear((8, 16))
    )
    assert done.caches == {name: 0.5}
    metadata = {item.key: item.value for item in done.model.metadata_props}
    assert json.loads(metadata["fp8graph.given_scales"]) == {name: 0.5}
    assert [(item.code, item.severity) for item in done.findings] == [("FG118", "info")]


def test_a_float_weight_with_a_given_scale_is_rounded_with_it(tmp_path: Path):
    """What Transformer Engine leaves: weights in bf16, and what they were multiplied by."""
    weight = np.random.default_rng(1).standard_normal((8, 16)).astype(ml_dtypes.bfloat16).astype(np.float32)
    path = write(
        tmp_path / "m", {"l.weight": ("BF16", weight), "l.weight_amax_history": ("F32", np.float32([0, 4.48]))}
    )
    found = weight_in(fp8graph.import_plan(path, model=linear((8, 16))).model)
    scale = np.float32(4.48) / np.float32(448)
    assert np.array_equal(found, (weight / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale)


def test_a_history_of_zeros_is_none(tmp_path: Path):
    path = write(
        tmp_path / "m", {"l.weight": ("BF16", np.ones((8, 16))), "l.weight_amax_history": ("F32", np.zeros(4))}
    )
    done = fp8graph.import_plan(path, model=linear((8, 16)))
    assert (done.weights, done.floats) == ({}, 1)


W = ("F8_E4M3", np.ones((8, 16)))
ONE = ("F32", np.float32(1))
NAN, INF = float("nan"), float("inf")
BAD: dict[str, tuple[dict[str, tuple[str, Any]], tuple[str, ...]]] = {
    "no scale": ({"l.weight": W}, ("has no scale", "l.weight")),
    "zero": ({"l.weight": W, "l.weight_scale": ("F32", np.float32(0))}, ("number 0 is 0",)),
    "negative": ({"l.weight": W, "l.weight_scale": ("F32", np.float32(-1))}, ("number 0 is -1",)),
    "NaN": ({"l.weight": W, "l.weight_scale": ("F32", np.float32([1] * 3 + [NAN] * 5))}, ("number 3 is NaN", "5 of 8")),
    "infinite": ({"l.weight": W, "l.weight_scale": ("F16", np.float32(INF))}, ("number 0 is inf",)),
    "E8M0 NaN": ({"l.weight": W, "l.weight_scale": ("F8_E8M0", np.float32(NAN))}, ("NaN",)),
    "empty": ({"l.weight": W, "l.weight_scale": ("F32", np.zeros(0))}, ("it is empty",)),
    "of integers": ({"l.weight": W, "l.weight_scale": ("I8", np.ones(1))}, ("it is I8",)),
    "seven rows": ({"l.weight": W, "l.weight_scale": ("F32", np.ones(7))}, ("its shape is [7], the weight's [8, 16]",)),
    "per column": ({"l.weight": W, "l.weight_scale": ("F32", np.ones(16))}, ("[16]",)),
    "too many axes": ({"l.weight": W, "l.weight_scale": ("F32", np.ones((2, 1, 1)))}, ("[2, 1, 1]",)),
    "ragged groups": ({"l.weight": W, "l.weight_scale": ("F32", np.ones((8, 3)))}, ("[8, 3]",)),
    "two scales": (
        {"l.weight": W, "l.weight_scale": ONE, "l.weight_scale_inv": ONE},
        ("has two scales", "l.weight_scale"),
    ),
    "weight NaN": (
        {"l.weight": ("F8_E4M3", np.full((8, 16), NAN)), "l.weight_scale": ONE},
        ("element [0, 0]", "128 of 128"),
    ),
    "E5M2 infinite": ({"l.weight": ("F8_E5M2", np.full((8, 16), INF)), "l.weight_scale": ONE}, ("not finite",)),
    "FNUZ NaN": ({"l.weight": ("F8_E4M3FNUZ", np.full((8, 16), NAN)), "l.weight_scale": ONE}, ("not finite",)),
    "float NaN": ({"l.weight": ("BF16", np.full((8, 16), NAN))}, ("not finite",)),
    "packed": ({"l.weight": ("U8", np.ones((8, 8))), "l.weight_scale": ONE}, ("stored as U8",)),
    "two levels": ({"l.weight": W, "l.weight_scale": ONE, "l.weight_scale_2": ONE}, ("import does not read", "NVFP4")),
    "zero point": (
        {"l.weight": W, "l.weight_scale": ONE, "l.weight_zero_point": ("F8_E4M3", np.ones(1))},
        ("a zero point is not zero",),
    ),
    "two inputs": ({"l.weight": W, "l.weight_scale": ONE, "l.input_scale": ("F32", np.ones(2))}, ("[2]",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_number_is_refused_and_nothing_is_written(case: str, tmp_path: Path):
    tensors, says = BAD[case]
    path = write(tmp_path / "m.safetensors", tensors)
    before = contents(tmp_path)
    with refused(InputError, "FG116", str(path), *says):
        fp8graph.import_plan(path, model=linear((8, 16)), output=tmp_path / "o.onnx", allow_unmatched="*")
    assert contents(tmp_path) == before


def test_zero_points_of_zero_are_passed_over(tmp_path: Path):
    zero = ("F8_E4M3", np.zeros(1))
    tensors = {"l.weight": W, "l.weight_scale": ONE, "l.weight_zero_point": zero, "l.input_zero_point": zero}
    done = fp8graph.import_plan(write(tmp_path / "m", tensors), model=linear((8, 16)))
    assert done.unmatched == {"checkpoint": [], "model": []}


@pytest.mark.parametrize("transposed", [False, True])
def test_stacked_experts_keep_their_blocks(transposed: bool, tmp_path: Path):
    """[experts, out, in] with a scale for each block of 16x16 of each expert, as transformers stacks them."""
    config(tmp_path, weight_block_size=[16, 16])
    numbers, scale = codes((2, 40, 24)), scales((2, 3, 2), "F32")
    tensors = {"m.experts.down_proj": ("F8_E4M3", numbers), "m.experts.down_proj_scale_inv": ("F32", scale)}
    write(tmp_path / "a.safetensors", tensors)
    shape, body = ("2,40,24", "t = Transpose<perm=[0,2,1]>(w) y = MatMul(x, t)")
    if transposed:
        shape, body = ("2,24,40", "y = MatMul(x, w)")
    text = f"(float[2,n,24] x, float[{shape}] w) => (float[2,n,40] y) {{ {body} }}"
    done = fp8graph.import_plan(tmp_path, model=renamed(model(text), w="experts.down_proj"))
    found = run(done.model, x=np.stack([np.eye(24, dtype=np.float32)] * 2)).swapaxes(1, 2)
    expected = numbers * np.repeat(np.repeat(scale, 16, 1)[:, :40], 16, 2)[:, :, :24]
    assert np.array_equal(found, expected)


def test_a_table_of_embeddings_in_fp8_is_read_through_gather(tmp_path: Path):
    text = "(int64[n] i, float[32,16] w) => (float[n,16] y) { y = Gather(w, i) }"
    tensors = {"e.weight": ("F8_E4M3", codes((32, 16))), "e.weight_scale": ("F32", np.float32([0.5]))}
    done = fp8graph.import_plan(write(tmp_path / "m", tensors), model=renamed(model(text), w="e.weight"))
    assert np.array_equal(run(done.model, i=np.arange(32)), codes((32, 16)) / 2)
