"""One model in which every field of ONNX's protos is filled, and a second one in which only FP8 work is to be done."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

# In sorted order: a dictionary of metadata has none, and two keys show whether any is lost.
META = {"a key": "a value", "another": "with\nlines, ünicode and 'quotes'"}


def note(thing: Any, name: str, doc: bool = True) -> Any:
    """Fills the doc string and metadata of a proto, so that no two protos have equal ones."""
    if doc:
        thing.doc_string = f"about {name}"
    for key, value in META.items():
        thing.metadata_props.add(key=key, value=f"{value} of {name}")
    return thing


def value(name: str, dtype: int, shape: list[Any] | None) -> onnx.ValueInfoProto:
    """A value info with doc string, metadata and denotations."""
    made = note(helper.make_tensor_value_info(name, dtype, shape), name)
    made.type.denotation = "TENSOR"
    for dim in made.type.tensor_type.shape.dim:
        dim.denotation = "DATA_FEATURE"
    return made


def tensor(name: str, *shape: int, dtype: Any = np.float32, seed: int = 3) -> onnx.TensorProto:
    """A dense tensor with doc string and metadata."""
    array = np.random.default_rng([seed, len(name), *shape]).standard_normal(shape) / 4
    return note(numpy_helper.from_array(array.astype(dtype), name), name)


def node(op_type: str, inputs: list[str], outputs: list[str], name: str = "", **attributes: Any) -> onnx.NodeProto:
    """A node with doc string and metadata; attributes in the order given, each with a doc string."""
    made = onnx.NodeProto(op_type=op_type, input=inputs, output=outputs)
    for key, item in (
        ("name", name),
        ("domain", attributes.pop("domain", "")),
        ("overload", attributes.pop("overload", "")),
    ):
        if item:  # an empty text that is written out is another file than one that is not
            setattr(made, key, item)
    note(made, name or outputs[0])
    for key, item in attributes.items():
        attribute = made.attribute.add()
        attribute.CopyFrom(helper.make_attribute(key, item))
        attribute.doc_string = f"about {key}"
    return made


def typed(made: onnx.NodeProto, key: str, kind: int) -> onnx.NodeProto:
    """Adds an attribute that holds nothing: an empty list of this type."""
    made.attribute.add(name=key, type=kind)
    return made


def sparse(name: str, *shape: int) -> onnx.SparseTensorProto:
    """A sparse tensor with one element in each row."""
    made = onnx.SparseTensorProto(dims=shape)
    flat = np.arange(shape[0], dtype=np.int64) * (shape[1] + 1)
    made.values.CopyFrom(note(numpy_helper.from_array(np.linspace(0.5, 1, shape[0], dtype=np.float32), name), name))
    made.indices.CopyFrom(numpy_helper.from_array(flat, f"{name}_indices"))
    return made


def function(overload: str, opset: int) -> onnx.FunctionProto:
    """A function with two attributes, one of them with a default, and value infos of its own."""
    leaky = node("LeakyRelu", ["a"], ["inner"], f"leaky {overload}")
    leaky.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope", doc_string="by reference")
    nodes = [leaky, node("Neg", ["inner"], ["minus"], f"neg {overload}"), node("Neg", ["minus"], ["b"])]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("unused.in.function", 4)]
    made = helper.make_function("local", "Bend", ["a"], ["b"], nodes, imports, attributes=["slope"], overload=overload)
    made.attribute_proto.append(helper.make_attribute("other", [1, 2, 3]))
    made.value_info.append(value("a", T.FLOAT, ["n", 16]))
    made.value_info.append(value("inner", T.FLOAT, ["n", 16]))
    made.value_info.append(value("of no node", T.FLOAT, [5]))
    return note(made, f"Bend {overload}")


def body(name: str, weight: str) -> onnx.GraphProto:
    """A branch with a weight of its own, and everything that a graph can hold."""
    bias, added, out = f"{weight}_bias", f"{name}_sum", f"{name}_out"
    nodes = [node("Add", ["captured", bias], [added]), node("Neg", [added], [out])]
    made = helper.make_graph(nodes, name, [], [value(out, T.FLOAT, ["n", 16])], [tensor(bias, 16)])
    made.value_info.append(value(added, T.FLOAT, ["n", 16]))
    made.value_info.append(value("of no node", T.FLOAT, [6]))
    annotate(made, added, SCALE_TENSOR=bias)
    return note(made, name)


def annotate(graph: onnx.GraphProto, name: str, **tensors: str) -> None:
    """A quantization annotation."""
    made = graph.quantization_annotation.add(tensor_name=name)
    for key, item in tensors.items():
        made.quant_parameter_tensor_names.add(key=key, value=item)


def _nodes() -> list[onnx.NodeProto]:
    custom = node(
        "Keep", ["product"], ["kept"], "custom", domain="vendor.ops",
        zeta=1, alpha=[1.0, 2.5], text="tëxt", texts=["a", ""], number=-0.5, ints=[3, 1, 2], one=tensor("one", 2, 2),
        many=[tensor("first", 3), tensor("second", 1, 3)], kind=value("t", T.FLOAT, ["k", 3]).type,
        kinds=[value("u", T.INT64, []).type], branch=helper.make_graph([], "no nodes", [], []),
        branches=[helper.make_graph([], "none a", [], []), helper.make_graph([], "none b", [], [])],
    )  # fmt: skip
    for key, kind in (("no_ints", 7), ("no_floats", 6), ("no_strings", 8), ("no_tensors", 9), ("no_graphs", 10)):
        typed(custom, key, kind)
    return [
        node("Bend", ["x"], ["bent"], "call one", domain="local", overload="soft", slope=0.25),
        node("Bend", ["bent"], ["twice"], "call two", domain="local", overload="hard", slope=0.5),
        node("Add", ["twice", "sparse_bias"], ["captured"], "name of two"),
        node("If", ["choose"], ["chosen"], "name of two",
             then_branch=body("yes", "w_yes"), else_branch=body("no", "w_no")),
        node("Clip", ["chosen", "", "most", ""], ["clipped"]),
        node("Dropout", ["clipped"], ["dropped", ""], "dropout"),
        node("Relu", ["dropped"], ["positive"]),
        node("MatMul", ["positive", "w"], ["product"]),
        custom,
        node("Identity", ["kept"], ["out"], domain="ai.onnx"),
    ]  # fmt: skip


def everything(opset: int = 21) -> onnx.ModelProto:
    """A model with every field filled and one MatMul; it loads nowhere, for `vendor.ops` has no operators."""
    graph = helper.make_graph(
        _nodes(), "the graph",
        [value("x", T.FLOAT, ["n", 16]), value("choose", T.BOOL, []), value("overridable", T.FLOAT, [None, 0])],
        [value("out", T.FLOAT, ["n", 16]), value("positive", T.FLOAT, None)],
        [tensor("most"), tensor("overridable", 1, 0), tensor("w", 16, 16),
         tensor("nobody reads me", 2, 3, dtype=np.float16), *_typed()],
    )  # fmt: skip
    graph.sparse_initializer.append(sparse("sparse_bias", 1, 16))
    for name in ("clipped", "x", "most", "of no node", "positive"):
        graph.value_info.append(
            value(name, T.INT8 if name == "of no node" else T.FLOAT, [] if name == "most" else ["n", 16])
        )
    graph.value_info.append(note(onnx.ValueInfoProto(name="dropped"), "dropped"))
    for name in ("twice", "x", "most", "positive", "of no node"):
        annotate(graph, name, SCALE_TENSOR="most", ZERO_POINT_TENSOR="none")
    return _model(note(graph, "the graph"), [function("soft", opset), function("hard", opset)], opset)


def _typed() -> list[onnx.TensorProto]:
    """Tensors in each of the fields that a tensor's numbers can lie in."""
    halves = T(name="halves", data_type=T.FLOAT16, dims=[2], int32_data=[15360, 16384])
    codes = T(name="codes", data_type=T.FLOAT8E4M3FN, dims=[3], int32_data=[1, 126, 255])
    quiet = T(name="a NaN with a payload", data_type=T.FLOAT, dims=[1], raw_data=b"\1\0\xc0\x7f")
    words = helper.make_tensor("words", T.STRING, [2], [b"a", "ß".encode()])
    longs = T(name="longs", data_type=T.INT64, dims=[1, 2], int64_data=[-1, 2**40])
    return [note(item, item.name) for item in (halves, codes, quiet, words, longs)]


def _model(graph: onnx.GraphProto, functions: list[onnx.FunctionProto], opset: int) -> onnx.ModelProto:
    domains = {"never.used": 7, "": opset, "local": 1, "vendor.ops": 3, "ai.onnx.ml": 3}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=11)
    model.producer_name, model.producer_version, model.domain = "a producer", "1.2.3+x", "an.organisation"
    model.model_version = 7
    training = model.training_info.add()
    training.algorithm.name = "a step of training"
    training.initialization_binding.add(key="most", value="begin")
    training.update_binding.add(key="most", value="end")
    model.configuration.add(name="two devices", num_devices=2).device.extend(["0", "1"])
    at = model.graph.node[0].device_configurations.add(configuration_id="two devices", pipeline_stage=1)
    at.sharding_spec.add(tensor_name="x", device=[0, 1]).sharded_dim.add(axis=0)
    return note(model, "the model")
