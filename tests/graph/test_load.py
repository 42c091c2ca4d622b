"""Loading: what is not whole, not here or not ours is refused before it is believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import InputError, UsageError
from fp8graph.graph.load import load
from tests.small import contents, feeds, model, refused

PRODUCT = "(float[2,64] x, float[64,64] w) => (float[2,64] y) { y = MatMul(x, w) }"


def external(folder: Path, name: str = "m.onnx", **entries: str) -> Path:
    """A model whose weight lies in `m.onnx.data`; `entries` change what the model says of it."""
    proto = model(PRODUCT)
    onnx.save(proto, str(folder / name), save_as_external_data=True, location=f"{name}.data", size_threshold=1024)
    if entries:
        proto = onnx.load(str(folder / name), load_external_data=False)
        tensor = proto.graph.initializer[0]
        kept = {item.key: item.value for item in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, value in kept.items():
            if value != "-":
                tensor.external_data.add(key=key, value=value)
        (folder / name).write_bytes(proto.SerializeToString())
    return folder / name


def test_a_sound_model_is_loaded_with_its_weights_unread(tmp_path):
    source = load(external(tmp_path))
    tensor = source.model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.raw is None
    assert (source.kind, source.path) == ("path", tmp_path / "m.onnx")
    assert source.external == (tmp_path / "m.onnx.data",)
    assert load(str(tmp_path / "m.onnx")).kind == "path"


def broken(change: Callable[[onnx.ModelProto], object]) -> bytes:
    """The bytes of a model after `change`."""
    proto = model(PRODUCT)
    change(proto)
    return proto.SerializeToString()


def opset(version: int) -> Callable[[onnx.ModelProto], object]:
    return lambda proto: setattr(proto.opset_import[0], "version", version)


WHOLE = broken(lambda proto: None)
FILES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "it is empty"),
    ("text", b"this is no model\n" * 20, "does not parse"),
    ("json", b'{"schema": "fp8graph.plan/1"}', "does not parse"),
    ("zeros", b"\0" * 64, "does not parse"),
    ("cut in half", WHOLE[: len(WHOLE) // 2], "truncated"),
    ("last byte missing", WHOLE[:-1], "truncated"),
    ("zip", b"PK\3\4" + b"\0" * 60, "a zip archive"),
    ("pickle", b"\x80\4" + b"\0" * 60, "a pickle, which is never opened"),
    ("no graph", onnx.ModelProto(ir_version=10).SerializeToString(), "it holds no graph"),
    ("empty graph", broken(lambda p: p.ClearField("graph")), "it holds no graph"),
    ("no opset", broken(lambda p: p.ClearField("opset_import")), "imports no opset"),
    ("opset 999", broken(opset(999)), "opset 999 is not known"),
    ("opset 0", broken(opset(0)), "opset 0 is not known"),
    ("negative opset", broken(opset(-1)), "opset -1 is not known"),
    ("html", b"<!DOCTYPE html><html>Not Found</html>", "does not parse"),
]


@pytest.mark.parametrize(("content", "says"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_a_file_that_is_no_whole_model_is_refused(tmp_path, content, says):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with refused(InputError, "FG106", says, "m.onnx"):
        load(path)


def test_every_cut_of_a_model_is_refused_or_is_no_such_model():
    """A protobuf may end between two fields and be whole: then the graph is incomplete, and that is told."""
    for length in range(0, len(WHOLE), 97):
        path_free = onnx.ModelProto()
        try:
            path_free.ParseFromString(WHOLE[:length])
        except Exception:
            continue
        with pytest.raises(InputError):
            load(path_free)


def test_what_is_no_file_is_refused(tmp_path):
    with refused(InputError, "FG106", "does not exist"):
        load(tmp_path / "none.onnx")
    with refused(InputError, "FG106", "it is a folder"):
        load(tmp_path)
    (tmp_path / "link.onnx").symlink_to("nowhere.onnx")
    with refused(InputError, "FG106", "does not exist"):
        load(tmp_path / "link.onnx")


@pytest.mark.parametrize("thing", [None, 5, b"bytes", {"model": 1}, np.zeros(3), onnx.GraphProto()], ids=repr)
def test_what_is_no_model_is_a_wrong_call(thing):
    with refused(UsageError, "FG100", "is no kind of model", "onnx.ModelProto"):
        load(thing)


ESCAPES = [
    "../secret.bin",
    "sub/../../secret.bin",
    "./../secret.bin",
    "link.bin",
    "linked/secret.bin",
    "",
    ".",
    "sub",
    "none.bin",
    "m.onnx.data\0x",
]


@pytest.mark.parametrize("location", [*ESCAPES, "absolute"])
def test_external_data_outside_the_models_folder_is_refused(tmp_path, monkeypatch, location):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\1" * (64 * 64 * 4))
    (folder / "link.bin").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    path = external(folder, location=str(secret) if location == "absolute" else location)
    monkeypatch.chdir(folder)
    for given in (path, "m.onnx", "../model/m.onnx", "./sub/../m.onnx"):
        with refused(InputError, "FG104", "external data cannot be used", "'w'"):
            load(given)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"offset": "1"}, "it wants bytes 1 to 16385"),
        ({"length": "16385"}, "16385 bytes"),
        ({"length": "99999999999999"}, "99999999999999 bytes"),
        ({"offset": "-1"}, "negative"),
        ({"length": "-5"}, "negative"),
        ({"offset": "many"}, "is no number"),
        ({"length": "100"}, "100 bytes"),
        ({"length": "-", "offset": "8192"}, "8192"),
    ],
    ids=str,
)
def test_external_data_that_is_too_short_is_refused(tmp_path, entries, says):
    with refused(InputError, "FG104", "'w'", says):
        load(external(tmp_path, **entries))


def test_a_data_file_that_was_cut_is_refused(tmp_path):
    path = external(tmp_path)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with refused(InputError, "FG104", "'w'", "has 16383"):
        load(path)
    data.unlink()
    with refused(InputError, "FG104", "is not there", "copy it beside m.onnx"):
        load(path)


def test_external_data_of_bodies_and_functions_is_held_to_the_same_rules(tmp_path):
    """A tensor of a body's initializer, of a Constant, and of a function's Constant."""
    (tmp_path / "secret.bin").write_bytes(b"\1" * 4096)
    folder = tmp_path / "model"
    folder.mkdir()
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[16, 16], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    product = onnx.helper.make_node("MatMul", ["x", "c"], ["y"])
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("local", 1)]
    x = onnx.helper.make_tensor_value_info("x", 1, [2, 16])
    y = onnx.helper.make_tensor_value_info("y", 1, [2, 16])
    flag = onnx.helper.make_tensor_value_info("f", onnx.TensorProto.BOOL, [])
    body = onnx.helper.make_graph([constant, product], "b", [], [y])
    function = onnx.helper.make_function("local", "F", ["x"], ["y"], [constant, product], opsets[:1])
    holding = onnx.helper.make_graph([product], "b", [], [y], [tensor])
    holding.initializer[0].name = "c"
    for number, (nodes, functions) in enumerate(
        [
            ([constant, product], []),
            ([onnx.helper.make_node("If", ["f"], ["y"], then_branch=body, else_branch=body)], []),
            ([onnx.helper.make_node("If", ["f"], ["y"], then_branch=holding, else_branch=holding)], []),
            ([onnx.helper.make_node("F", ["x"], ["y"], domain="local")], [function]),
        ]
    ):
        graph = onnx.helper.make_graph(nodes, "g", [flag, x], [y])
        proto = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
        path = folder / f"{number}.onnx"
        path.write_bytes(proto.SerializeToString())
        with refused(InputError, "FG104", "../secret.bin"):
            load(path)


def test_an_object_that_points_to_files_is_refused(tmp_path, monkeypatch):
    """A ModelProto has no folder: `location` would be looked up wherever the program happens to run."""
    proto = onnx.load(str(external(tmp_path)), load_external_data=False)
    monkeypatch.chdir(tmp_path)
    with refused(InputError, "FG104", "'w'"):
        load(proto)


@pytest.mark.parametrize("content", ["raw", "typed"])
def test_a_weight_whose_bytes_do_not_fill_its_shape_is_refused(tmp_path, content):
    proto = model(PRODUCT)
    tensor = proto.graph.initializer[0]
    if content == "raw":
        tensor.raw_data = tensor.raw_data[:100]
    else:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([1.0, 2.0])
    before = feeds(proto)
    with refused(InputError, "FG106", "'w'"):
        fp8graph.optimize(proto, data=before)


@pytest.mark.parametrize("dims", [[-1, 64], [2**40, 2**40]])
def test_a_weight_of_an_absurd_shape_is_refused(tmp_path, dims):
    proto = model(PRODUCT)
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    with refused(InputError, "FG106", "'w'"):
        load(proto)


def test_a_torn_pair_of_model_and_data_is_told(tmp_path):
    """Two outputs of the same name and size: the data of one beside the model of the other."""
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        proto = model(PRODUCT, seed=seed)
        fp8graph.optimize(proto, data=feeds(proto), output=folder / "out.onnx", external_data_size_threshold=64)
        assert load(folder / "out.onnx").external
    (tmp_path / "1" / "out.onnx.data").write_bytes((tmp_path / "2" / "out.onnx.data").read_bytes())
    with refused(InputError, "FG105", "do not belong together", "out.onnx.data"):
        load(tmp_path / "1" / "out.onnx")


def test_loading_changes_no_file(tmp_path):
    path = external(tmp_path)
    before = contents(tmp_path)
    fp8graph.optimize(path, data=feeds(model(PRODUCT)))
    assert contents(tmp_path) == before
