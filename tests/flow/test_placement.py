"""What placement promises, read in engines: every planned op runs in FP8, whatever lies around it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.cli.main import main
from fp8graph.testing import corpus
from tests.small import CONCAT, feeds, model, needs_rtx

MOVED = """(float[1,16,32] x, float[32,32] w_a, float[16,16] w_b) => (float[1,16,32] y, float[1,32,16] z) {
    h = Relu(x)
    y = MatMul(h, w_a)
    t = Transpose <perm = [0, 2, 1]> (h)
    z = MatMul(t, w_b)
}"""
RESIDUAL = """(float[1,16,8,8] x, float[16,16,3,3] w_a, float[16,16,3,3] w_b) => (float[1,16,8,8] y) {
    h = Relu(x)
    a = Conv <pads = [1, 1, 1, 1]> (h, w_a)
    f = Relu(a)
    b = Conv <pads = [1, 1, 1, 1]> (f, w_b)
    s = Add(b, h)
    y = Relu(s)
}"""
EMBEDDING = """(int64[1,16] i, float[512,64] w_t, float[64] w_n, float[64,64] w_a) => (float[1,16,64] y) {
    e = Gather <axis = 0> (w_t, i)
    n = LayerNormalization(e, w_n)
    y = MatMul(n, w_a)
}"""
BRANCHES = """(float[2,32] x, bool[1] c, float[32,32] w_a, float[32,32] w_b) => (float[2,32] y) {
    h = Relu(x)
    y = If(c) <then_branch = t () => (float[2,32] p) { p = MatMul(h, w_a) },
               else_branch = e () => (float[2,32] q) { q = MatMul(h, w_b) }>
}"""
TRANSPOSED = """(float[1,8,8,8] x, float[8,8,3,3] w_a, float[8,8,3,3] w_b) => (float[1,8,10,10] y) {
    h = Relu(x)
    c = Conv <pads = [1, 1, 1, 1]> (h, w_b)
    y = ConvTranspose(c, w_a)
}"""


def every_graph(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The main graph and all bodies."""
    found = [proto.graph]
    for graph in found:
        found += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return found


@pytest.mark.parametrize("high", ["keep", "fp16"])
@pytest.mark.parametrize("name", sorted(corpus()))
def test_a_tensor_has_one_pair_of_a_scale_and_none_dangles(name, high):
    proto = corpus()[name]
    done = fp8graph.optimize(
        proto, data="random", samples=2, high_precision_dtype=high, allow_unquantized=True, compare=False
    )
    graphs = every_graph(done.model)
    came = {node.name for graph in every_graph(proto) for node in graph.node}
    read = {name for graph in graphs for node in graph.node for name in node.input}
    read |= {value.name for graph in graphs for value in graph.output}
    for graph in graphs:
        scales = {item.name: item.raw_data or str(item) for item in graph.initializer}
        pairs = [(n.input[0], scales[n.input[1]]) for n in graph.node if n.op_type == "QuantizeLinear"]
        if name not in ("quantized", "other_tools"):  # which came with pairs of their own
            assert len(pairs) == len(set(pairs))
        lost = {n.name for n in graph.node if "quantize" in n.op_type.lower() and not set(n.output) & read}
        assert lost <= came


CASES = {  # model, options, ops that run in FP8
    "data movement": (MOVED, [], 2),
    "concat": (CONCAT, ["--recipe", "concat.toml"], 4),
    "residual": (RESIDUAL, ["--passes", "share-residual"], 2),
    "embedding": (EMBEDDING, ["--passes", "store-embeddings"], 1),
    "both branches of an If": (BRANCHES, [], 2),
}


def attested(folder: Path, text: str, options: list[str], high: str, capsys) -> dict:
    """What `build --attest --json` says of a model that was optimized with these options."""
    proto = model(text)
    onnx.save(proto, folder / "m.onnx")
    data = feeds(proto)
    np.savez(folder / "d.npz", **{name: np.stack([feed[name] for feed in data]) for name in data[0]})
    (folder / "concat.toml").write_text('extends = "fp8-default"\n[quantize]\nconcat = true\n')
    target = ["--target", "tensorrt-rtx:sm89", "--json"]
    asked = [*target, "--data", "d.npz", "--high-precision-dtype", high, *options]
    assert main(["optimize", "m.onnx", "-o", "o.onnx", *asked]) == 0, capsys.readouterr()
    capsys.readouterr()
    status = main(["build", "o.onnx", "-o", "o.engine", *target, "--attest"])
    found = json.loads(capsys.readouterr().out)
    assert status == 0, found
    return found["result"]["attestation"]


@needs_rtx
@pytest.mark.parametrize("high", ["keep", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_every_planned_op_runs_in_fp8(case, high, tmp_path, monkeypatch, capsys):
    text, options, planned = CASES[case]
    monkeypatch.chdir(tmp_path)
    assert attested(tmp_path, text, options, high, capsys)["counts"] == {"fp8": planned}


@needs_rtx
def test_an_embedding_in_fp8_is_stored_so_in_the_engine(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = []
    for name, options in (("plain", []), ("stored", ["--passes", "store-embeddings"])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        attested(tmp_path / name, EMBEDDING, options, "keep", capsys)
        sizes.append((tmp_path / name / "o.engine").stat().st_size)
    assert sizes[0] - sizes[1] > 512 * 64 * 2  # of four bytes an element one is left


@needs_rtx
def test_a_transposed_convolution_beside_bf16_builds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert attested(tmp_path, TRANSPOSED, [], "bf16", capsys)["counts"] == {"fp8": 1}
