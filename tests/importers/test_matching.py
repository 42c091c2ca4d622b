"""Every parameter finds its initializer: by name, by the exporter's metadata, by value; what does not is listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import InputError, UsageError
from tests.conftest import SHARED
from tests.importers.making import Array, codes, held, linear, renamed, run, weight_in, write
from tests.small import contents, model, refused

GRAPHS = Path(__file__).parent / "graphs"
ZOO = SHARED / "zoo" / "fp8_ckpt"
FOLDED = "pkg.onnxscript.optimizer.folded_from"
SCOPES = "pkg.torch.onnx.name_scopes"
ONE = ("F32", np.float32(1))


def checkpoint(path: Path, **weights: Array) -> Path:
    """FP8 weights with scale 1; `__` stands for a dot."""
    tensors: dict[str, tuple[str, Any]] = {}
    for name, array in weights.items():
        tensors[name.replace("__", ".")] = ("F8_E4M3", array)
        tensors[name.replace("__", ".") + "_scale"] = ONE
    return write(path, tensors)


def matmul(
    size: tuple[int, int], weight: Array, *, name: str = "val_1", folded: str = "", scopes: str = "", node: str = ""
) -> onnx.ModelProto:
    """y = x W with [in, out], as an exporter leaves a Linear."""
    text = f"(float[n,{size[0]}] x, float[{size[0]},{size[1]}] w) => (float[n,{size[1]}] y) {{ y = MatMul(x, w) }}"
    proto = renamed(model(text, w=weight), w=name)
    if folded:
        info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size)
        info.metadata_props.add(key=FOLDED, value=repr([folded]))
        proto.graph.value_info.append(info)
    if scopes:
        proto.graph.node[0].metadata_props.add(key=SCOPES, value=scopes)
    proto.graph.node[0].name = node or "n"
    return proto


W = codes((16, 16))
WAYS: dict[str, tuple[dict[str, Any], str, str]] = {
    "folded": ({"folded": "a.q.weight"}, "a__q__weight", "folded_from"),
    "folded, with a prefix": ({"folded": "a.q.weight"}, "model__a__q__weight", "folded_from"),
    "folded, without": ({"folded": "model.a.q.weight"}, "a__q__weight", "folded_from"),
    "scope of dynamo": ({"scopes": "['', 'a', 'a.q', 'linear']"}, "a__q__weight", "scope"),
    "scope of TorchScript": ({"node": "/a/q/MatMul"}, "model__a__q__weight", "scope"),
    "Sequential": ({"node": "/blocks/blocks.0/block/block.1/MatMul"}, "blocks__0__block__1__weight", "scope"),
    "no metadata": ({}, "a__q__weight", "value"),
}


@pytest.mark.parametrize("case", WAYS)
def test_a_folded_weight_is_found_and_transposed(case: str, tmp_path: Path):
    """The numbers in the graph are others, but where the value alone can tell."""
    how, name, by = WAYS[case]
    before = W.T * np.float32(1.01) if by == "value" else np.zeros((16, 16))
    done = fp8graph.import_plan(checkpoint(tmp_path / "m", **{name: W}), model=matmul((16, 16), before, **how))
    assert [item["by"] for item in done.weights.values()] == [by]
    assert np.array_equal(weight_in(done.model), W)


def test_values_tell_how_a_square_weight_lies_where_metadata_is_wrong(tmp_path: Path):
    path = checkpoint(tmp_path / "m", a__q__weight=W)
    done = fp8graph.import_plan(path, model=matmul((16, 16), W, folded="a.q.weight"))
    assert np.array_equal(weight_in(done.model).T, W)


def test_a_name_that_was_kept_is_not_transposed(tmp_path: Path):
    done = fp8graph.import_plan(
        checkpoint(tmp_path / "m", a__q__weight=W), model=matmul((16, 16), W * 0, name="a.q.weight")
    )
    assert np.array_equal(weight_in(done.model).T, W)


def test_broken_metadata_says_nothing(tmp_path: Path):
    given = matmul((16, 16), np.zeros((16, 16)), folded="a.q.weight", scopes="['', __import__('os')]")
    given.graph.value_info[0].metadata_props[0].value = "[[[["
    with refused(InputError, "FG117", "val_1"):
        fp8graph.import_plan(checkpoint(tmp_path / "m", a__q__weight=W), model=given)


MERGED = """(float[n,16] x, float[16,16] w_a, float[16] w_n) => (float[n,16] y) {
    a = MatMul(x, w_a) b = Mul(a, w_n) c = MatMul(b, w_a) y = Mul(c, w_n)
}"""


def merged() -> onnx.ModelProto:
    """Two layers whose parameters were equal as the exporter saw them, and are one now."""
    proto = renamed(model(MERGED, w_n=np.ones(16)), w_a="val_3", w_n="l.0.norm.weight")
    for node, scope in zip(proto.graph.node, ("l.0.q", "l.0.norm", "l.1.q", "l.1.norm"), strict=True):
        node.metadata_props.add(key=SCOPES, value=repr(["", scope, "f"]))
    return proto


def test_parameters_that_an_exporter_merged_become_two_again(tmp_path: Path):
    a, b = codes((16, 16), seed=1), codes((16, 16), seed=2)
    m, n = np.arange(16) / 8, np.arange(16) / 4
    tensors: dict[str, Any] = {"l.0.norm.weight": ("BF16", m), "l.1.norm.weight": ("BF16", n)}
    for name, weight in (("l.0.q", a), ("l.1.q", b)):
        tensors |= {f"{name}.weight": ("F8_E4M3", weight), f"{name}.weight_scale": ONE}
    done = fp8graph.import_plan(write(tmp_path / "f", tensors), model=merged())
    x = np.eye(16, dtype=np.float32)
    np.testing.assert_allclose(run(done.model, x=x), ((a.T * m) @ b.T * n).astype(np.float32), rtol=1e-6)
    assert done.unmatched == {"checkpoint": [], "model": []}
    # equal ones stay one
    tensors |= {"l.1.norm.weight": ("BF16", m), "l.1.q.weight": ("F8_E4M3", a)}
    done = fp8graph.import_plan(write(tmp_path / "f", tensors), model=merged())
    assert [node.op_type for node in done.model.graph.node].count("DequantizeLinear") == 1
    assert done.unmatched == {"checkpoint": [], "model": []}


def test_a_tied_weight_that_was_copied_is_found_in_both_places(tmp_path: Path):
    table = codes((32, 16))
    text = (
        "(int64[n] i, float[32,16] w_e, float[16,32] w_h) => (float[n,32] y) { h = Gather(w_e, i) y = MatMul(h, w_h) }"
    )
    given = renamed(model(text, w_e=table * 3, w_h=table.T * 3), w_e="embed.weight", w_h="onnx::MatMul_9")
    done = fp8graph.import_plan(write(tmp_path / "m", {"model.embed.weight": ("BF16", table)}), model=given)
    assert np.array_equal(held(done.model)["onnx::MatMul_9"], table.T)
    assert done.unmatched == {"checkpoint": [], "model": []}


def test_a_reader_in_a_branch_reads_the_weight_there(tmp_path: Path):
    text = """(float[n,16] x, bool c, float[8,16] w) => (float[n,8] y) {
        y = If(c) <then_branch = t () => (float[n,8] p) { p = Gemm<transB=1>(x, w) },
                   else_branch = e () => (float[n,8] q) { r = Gemm<transB=1>(x, w) q = Neg(r) }>
    }"""
    given = model(text, w=np.zeros((8, 16)))
    path = checkpoint(tmp_path / "m", w=codes((8, 16)))
    done = fp8graph.import_plan(path, model=given)
    onnx.checker.check_model(done.model, full_check=True)
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    for condition, sign in ((True, 1), (False, -1)):
        found = run(done.model, x=x, c=np.asarray(condition))
        np.testing.assert_allclose(found, sign * (x @ codes((8, 16)).T), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("high", ["float16", "bfloat16"])
def test_a_graph_in_half_precision_has_its_scales_in_float32(high: str, tmp_path: Path):
    given = model(f"({high}[n,16] x, {high}[8,16] w) => ({high}[n,8] y) {{ y = Gemm<transB=1>(x, w) }}")
    tensors = {"w": ("F8_E4M3", codes((8, 16))), "w_scale": ("F32", np.float32(0.3)), "w_activation_scale": ONE}
    done = fp8graph.import_plan(write(tmp_path / "m", tensors), model=given)
    onnx.checker.check_model(done.model, full_check=True)
    assert [item.op_type for item in done.model.graph.node].count("Cast") == 3
    if high == "float16":
        found = run(done.model, x=np.eye(16, dtype=np.float16))
        assert np.array_equal(found.T, (codes((8, 16)) * np.float32(0.3)).astype(np.float16))


def test_a_number_too_large_for_the_graphs_type_is_refused(tmp_path: Path):
    given = model("(float16[n,4] x, float16[4,4] w) => (float16[n,4] y) { y = MatMul(x, w) }")
    path = write(tmp_path / "m", {"w": ("BF16", np.full((4, 4), 1e5))})
    with refused(InputError, "FG116", "overflows", "65504"):
        fp8graph.import_plan(path, model=given, output=tmp_path / "o.onnx")
    assert list(contents(tmp_path)) == ["m"]


def test_what_finds_no_counterpart_is_listed_and_may_be_allowed(tmp_path: Path):
    path = checkpoint(tmp_path / "m", l__weight=codes((8, 16)), other__weight=W, rotary__inv_freq=np.ones(7))
    text = "(float[n,16] x, float[8,16] w, float[8,8] w_b) => (float[n,8] y) "
    text += "{ h = Gemm<transB=1>(x, w) y = MatMul(h, w_b) }"
    given = renamed(model(text), w="l.weight")
    before = contents(tmp_path)
    with pytest.raises(InputError) as raised:
        fp8graph.import_plan(path, model=given, output=tmp_path / "o.onnx", allow_unmatched=["rotary.*"])
    assert (raised.value.code, raised.value.status) == ("FG117", 3)
    assert "checkpoint: other.weight; model: w_b" in raised.value.why
    assert [(item.severity, item.op) for item in raised.value.findings] == [
        ("error", "other.weight"), ("warning", "rotary.inv_freq"), ("error", "w_b")
    ]  # fmt: skip
    assert contents(tmp_path) == before
    done = fp8graph.import_plan(path, model=given, allow_unmatched=["rotary.*", "other.*", "w_?"])
    assert done.unmatched == {"checkpoint": ["other.weight", "rotary.inv_freq"], "model": ["w_b"]}
    assert [(item.code, item.severity) for item in done.findings] == [("FG117", "warning")] * 3


def test_a_scale_whose_weight_is_missing_is_left_over(tmp_path: Path):
    tensors = {"l.weight": ("F8_E4M3", codes((8, 16))), "l.weight_scale": ONE, "k.weight_scale": ONE}
    with refused(InputError, "FG117", "checkpoint: k.weight_scale"):
        fp8graph.import_plan(write(tmp_path / "m", tensors), model=linear((8, 16)))


def test_a_weight_of_another_shape_is_another_architectures(tmp_path: Path):
    path = checkpoint(tmp_path / "m", l__weight=codes((8, 24)))
    with refused(InputError, "FG117", "'l.weight' is [8, 16] in the model, 'l.weight' [8, 24]"):
        fp8graph.import_plan(path, model=linear((8, 16)), allow_unmatched="*")


def test_a_convolution_that_swallowed_a_batchnorm_keeps_its_numbers(tmp_path: Path):
    text = "(float[1,4,8,8] x, float[8,4,3,3] w) => (float[1,8,6,6] y) { y = Conv(x, w) }"
    given = renamed(model(text), w="c.weight")
    given.graph.node[0].metadata_props.add(key="pkg.onnxscript.rewriter.rule_name", value="FuseBatchNormIntoConv")
    with refused(InputError, "FG117", "checkpoint: c.weight; model: c.weight"):
        fp8graph.import_plan(checkpoint(tmp_path / "m", c__weight=codes((8, 4, 3, 3))), model=given)


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        ({"from_": "safetensor"}, "FG101", "did you mean 'safetensors'?"),
        ({"output": "missing/o.onnx"}, "FG112", "missing"),
        ({"output": "m"}, "FG103", "overwrite an input"),
        ({"allow_unmatched": 3}, "FG100", "allow_unmatched"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_read(asked: dict[str, Any], code: str, says: str, tmp_path: Path):
    path = checkpoint(tmp_path / "m", l__weight=codes((8, 16)))
    if "output" in asked:
        asked = asked | {"output": tmp_path / asked["output"]}
    with refused(UsageError, code, says):
        fp8graph.import_plan(path, model=linear((8, 16)), **asked)


def filled(path: Path) -> onnx.ModelProto:
    """A graph of an exporter, whose weights were left out: random ones, tied ones alike."""
    proto = onnx.load(path)
    random = np.random.default_rng(0)
    table = None
    for tensor in proto.graph.initializer:
        if tensor.raw_data or tensor.data_type != onnx.TensorProto.FLOAT or tensor.float_data:
            continue
        array = random.standard_normal(tuple(tensor.dims)).astype(np.float32)
        if tensor.name == "embed_tokens.weight":
            table = array
        if tensor.name == "onnx::MatMul_683" and table is not None:
            array = table.T
        tensor.raw_data = np.ascontiguousarray(array).tobytes()
    return proto


CASES = [
    ("block_f32", "two", 50), ("block_sharded", "two", 50), ("block_ragged", "ragged", 50), ("block_f16", "ragged", 50),
    ("block_ct", "ragged", 50), ("block_moe", "moe", 50), ("static_fp8", "ragged", 15), ("tensor_ct", "ragged", 15),
]  # fmt: skip


@pytest.mark.shared
@pytest.mark.parametrize("exporter", ["dynamo", "ts"])
@pytest.mark.parametrize(("kind", "graph", "least"), CASES)
def test_a_checkpoint_gives_its_own_logits_to_the_graph_of_either_exporter(
    kind: str, graph: str, least: int, exporter: str
):
    """The numbers in the graph are random: all that counts comes from the checkpoint."""
    folder = ZOO / f"fp8_ckpt_{kind}"
    done = fp8graph.import_plan(folder, model=filled(GRAPHS / f"{graph}.{exporter}.onnx"))
    reference = np.load(folder / "reference.npz")
    ids = reference["input_ids"]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    found, expected = run(done.model, **feeds), reference["logits"]
    assert 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum()) >= least
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    assert len(done.weights) >= 7 * layers
    assert bool(done.rounded) == (least < 50)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("missing_shard", "FG115", "model-00003-of-00003.safetensors"),
        ("index_mismatch", "FG115", "mlp.up_proj.weight"),
        ("truncated", "FG115", "truncated"),
        ("missing_scale", "FG116", "mlp.down_proj.weight"),
        ("nan_scale", "FG116", "number 3 is NaN"),
        ("zero_scale", "FG116", "number 0 is 0"),
        ("scale_shape", "FG116", "its shape is [2, 1]"),
        ("nan_weight", "FG116", "element [3, 5]"),
        ("other_arch", "FG117", "model_type 'llama'"),
    ],
)
def test_a_broken_checkpoint_is_refused_and_nothing_is_written(kind: str, code: str, says: str, tmp_path: Path):
    with refused(InputError, code, says, f"fp8_ckpt_bad_{kind}"):
        fp8graph.import_plan(
            ZOO / f"fp8_ckpt_bad_{kind}", model=filled(GRAPHS / "ragged.dynamo.onnx"), output=tmp_path / "o.onnx"
        )
    assert contents(tmp_path) == {}
