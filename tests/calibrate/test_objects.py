"""Data as objects of other libraries, which are known by what they can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fp8graph
from fp8graph.base.errors import InputError
from fp8graph.base.findings import Notes
from fp8graph.calibrate.samples import open_samples
from fp8graph.graph.load import load
from tests.small import model, refused

ONE = load(model("(float[n,3] x, float[3,3] w) => (float[n,3] y) { y = MatMul(x, w) }")).model
TOKENS = load(model("(int64[n,s] ids, int64[n,s] mask) => (int64[n,s] y) { y = Add(ids, mask) }")).model


class Tensor:
    """What a tensor of torch can do, as far as it matters here."""

    def __init__(self, array: Any, dtype: str = "torch.float32") -> None:
        self.array, self.dtype, self.held = np.asarray(array), dtype, False

    def detach(self) -> Tensor:
        made = Tensor(self.array, self.dtype)
        made.held = True
        return made

    def cpu(self) -> Tensor:
        return self

    def float(self) -> Tensor:
        made = Tensor(self.array, "torch.float32")
        made.held = True
        return made

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        assert self.held and self.dtype == "torch.float32", "torch refuses tensors with gradients, and bfloat16"
        return self.array


class Loader:
    """Can be read again and again, and knows its length; `readings` counts."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.readings = items, 0

    def __iter__(self):
        self.readings += 1
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Table(Loader):
    """Rows by column."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        super().__init__(rows)
        self.column_names = list(rows[0])


X = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    "items",
    [
        [{"x": Tensor(X)}, {"x": X}],
        [{"x": Tensor(X, "torch.bfloat16")}] * 2,
        [(Tensor(X), Tensor([1, 2, 3, 4])), [Tensor(X), Tensor([1, 2, 3, 4])]],
        [Tensor(X), Tensor(X)],
        [(X,), [X]],
    ],
)
def test_items_of_a_loader_are_feeds_and_are_not_held(items):
    data, notes = Loader(items), Notes()
    samples = open_samples(data, ONE, notes)
    assert samples.count == 2 and data.readings == 0
    for _ in range(2):
        assert all(np.array_equal(feed["x"], X) for feed in samples)
    assert data.readings == 2
    labelled = isinstance(items[0], tuple) and len(items[0]) == 2
    assert [item.code for item in notes.items()] == (["FG122"] if labelled else [])


ROWS = [{"ids": [i, 2, 3], "mask": [1, 1, 0], "label": i, "text": "a"} for i in range(5)]


@pytest.mark.parametrize(("batch", "count"), [(None, 5), (2, 2), (5, 1)])
def test_rows_of_a_table_become_batches_of_the_columns_that_are_inputs(batch, count):
    samples = open_samples(Table(ROWS), TOKENS, Notes(), batch=batch)
    made = list(samples)
    assert samples.count == len(made) == count
    assert all(feed["ids"].shape == (batch or 1, 3) and feed["ids"].dtype == np.int64 for feed in made)
    assert made[0].keys() == {"ids", "mask"} and [int(feed["ids"][0, 0]) for feed in made][:1] == [0]


def test_rows_of_tensors_and_of_several_lengths_are_read():
    rows = [{"ids": np.arange(size), "mask": np.ones(size, np.int64)} for size in (2, 3)]
    assert [feed["ids"].shape for feed in open_samples(Table(rows), TOKENS, Notes())] == [(1, 2), (1, 3)]


@pytest.mark.parametrize(
    ("data", "batch", "says"),
    [
        (Table([{"ids": [1], "mask": [1]}, {"ids": [1, 2], "mask": [1, 1]}]), 2, "several shapes"),
        (Table([{"ids": [1], "text": "a"}]), None, "lacks the input 'mask'"),
        ({"train": Table(ROWS), "test": Table(ROWS)}, None, "data['train']"),
        (Loader([(X,)]), None, "a feed is a mapping"),
    ],
)
def test_what_does_not_fit_is_refused(data, batch, says):
    with refused(InputError, "FG107", says):
        list(open_samples(data, TOKENS, Notes(), batch=batch))


def test_a_generator_is_read_once_and_optimizes(digits):
    images = np.load(digits / "calibration.npz")["image"]
    made = fp8graph.optimize(digits / "cnn.onnx", data=({"image": image[None]} for image in images[:8]))
    again = fp8graph.optimize(
        digits / "cnn.onnx", data=Loader([(Tensor(image[None]), Tensor([1])) for image in images[:8]])
    )
    assert made.planned == 9 and dict(made.plan.ops) == dict(again.plan.ops)
