"""Every registered pass holds to what its class promises, on every model of the corpus; and each has a twin here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph_passes
from fp8graph.core import registry
from fp8graph.core.check import check
from fp8graph.core.passes import RewritePass, Stage
from fp8graph.testing import check_pass, corpus, outputs, planned
from tests.small import model


def _named() -> onnx.ModelProto:
    """Products that the checkpoint they came from names: the text form has no metadata of nodes."""
    proto = onnx.ModelProto.FromString(corpus()["gemm"].SerializeToString())
    for node in proto.graph.node:
        if node.op_type == "Gemm":
            node.metadata_props.append(onnx.StringStringEntryProto(key="fp8graph.high", value="its ignore names y"))
    return proto


# An activation that came quantized beside a weight that did not.
BESIDE = """(float[4,16] x, float[16,16] w) => (float[4,16] y) <float s = {0.0625}> {
    q = QuantizeLinear <output_dtype = 17> (x, s) d = DequantizeLinear (q, s) y = MatMul (d, w) }"""
# Channels of several sizes, made by a normalization and by a convolution.
MIGRATED = """(float[4,32] x, float[32] w_g, float[32] w_b, float[32,32] w) => (float[4,32] y) {
    n = LayerNormalization (x, w_g, w_b) y = MatMul (n, w) }"""
EQUALIZED = """(float[2,8,8,8] x, float[16,8,3,3] w, float[16,1,3,3] w_d) => (float[2,16,4,4] y) {
    c = Conv (x, w) r = Relu (c) y = Conv <group = 16> (r, w_d) }"""
SPREAD = 2.0 ** np.arange(-8, 8)
MODELS = corpus() | {
    "named": _named(),
    "beside": model(BESIDE),
    "migrated": model(MIGRATED, w_g=np.repeat(SPREAD, 2)),
    "equalized": model(EQUALIZED, w=np.ones((16, 8, 3, 3)) * SPREAD[:, None, None, None]),
}
# Passes that do nothing unless they are asked to: on which models, with which options, and how they are checked.
ASKED = {
    "write-fp4-quantization": (
        ["gemm", "if_captured", "loops"],
        {"recipe": "nvfp4"},
        {"highs": ("fp16", "bf16"), "target": "tensorrt-rtx:sm120"},
    ),
    "write-mxfp8-quantization": (
        ["gemm", "if_captured", "loops"],
        {"recipe": "mxfp8"},
        {"highs": ("fp16", "bf16"), "target": "tensorrt:sm100"},
    ),
    "migrate-channels": (["migrated"], {"recipe": "int8"}, {"highs": ("keep", "fp16")}),
    "equalize-channels": (["equalized"], {"recipe": "int8"}, {"highs": ("keep", "fp16")}),
    "hold-caches": (["kv_cache"], {"kv_cache": "fp8"}, {}),
    "split-weight-blocks": (["block_weights"], {}, {"target": "tensorrt-rtx:sm89"}),
    "restore-given-weights": (["given_weights"], {"nodes_to_exclude": ("middle", "again", "product")}, {}),
    "write-quantized-attention": (
        ["long_attention"],
        {"attention": "must-fuse"},
        {"highs": ("fp16", "bf16"), "target": "tensorrt-rtx:sm89"},
    ),
}
PASSES = [entry for entry in registry.catalog() if entry.owner == "fp8graph"]


@pytest.mark.parametrize("name", [entry.name for entry in PASSES])
def test_a_pass_keeps_its_promises_and_finds_something_to_do(name):
    item = registry.create(name)
    # A fold sees the types of scales and values: fp16 shows what bf16 would.
    folds = isinstance(item, RewritePass) and item.stage == Stage.FOLD
    if name in ASKED:
        on, options, how = ASKED[name]
        done = check_pass(item, {model: MODELS[model] for model in on}, options=options, **how)
    else:
        done = check_pass(item, MODELS, highs=("keep", "fp16") if folds else ("keep", "fp16", "bf16"))
    assert sum(done.values()) > 0, "no model of the corpus gives it anything to do: add one"


# fp32 is what most keep; the model in fp16 is taken there, too
TOGETHER = [*((name, high) for name in MODELS for high in ("keep", "fp16", "bf16")), ("half", "fp32")]


@pytest.mark.parametrize(("name", "high"), TOGETHER)
def test_all_passes_together_yield_valid_onnx_that_computes_nearly_the_same(name, high):
    prepared = planned(MODELS[name], high=high)
    onnx.checker.check_model(ir.to_proto(prepared.model), full_check=True)
    assert [item for item in check(prepared.model, prepared.ctx.target) if item.severity == "error"] == []
    feed = prepared.feeds[0]
    before, after = (outputs(item, feed, by_reference=False) for item in (prepared.before, prepared.model))
    for output, array in before.items():
        assert after[output].dtype == array.dtype
        old, new = array.astype(np.float64), after[output].astype(np.float64)
        noise = ((old - new) ** 2).sum()
        # two products in FP8 behind each other leave some 25 dB; one attention behind another is worst
        assert noise == 0 or 10 * np.log10((old**2).sum() / noise) > 12


def test_every_pass_file_has_a_twin():
    folder = Path(fp8graph_passes.__file__).parent
    here = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    lonely = [path.name for path in folder.glob("[!_]*.py") if f"test_{path.name}" not in here]
    assert lonely == []


def test_every_model_of_the_corpus_says_what_it_is_and_is_small():
    for path in (Path(__file__).parents[1] / "corpus").glob("*.onnxtxt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("# ") and lines[0].rstrip().endswith((".", ",", ";")), path.name
        assert len(lines) < 40, path.name
        assert path.stem in MODELS
        onnx.checker.check_model(MODELS[path.stem], full_check=True)
