"""Feeds as Polygraphy saves them, in its new spelling and its old ones; whatever else a file holds is refused."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import fp8graph
from fp8graph.base.errors import InputError
from fp8graph.base.findings import Notes
from fp8graph.calibrate.samples import files_of, open_samples
from tests.small import model, refused

WORK = ir.from_proto(model("(float[n,3] x) => (float[n,3] y) { y = Relu(x) }"))
FEEDS = [np.full((rows, 3), rows, np.float32) for rows in (2, 1)]


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


def spelt(data: bytes, how: str) -> dict[str, str]:
    text = base64.b64encode(data).decode()
    return {
        "new": {"array": text, "polygraphy_class": "ndarray"},
        "old": {"array": text, "__polygraphy_encoded_ndarray": "polygraphy_serialized_json_type"},
        "latin": {"array": data.decode("latin-1"), "polygraphy_class": "ndarray"},
    }[how]


@pytest.mark.parametrize("pack", [npy, npz])
@pytest.mark.parametrize("how", ["new", "old", "latin"])
def test_every_spelling_of_an_array_is_read(tmp_path, how, pack):
    path = tmp_path / "in.json"
    path.write_text(json.dumps([{"x": spelt(pack(array), how)} for array in FEEDS]))
    samples = open_samples(str(path), WORK, Notes())
    for _ in range(2):
        assert [feed["x"].tolist() for feed in samples] == [array.tolist() for array in FEEDS]
    assert samples.label == "in.json" and samples.count is None


def test_a_single_feed_and_a_folder_of_feeds_are_read_in_the_order_of_their_names(tmp_path):
    for name, array in zip(("0000000001", "0000000000"), FEEDS, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps({"x": spelt(npy(array), "new")}))
    assert [feed["x"].shape for feed in open_samples(tmp_path, WORK, Notes())] == [(1, 3), (2, 3)]
    assert len(files_of([str(tmp_path)])) == 2
    np.savez(tmp_path / "a.npz", x=FEEDS[0])  # a description in JSON beside arrays is no data
    assert [feed["x"].shape for feed in open_samples(tmp_path, WORK, Notes())] == [(1, 3)] * 2


ARRAY = spelt(npy(FEEDS[0]), "new")


@pytest.mark.parametrize(
    ("document", "code", "says"),
    [
        ("[", "FG108", "it is no JSON"),
        ("[" * 100_000, "FG108", "it is no JSON"),
        ("[]", "FG107", "holds no sample"),
        ([{}], "FG108", "item 0 is no mapping"),
        ([ARRAY], "FG108", "item 0 is no mapping"),
        ([[1]], "FG108", "item 0 is no mapping"),
        ([{"x": 1}], "FG108", "item 0, 'x' is int"),
        ([{"x": {"array": "AAAA"}}], "FG108", "is a mapping, no array"),
        ([{"x": {"tensor": "AAAA", "polygraphy_class": "Tensor"}}], "FG108", "tensor.numpy()"),
        ([{"x": {"array": "AAAA", "polygraphy_class": "ndarray"}}], "FG108", "magic"),
        ([{"x": {"array": "\u20ac", "polygraphy_class": "ndarray"}}], "FG108", "is no base64"),
        ([{"x": spelt(npy(np.array([{}], object)), "new")}], "FG108", "pickled"),
        ([{"x": spelt(npy(FEEDS[0])[:-4], "new")}], "FG108", "it is cut off"),
        ([{"x": ARRAY}, {"z": ARRAY}], "FG107", "sample 1"),
        ([{"x": spelt(npy(np.zeros((2, 3))), "new")}], "FG107", "float64"),
    ],
    ids=str,
)
def test_what_is_no_feed_is_refused(tmp_path, document, code, says):
    path = tmp_path / "in.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with refused(InputError, code, says, "in.json"):
        list(open_samples(str(path), WORK, Notes()))


def test_feeds_calibrate_a_model_as_the_same_arrays_do(tmp_path):
    proto = model("(float[n,32] x, float[32,32] w) => (float[n,32] y) { y = MatMul(x, w) }")
    arrays = np.random.default_rng(0).standard_normal((4, 2, 32)).astype(np.float32)
    path = tmp_path / "in.json"
    path.write_text(json.dumps([{"x": spelt(npy(array), "new")} for array in arrays]))
    one, other = (fp8graph.calibrate(proto, data=data).ranges for data in (path, {"x": arrays}))
    assert (one.values, one.shapes) == (other.values, other.shapes)
