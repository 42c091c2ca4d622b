"""Whatever kind of model comes in, the same kind goes out, and the caller's own object stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest

import fp8graph
from tests.small import feeds, model, sha

TEXT = """(float[n,8] x, float[8,8] w, float[8,8] w_two) => (float[n,8] y) {
    h = MatMul(x, w)
    r = Relu(h)
    y = MatMul(r, w_two)
}"""
KINDS = ["proto", "ir", "graphsurgeon", "path"]


def given(kind: str, folder: Path) -> Any:
    """The same model as each kind of object."""
    proto = model(TEXT)
    if kind == "proto":
        return proto
    if kind == "ir":
        return ir.from_proto(proto)
    if kind == "graphsurgeon":
        return gs.import_onnx(proto)
    onnx.save(proto, str(folder / "m.onnx"))
    return folder / "m.onnx"


def spelt(thing: Any) -> bytes | str:
    """The bytes of an object, to be compared before and after."""
    if isinstance(thing, onnx.ModelProto):
        return thing.SerializeToString(deterministic=True)
    if isinstance(thing, ir.Model):
        return ir.to_proto(thing).SerializeToString(deterministic=True)
    if isinstance(thing, gs.Graph):
        return gs.export_onnx(thing, do_type_check=False).SerializeToString(deterministic=True)
    return sha(thing)


def as_proto(thing: Any) -> onnx.ModelProto:
    if isinstance(thing, ir.Model):
        return ir.to_proto(thing)
    return gs.export_onnx(thing) if isinstance(thing, gs.Graph) else thing


@pytest.mark.parametrize("kind", KINDS)
def test_what_came_in_goes_out_and_the_callers_object_is_unchanged(tmp_path, kind):
    thing = given(kind, tmp_path)
    before = spelt(thing)
    done = fp8graph.optimize(thing, data=feeds(model(TEXT)))
    assert spelt(thing) == before
    assert type(done.model) is (onnx.ModelProto if kind == "path" else type(thing))
    assert done.model is not thing
    types = [node.op_type for node in as_proto(done.model).graph.node]
    assert types.count("QuantizeLinear") == 2 and types.count("DequantizeLinear") == 4
    assert done.files == () and done.planned == 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_written_to_the_same_bytes(tmp_path, kind):
    (tmp_path / "in").mkdir()
    thing, out = given(kind, tmp_path / "in"), tmp_path / "out.onnx"
    done = fp8graph.optimize(thing, data=feeds(model(TEXT)), output=out)
    assert {Path(file.path).name for file in done.files} == {"out.onnx", "out.onnx.plan.json"}
    # GraphSurgeon spells interface types and names of its own; the others agree to the byte
    reference = fp8graph.optimize(model(TEXT), data=feeds(model(TEXT)), output=tmp_path / "proto.onnx")
    if kind != "graphsurgeon":
        assert sha(out) == reference.files[0].sha256
    weights = {tensor.name: tensor.raw_data for tensor in onnx.load(str(out)).graph.initializer}
    assert weights == {t.name: t.raw_data for t in onnx.load(str(tmp_path / "proto.onnx")).graph.initializer}


def test_weights_in_files_may_come_as_an_object_of_onnx_ir(tmp_path):
    """Such an object knows its folder: its weights are read from there, and lie inside what goes out."""
    text = TEXT.replace("8", "64")
    proto = model(text)
    onnx.save(proto, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=64)
    thing = ir.load(tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    fp8graph.optimize(thing, data=feeds(model(text)), output=out, nodes_to_exclude=["h"])
    (tmp_path / "w.bin").unlink()
    made = onnx.load(str(out))
    assert not any(tensor.data_location for tensor in made.graph.initializer)
    kept = next(tensor for tensor in made.graph.initializer if tensor.name == "w")
    assert onnx.numpy_helper.to_array(kept).shape == (64, 64)


def test_a_pipeline_alone_returns_the_same_kind_too():
    proto = model("(float[2,8] x) => (float[2,8] y) { c = Constant <value_float = 2.0> () y = Mul(x, c) }")
    before = proto.SerializeToString()
    for thing in (proto, ir.from_proto(proto), gs.import_onnx(proto)):
        made = fp8graph.Pipeline(["lift-constants"])(thing)
        assert type(made) is type(thing)
        assert [node.op_type for node in as_proto(made).graph.node] == ["Mul"]
    assert proto.SerializeToString() == before
