"""What is not rewritten stays as it was: every field of a model, but for what docs/fidelity.md lists."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import fp8graph
from fp8graph.flow import Optimized
from fp8graph.numerics.ranges import Ranges, Stat
from fp8graph.testing.models import from_text
from tests.conftest import ROOT
from tests.hard.full import META, everything, sparse
from tests.hard.judging import graphs, products
from tests.small import feeds, model

NOTHING = fp8graph.Pipeline([])


def same(made: onnx.ModelProto, wanted: onnx.ModelProto) -> bool:
    """Whether two models are equal in every field, order included."""
    return bool(made.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True))


def spelt(message: Any) -> Any:
    """The message with empty texts written out where onnx_ir does: in opset imports, and as they were in tensors."""
    if isinstance(message, TensorProto):
        return message
    for kind, value in message.ListFields():
        if kind.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                spelt(item)
        elif isinstance(value, str) and not value:
            message.ClearField(kind.name)
    if isinstance(message, onnx.OperatorSetIdProto) and not message.domain:
        message.domain = ""
    return message


def normal(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The one thing of `everything` that onnx_ir spells in another way."""
    for node in proto.graph.node:
        if node.domain == "ai.onnx":
            node.ClearField("domain")
    return proto


def written(folder: Path, proto: onnx.ModelProto, *, beside: bool = False) -> Path:
    """The model as a file, its tensors inside or beside it."""
    folder.mkdir(exist_ok=True)
    if beside:
        kept = onnx.ModelProto.FromString(proto.SerializeToString())
        onnx.save(kept, str(folder / "m.onnx"), save_as_external_data=True, location="m.bin", size_threshold=16)
    else:
        (folder / "m.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    return folder / "m.onnx"


@pytest.mark.parametrize("opset", [17, 21])
def test_a_pipeline_of_no_passes_is_the_identity(tmp_path, opset):
    proto, wanted = everything(opset), normal(everything(opset))
    assert same(NOTHING(proto), wanted)
    assert same(proto, everything(opset))  # and the caller's own object is not touched
    assert same(NOTHING(written(tmp_path, proto)), wanted)
    assert same(NOTHING(NOTHING(NOTHING(proto))), wanted)


def test_weights_beside_the_model_keep_what_is_said_of_them(tmp_path):
    """The proto that comes back holds the bytes inside; the rest is the same."""
    made = NOTHING(written(tmp_path, everything(), beside=True))
    wanted = normal(everything())
    for tensor, stored in zip(made.graph.initializer, wanted.graph.initializer, strict=True):
        assert tensor.SerializeToString(deterministic=True) == stored.SerializeToString(deterministic=True)
    assert same(made, wanted)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "tests" / "corpus").glob("*.onnxtxt")))
def test_small_models_come_through_unchanged(name):
    proto = from_text((ROOT / "tests" / "corpus" / f"{name}.onnxtxt").read_text(encoding="utf-8"))
    assert same(NOTHING(proto), spelt(proto))


def test_exported_models_come_through_unchanged(sample):
    proto = onnx.load(str(sample))
    assert same(NOTHING(sample), spelt(proto))


def test_order_and_repeated_names_are_no_business_of_an_empty_pipeline():
    proto = model("(float[2,8] x, float[8,8] w) => (float[2,8] y) { [n] y = Relu(h) [n] h = MatMul(x, w) }")
    assert same(NOTHING(proto), spelt(proto))


def test_a_model_of_onnx_ir_keeps_its_empty_outputs():
    proto = model("(float[2,8] x) => (float[2,8] y) { y, z = Dropout(x) }")
    proto.graph.node[0].output[1] = ""
    done = fp8graph.optimize(ir.from_proto(proto), allow_unquantized=True)
    assert [output.name for output in done.model.graph.node(0).outputs] == ["y", ""]


def doubled(proto: onnx.ModelProto) -> None:
    for key, value in (("b", "1"), ("a", "2"), ("b", "3")):
        proto.metadata_props.add(key=key, value=value)


def ordered(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]
    for key, value in (("a", "2"), ("b", "3")):
        proto.metadata_props.add(key=key, value=value)


def constant(proto: onnx.ModelProto, **value: Any) -> None:
    proto.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["y"]))
    proto.graph.node[0].attribute.extend(helper.make_attribute(key, item) for key, item in value.items())


def dense() -> onnx.TensorProto:
    array = np.zeros((2, 8), np.float32)
    array[[0, 1], [0, 1]] = [0.5, 1]
    return onnx.numpy_helper.from_array(array, "y")


def unknown(proto: onnx.ModelProto) -> None:
    """A field that a later version of ONNX may have."""
    proto.ParseFromString(proto.SerializeToString() + b"\xfa\x7f\x03new")


# What docs/fidelity.md says, what is done to a model of one Relu, and what comes back of it.
Change = Callable[[onnx.ModelProto], object]
LISTED: list[tuple[str, Change, Change]] = [
    (
        "the domain `ai.onnx` of a node",
        lambda p: setattr(p.graph.node[0], "domain", "ai.onnx"),
        lambda p: p.graph.node[0].ClearField("domain"),
    ),
    (
        "an empty text that is written out",
        lambda p: (setattr(p.graph.node[0], "name", ""), setattr(p, "doc_string", "")),
        lambda p: (p.graph.node[0].ClearField("name"), p.ClearField("doc_string")),
    ),
    ("metadata entries", doubled, ordered),
    (
        "an opset import of one domain twice",
        lambda p: p.opset_import.add(domain="", version=20),
        lambda p: (p.opset_import.pop(), setattr(p.opset_import[0], "version", 20)),
    ),
    (
        "`sparse_value` of a Constant",
        lambda p: constant(p, sparse_value=sparse("", 2, 8)),
        lambda p: constant(p, value=dense()),
    ),
    (
        "two value infos of one value",
        lambda p: p.graph.value_info.extend([helper.make_tensor_value_info("h", 1, [size, 8]) for size in (3, 2)]),
        lambda p: p.graph.value_info.pop(0),
    ),
    ("fields that this version of onnx does not know", unknown, lambda p: p.DiscardUnknownFields()),
]


@pytest.mark.parametrize(("line", "change", "after"), LISTED, ids=[row[0] for row in LISTED])
def test_what_becomes_different_is_listed(line, change, after):
    assert line in (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    text = "(float[2,8] x) => (float[2,8] y) { y = Relu(x) }"
    if "value infos" in line:
        text = "(float[2,8] x) => (float[2,8] y) { h = Relu(x) y = Relu(h) }"
    proto = spelt(model(text))
    change(proto)
    made = NOTHING(proto)
    after(proto)
    assert same(made, proto), made


def test_the_page_lists_nothing_that_is_not_tested():
    page = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "|---" not in line][1:]
    assert len(rows) == len(LISTED) + 1  # and weights that lay beside the model


def quantised(given: Any, opset: int, **asked: Any) -> Optimized:
    """`everything` in FP8: from ranges, for nothing runs its custom operator."""
    names = {"x"} | {name for node in everything(opset).graph.node for name in node.output if name}
    seen = Ranges("", "by hand", 1, {}, {name: Stat.of(np.array([-1, 4], np.float32)) for name in sorted(names)})
    return fp8graph.optimize(given, ranges=seen, **asked)


def plain(node: onnx.NodeProto, named: bool) -> onnx.NodeProto:
    """A node without our own entries; without its name where that was empty or another's."""
    made = onnx.NodeProto.FromString(node.SerializeToString())
    ours = [item for item in made.metadata_props if item.key.startswith("fp8graph.")]
    for item in ours:
        made.metadata_props.remove(item)
    if not named:
        made.ClearField("name")
    for attribute in made.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            inner = [plain(child, False) for child in graph.node]
            del graph.node[:]
            graph.node.extend(inner)
            del graph.value_info[:]  # types that were inferred are told
    return made


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("beside", [False, True], ids=["inside", "beside"])
def test_optimising_changes_quantised_ops_alone(tmp_path, opset, beside):
    """Opset 17 is raised by onnx's converter, which loses nearly all of it: it is put back."""
    was = normal(everything(opset))
    done = quantised(written(tmp_path, everything(opset), beside=beside), opset, output=tmp_path / "out.onnx")
    made = onnx.load(str(tmp_path / "out.onnx"))
    assert done.planned == 1 and {node.output[0] for node in products(made)} == {"product"}
    before, after = ({node.output[0]: node for node in proto.graph.node} for proto in (was, made))
    assert [name for name in after if name in before] == list(before)
    for name, node in before.items():
        named = bool(node.name) and node.name != "name of two"
        if name == "product":
            node.input[:] = ["positive_dq", "w_dq"]
        assert plain(after[name], named) == plain(node, named), name
    assert [after[name].name for name in ("captured", "chosen")] == ["name of two", "name of two_1"]
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    for tensor in was.graph.initializer:
        assert (tensor.name == "w" and "w" not in held) or held[tensor.name] == tensor
    for part in ("input", "output", "sparse_initializer", "metadata_props", "quantization_annotation"):
        assert list(getattr(made.graph, part)) == list(getattr(was.graph, part)), part
    said = {item.name: item for item in made.graph.value_info}
    for item in was.graph.value_info:
        found = said[item.name]
        assert found == item or (found.doc_string, len(found.metadata_props)) == (item.doc_string, len(META)), item.name
    assert (made.graph.name, made.graph.doc_string) == (was.graph.name, was.graph.doc_string)


@pytest.mark.parametrize("opset", [17, 21])
def test_optimising_keeps_what_lies_around_the_graph(opset):
    was, made = everything(opset), quantised(everything(opset), opset).model
    for part in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(made, part) == getattr(was, part), part
    for part in ("metadata_props", "training_info", "configuration"):
        assert list(getattr(made, part)) == list(getattr(was, part)), part
    imports = [(item.domain, item.version) for item in was.opset_import]
    assert [(item.domain, item.version) for item in made.opset_import] == [
        (domain, version if domain else 21) for domain, version in imports
    ]
    for function, other in zip(was.functions, made.functions, strict=True):
        nodes = [[plain(node, False) for node in item.node] for item in (function, other)]
        assert nodes[0] == nodes[1]
        for part in ("name", "overload", "domain", "doc_string"):
            assert getattr(function, part) == getattr(other, part)
        for part in ("input", "output", "attribute", "attribute_proto", "value_info", "metadata_props"):
            assert list(getattr(function, part)) == list(getattr(other, part)), part


def test_a_name_that_was_given_to_something_new_is_not_described_as_something_old():
    """A value info of no node says int8 of the very name that the codes get."""
    proto = model("(float[2,16] x, float[16,16] w) => (float[2,16] y) { y = MatMul(x, w) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("w_fp8", TensorProto.INT8, [3]))
    proto.graph.value_info.append(helper.make_tensor_value_info("elsewhere", TensorProto.INT8, [3]))
    made = fp8graph.optimize(proto, data=feeds(proto)).model
    assert {"w_fp8"} <= {tensor.name for tensor in made.graph.initializer}
    assert [item.name for item in made.graph.value_info if item.type.tensor_type.elem_type == TensorProto.INT8] == [
        "elsewhere"
    ]


def test_only_functions_with_a_product_are_inlined():
    text = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    m (float[N,16] x, float[16,16] w_0) => (float[N,16] y) { h = local.Dense(x, w_0) y = local.Bend(h) }
    <domain: "local", opset_import: ["" : 21]> Dense (a, w) => (b) { b = MatMul(a, w) }
    <domain: "local", opset_import: ["" : 21]> Bend (a) => (b) { b = Tanh(a) }"""
    proto = from_text(text)
    made = fp8graph.optimize(proto, data=feeds(proto)).model
    assert [function.name for function in made.functions] == ["Bend"]
    assert [node.op_type for graph in graphs(made) for node in graph.node if node.op_type in ("Bend", "MatMul")] == [
        "MatMul",
        "Bend",
    ]


def test_an_output_that_says_no_shape_is_given_none(tmp_path):
    proto = model("(float[n,16] x, float[16,16] w) => (float[n,16] y) { h = MatMul(x, w) y = Relu(h) }")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.output.append(onnx.ValueInfoProto(name="h"))
    fp8graph.optimize(proto, data=feeds(proto), output=tmp_path / "out.onnx")
    assert list(onnx.load(str(tmp_path / "out.onnx")).graph.output) == list(proto.graph.output)
    shutil.rmtree(tmp_path)
