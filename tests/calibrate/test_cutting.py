"""How arrays become feeds: cut along the first axis, or one feed for each index, and held to what the inputs are."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.findings import Notes
from fp8graph.calibrate.samples import open_samples
from tests.small import refused


def inputs(*specs: tuple[str, list[Any] | None, int], overridable: bool = False) -> ir.Model:
    """A model with these inputs (name, dimensions, type), the last with an initialiser where `overridable`."""
    info = [onnx.helper.make_tensor_value_info(name, kind, dims) for name, dims, kind in specs]
    nodes = [onnx.helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in specs]
    out = [onnx.helper.make_tensor_value_info(f"{name}_out", kind, dims) for name, dims, kind in specs]
    held = []
    if overridable:
        name, dims, kind = specs[-1]
        held = [onnx.helper.make_tensor(name, kind, dims, [0.0] * int(np.prod(dims)))]
    graph = onnx.helper.make_graph(nodes, "g", info, out, held)
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10))


FLOAT, HALF, BF16, INT64, BOOL, STRING = (
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.INT64,
    onnx.TensorProto.BOOL, onnx.TensorProto.STRING,
)  # fmt: skip


def read(data: Any, work: ir.Model, **how: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """All feeds, and the codes of what was noted."""
    notes = Notes()
    return list(open_samples(data, work, notes, **how)), [finding.code for finding in notes.items()]


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)


CUTS = [  # dimensions of the input, shape of the array, --batch, then: number of feeds, their shape, notes
    (["n", 3], (5, 3), None, 5, (1, 3), []),
    (["n", 3], (5, 3), 2, 2, (2, 3), ["FG122"]),
    (["n", 3], (6, 3), 2, 3, (2, 3), []),
    (["n", 3], (5, 3), 5, 1, (5, 3), []),
    ([4, 3], (9, 3), None, 2, (4, 3), ["FG122"]),
    ([4, 3], (8, 3), None, 2, (4, 3), []),
    ([4, 3], (8, 3), 4, 2, (4, 3), []),
    ([1, 3], (5, 3), None, 5, (1, 3), []),
    ([4, 3], (5, 4, 3), None, 5, (4, 3), []),
    (["n", 3], (5, 7, 3), None, 5, (7, 3), []),
    (["n", 3], (5, 7, 3), 2, 5, (7, 3), []),  # whole feeds have the batch that they have
    (["n", "m"], (5, 3), None, 5, (1, 3), []),
    ([], (5,), None, 5, (), []),
    (["n"], (5,), None, 5, (1,), []),
    (["n"], (5, 2), None, 5, (2,), []),
    (None, (5, 7, 2), None, 5, (7, 2), []),  # of unknown rank: one feed for each index
    (None, (5,), None, 5, (), []),
]


@pytest.mark.parametrize(("dims", "shape", "batch", "count", "fed", "noted"), CUTS)
def test_an_array_is_cut_into_feeds(dims, shape, batch, count, fed, noted):
    array = numbers(*shape)
    found, notes = read({"x": array}, inputs(("x", dims, FLOAT)), batch=batch)
    assert [feed["x"].shape for feed in found] == [fed] * count and notes == noted
    together = np.concatenate([feed["x"].reshape(-1) for feed in found])
    np.testing.assert_array_equal(together, array.reshape(-1)[: together.size])
    assert all(feed["x"].flags.c_contiguous for feed in found)


REFUSED: list[tuple[list[Any] | None, Any, int | None, str]] = [
    (["n", 3], numbers(5), None, "has rank 1"),
    (["n", 3], numbers(2, 5, 7, 3), None, "has rank 4"),
    (["n", 3], numbers(5, 4), None, "the model wants ?x3, a sample has 1x4"),
    ([4, 3], numbers(5, 2, 3), None, "the model wants 4x3, a sample has 2x3"),
    ([4, 3], numbers(8, 3), 2, "--batch 2 does not fit"),
    ([4, 3], numbers(3, 3), None, "the model takes 4 rows of 'x' at a time, the data has 3"),
    (["n", 3], numbers(3, 3), 9, "--batch 9 takes 9 rows of 'x' at a time, the data has 3"),
    (["n", 3], numbers(0, 3), None, "holds no sample"),
    (["n", 3], np.float32(1), None, "has rank 0"),
    ([], numbers(2, 2), None, "a single number: rank 0 (for every sample), or rank 1"),
    (["n", 3], numbers(5, 3).astype(np.float64), None, "array.astype('float32')"),
    (["n", 3], numbers(5, 3).astype(np.int64), None, "has type int64"),
    (["n", 3], numbers(5, 3).astype(np.float16), None, "the model wants float32"),
    (["n", 3], np.array([["a", "b", "c"]]), None, "has type"),
    (["n", 3], np.array([[1, None, 2.0]]), None, "has type object"),
    (["n", 3], np.full((5, 3), np.nan, np.float32), None, "a NaN or an infinity"),
    (["n", 3], np.where(np.arange(15).reshape(5, 3) == 13, np.inf, numbers(5, 3)).astype(np.float32), None, "sample 4"),
]


@pytest.mark.parametrize(("dims", "array", "batch", "says"), REFUSED)
def test_an_array_that_does_not_fit_is_refused(dims, array, batch, says):
    with refused(InputError, "FG107", says):
        read({"x": array}, inputs(("x", dims, FLOAT)), batch=batch)


def test_a_single_number_is_for_every_sample():
    for rank in ([], None):
        found, _ = read({"x": np.float32(3), "y": numbers(4, 2)}, inputs(("x", rank, FLOAT), ("y", ["n", 2], FLOAT)))
        assert [(feed["x"].shape, float(feed["x"]), feed["y"].shape) for feed in found] == [((), 3.0, (1, 2))] * 4
        assert len(read({"x": np.float32(3)}, inputs(("x", rank, FLOAT)))[0]) == 1


COUNTS = [  # arrays by input, --batch, --samples, then how many samples there will be
    ({"x": numbers(5, 3)}, None, None, 5),
    ({"x": numbers(5, 3)}, 2, None, 2),
    ({"x": numbers(5, 3)}, None, 3, 3),
    ({"x": numbers(5, 3)}, None, 9, 5),
    ({"x": numbers(5, 7, 3)}, None, None, 5),
]


@pytest.mark.parametrize(("arrays", "batch", "limit", "count"), COUNTS)
def test_how_many_samples_there_are_is_known_before_they_are_read(tmp_path, arrays, batch, limit, count):
    work = inputs(("x", ["n", 3], FLOAT))
    (tmp_path / "folder").mkdir()
    (tmp_path / "files").mkdir()
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "files" / "b.npz", **arrays)
    np.save(tmp_path / "folder" / "x.npy", arrays["x"])
    np.save(tmp_path / "x.npy", arrays["x"])
    for data in (arrays, *(str(tmp_path / name) for name in ("a.npz", "files", "folder", "x.npy"))):
        samples = open_samples(data, work, Notes(), batch=batch, samples=limit)
        assert samples.count == count == len(list(samples))


def test_how_many_samples_there_are_is_unknown_where_the_data_is_damaged_or_a_stream(tmp_path):
    (tmp_path / "torn.npz").write_bytes(b"PK")
    for data in (str(tmp_path / "torn.npz"), lambda: [], iter([])):
        assert open_samples(data, inputs(("x", ["n", 3], FLOAT)), Notes()).count in (None, 0)


def test_nan_and_infinity_are_told_in_every_float_type():
    for kind, dtype in ((HALF, np.float16), (BF16, ml_dtypes.bfloat16)):
        for value in (np.nan, np.inf, -np.inf):
            with refused(InputError, "FG107", "a NaN or an infinity"):
                read({"x": np.full((2, 3), value).astype(dtype)}, inputs(("x", ["n", 3], kind)))
        assert len(read({"x": np.ones((2, 3), dtype)}, inputs(("x", ["n", 3], kind)))[0]) == 2


TWO = inputs(("image", ["n", 3], FLOAT), ("mask", ["n"], BOOL))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"image": numbers(5, 3)}, "lacks the input 'mask'"),
        ({}, "lacks the input 'image'"),
        ({"image": numbers(5, 3), "mask": np.ones(4, bool)}, "image: 5, mask: 4"),
        ({"image": numbers(5, 3), "msk": np.ones(5, bool)}, "did you mean 'mask'?"),
        ({"image": numbers(5, 3), "mask": np.ones(5, bool), "label": numbers(5)}, "an array 'label'"),
        ({"image": numbers(5, 3), "mask": np.ones(5, np.uint8)}, "the model wants bool"),
    ],
)
def test_all_inputs_are_given_and_no_other(arrays, says):
    with refused(InputError, "FG107", says):
        read(arrays, TWO)


def test_inputs_of_different_kinds_go_together():
    found, _ = read({"image": numbers(5, 3), "mask": np.array([True, False, True, True, False])}, TWO)
    assert [bool(feed["mask"][0]) for feed in found] == [True, False, True, True, False]
    found, _ = read({"image": numbers(2, 4, 3), "mask": np.ones((2, 4), bool)}, TWO)
    assert [(feed["image"].shape, feed["mask"].shape) for feed in found] == [((4, 3), (4,))] * 2


def test_an_input_with_an_initialiser_may_be_left_out():
    work = inputs(("x", ["n", 3], FLOAT), ("bias", [3], FLOAT), overridable=True)
    assert [set(feed) for feed in read({"x": numbers(2, 3)}, work)[0]] == [{"x"}] * 2
    assert set(read({"x": numbers(2, 3), "bias": numbers(2, 3)}, work)[0][0]) == {"x", "bias"}


def test_arrays_of_the_other_byte_order_are_turned_round():
    """ONNX Runtime reads them as native: wrong numbers, and no error (1.31, 1.32)."""
    found, _ = read({"x": numbers(2, 3).astype(">f4")}, inputs(("x", ["n", 3], FLOAT)))
    assert found[0]["x"].dtype == np.float32 and found[0]["x"].dtype.isnative
    np.testing.assert_array_equal(found[1]["x"], numbers(2, 3)[1:])


def test_texts_are_taken_where_the_model_reads_texts():
    found, _ = read({"x": np.array(["a", "bc"])}, inputs(("x", ["n"], STRING)))
    assert [feed["x"].tolist() for feed in found] == [["a"], ["bc"]]


def test_only_so_many_samples_are_read():
    work = inputs(("x", ["n", 3], FLOAT))
    assert len(read({"x": numbers(9, 3)}, work, samples=4)[0]) == 4
    assert len(read({"x": numbers(3, 3)}, work, samples=4)[0]) == 3


def one(value: float) -> dict[str, Any]:
    return {"x": np.full((2, 3), value, np.float32)}


def test_feeds_come_from_a_list_a_generator_or_a_function():
    work = inputs(("x", ["n", 3], FLOAT))
    for data in ([one(1), one(2)], (one(i) for i in (1, 2)), lambda: iter([one(1), one(2)]), (one(1), one(2))):
        samples = open_samples(data, work, Notes())
        for _ in range(2):  # feeds can be read again
            assert [feed["x"][0, 0] for feed in samples] == [1, 2]
            assert [feed["x"].shape for feed in samples] == [(2, 3)] * 2


def test_a_function_is_called_each_time_and_so_may_stream():
    calls = []

    def load():
        calls.append(1)
        return (one(i) for i in range(3))

    samples = open_samples(load, inputs(("x", ["n", 3], FLOAT)), Notes())
    assert len(list(samples)) == len(list(samples)) == 3 and len(calls) == 2


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        ([numbers(2, 3)], "FG107", "sample 0"),
        ([one(1), {"y": numbers(2, 3)}], "FG107", "'y'"),
        ([one(1), {}], "FG107", "sample 1"),
        ([one(1), {"x": numbers(2, 4)}], "FG107", "a sample has 2x4"),
        ([one(1), {"x": numbers(3)}], "FG107", "sample 1"),
        ([one(1), one(np.nan)], "FG107", "sample 1"),
        (5, "FG108", "5 is no data"),
        ([], "FG107", "no sample"),
        ((), "FG107", "no sample"),
        (lambda: [], "FG107", "no sample"),
        (lambda: None, "FG107", "NoneType"),
    ],
)
def test_feeds_that_are_none_are_refused(data, code, says):
    with refused(InputError, code, says):
        read(data, inputs(("x", ["n", 3], FLOAT)))


def test_random_data_must_be_asked_for_and_is_stamped():
    work = inputs(("x", ["n", 3], FLOAT), ("i", ["n", 2], INT64), ("b", [1], BOOL), ("h", [2], HALF))
    found, notes = read("random", work)
    assert notes == ["FG121"] and len(found) == 8
    assert open_samples("random", work, Notes(), seed=3, samples=2).label == "random, seed 3, 2 samples"
    for feed in found:
        assert {name: (array.shape, array.dtype.name) for name, array in feed.items()} == {
            "x": ((1, 3), "float32"),
            "i": ((1, 2), "int64"),
            "b": ((1,), "bool"),
            "h": ((2,), "float16"),
        }
        assert ((feed["x"] >= 0) & (feed["x"] < 1)).all() and set(feed["i"].reshape(-1)) <= {0, 1}
    assert not np.array_equal(found[0]["x"], found[1]["x"])
    assert [f["x"].shape for f in read("random", work, batch=4, samples=3)[0]] == [(4, 3)] * 3


def test_random_data_is_the_same_for_the_same_seed_whatever_the_machine():
    work = inputs(("x", ["n", 3], FLOAT))
    first = [read(["random"], work, seed=seed)[0] for seed in (0, 0, 1)]
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first[0], first[1], strict=True))
    assert not np.array_equal(first[0][0]["x"], first[2][0]["x"])
    # PCG64 seeded with the first eight bytes of sha256("0 0 x")
    np.testing.assert_array_equal(first[0][0]["x"], np.array([RANDOM], np.float32))


RANDOM = (0.5117982625961304, 0.3147680163383484, 0.17363190650939941)


def test_what_cannot_be_made_up_is_a_wrong_call():
    for kind, dims in ((STRING, ["n"]), (FLOAT, None)):
        with refused(UsageError, "FG121", "no random data", "'x'"):
            read("random", inputs(("x", dims, kind)))


@pytest.mark.parametrize(
    ("kind", "dtype"), [(BF16, ml_dtypes.bfloat16), (onnx.TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn)]
)
@pytest.mark.parametrize("form", ["npz", "npy"])
def test_a_type_that_numpy_saves_without_its_name_is_the_one_of_the_input(kind, dtype, form, tmp_path):
    array = (numbers(4, 3) / 8).astype(dtype)
    if form == "npz":
        np.savez(tmp_path / "d.npz", x=array)
    else:
        np.save(tmp_path / "x.npy", array)
    found, _ = read(tmp_path / ("d.npz" if form == "npz" else "x.npy"), inputs(("x", ["n", 3], kind)))
    assert [feed["x"].dtype for feed in found] == [dtype] * 4
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in found]).view(np.uint8), array.view(np.uint8))


NAMELESS = [  # type of the input, of the array, what is to be typed
    (BF16, np.float32, "import ml_dtypes, and convert it: array.astype(ml_dtypes.bfloat16)"),
    (HALF, np.float32, "array.astype('float16')"),
    (FLOAT, ml_dtypes.bfloat16, "array.astype('float32'), before it is saved"),
    (BF16, ml_dtypes.float8_e4m3fn, "array.astype(ml_dtypes.bfloat16), before it is saved"),
]


@pytest.mark.parametrize(("kind", "dtype", "do"), NAMELESS)
def test_what_is_to_be_done_with_another_type_can_be_typed(kind, dtype, do, tmp_path):
    np.savez(tmp_path / "d.npz", x=numbers(4, 3).astype(dtype))
    with refused(InputError, "FG107", do):
        read(tmp_path / "d.npz", inputs(("x", ["n", 3], kind)))
