"""Samples from objects of other libraries, known by what they can do: none of these libraries is imported.

items of a DataLoader    a mapping by input name, a tuple in the order of the model's inputs (what is left over,
                         such as labels, is left out), or one tensor for a model with one input; each a whole batch
rows of a table          Hugging Face `datasets`, whatever has `column_names`: columns that are no input are left
                         out; a row lacks the axis of the batch, and rows of one shape are stacked to one
tensors                  of torch, on any device, with or without gradients
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fp8graph.base.errors import InputError
from fp8graph.base.findings import Notes
from fp8graph.calibrate.readers.arrays import Array, InputSpec


def is_table(data: Any) -> bool:
    """Whether an object gives rows by column."""
    return hasattr(data, "column_names") and hasattr(data, "__iter__")


def length(data: Any, specs: Sequence[InputSpec], batch: int | None) -> int | None:
    """How many samples an object gives, as far as it says so."""
    try:
        rows = len(data)
    except TypeError:
        return None
    return rows // _batch(specs, batch) if is_table(data) else rows


def array_of(value: Any) -> Array:
    """An array of whatever holds one."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":
            value = value.float()  # numpy has no such type of its own
    return np.asarray(value)


def item_of(item: Any, specs: Sequence[InputSpec], notes: Notes) -> Any:
    """A mapping for what is a tuple or a tensor; what is none of these comes back as it is."""
    if isinstance(item, Mapping):
        return item
    needed = [spec.name for spec in specs if spec.required]
    if hasattr(item, "detach") and len(needed) == 1:
        return {needed[0]: item}
    if not isinstance(item, (tuple, list)) or len(item) < len(needed) or not all(hasattr(x, "dtype") for x in item):
        return item
    if len(item) > len(needed):
        text = f"a sample holds {len(item)} arrays, the model takes {len(needed)}: the last ones are left out"
        notes.add("FG122", "", text, severity="warning")
    return dict(zip(needed, item, strict=False))


def rows_of(data: Any, specs: Sequence[InputSpec], batch: int | None) -> Iterator[dict[str, Array]]:
    """Rows of a table, stacked to batches. Raises InputError FG107 for rows of several shapes, for several tables."""
    if isinstance(data, Mapping):
        what, do = "a table in several parts", f"give one of them, such as data['{next(iter(data), 'train')}']"
        raise InputError(what, where="data", why=f"its parts are {', '.join(map(str, data))}", do=do, code="FG107")
    size, known = _batch(specs, batch), {spec.name: spec for spec in specs}
    held: list[dict[str, Array]] = []
    for index, row in enumerate(data):
        held.append({name: _cell(value, known[name]) for name, value in row.items() if name in known})
        if len(held) == size:
            yield {name: _stacked([one[name] for one in held], known[name], index) for name in held[0]}
            held = []


def _batch(specs: Sequence[InputSpec], batch: int | None) -> int:
    return batch or next((spec.dims[0] for spec in specs if spec.dims and spec.dims[0]), None) or 1


def _cell(value: Any, spec: InputSpec) -> Array:
    """One value of a row; lists of Python's numbers take the input's type."""
    array = array_of(value)
    plain = not hasattr(value, "dtype") and spec.dtype is not None
    return array.astype(spec.dtype) if plain and array.dtype.kind in "iufb" else array


def _stacked(rows: list[Array], spec: InputSpec, index: int) -> Array:
    if spec.dims is not None and rows[0].ndim == len(spec.dims):
        if len(rows) == 1:
            return rows[0]  # a row that is a batch already
        return np.concatenate(rows)
    if len({row.shape for row in rows}) > 1:
        raise InputError(
            f"rows of '{spec.name}' have several shapes",
            where=f"the batch that ends with row {index}",
            why=", ".join(sorted({"x".join(map(str, row.shape)) for row in rows})),
            do="pad them to one length, or give --batch 1",
            code="FG107",
        )
    return np.stack(rows)
