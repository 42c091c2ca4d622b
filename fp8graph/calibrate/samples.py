"""Calibration and comparison data: any number of URIs, arrays or generators, read as feeds of the model."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import onnx_ir as ir

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.findings import Notes
from fp8graph.calibrate.readers import feeds_json, npz, objects, random, script
from fp8graph.calibrate.readers.arrays import Array, InputSpec, count_of, cut, feeds
from fp8graph.graph import coded, tensors, walk

DEFAULT_RANDOM = 8


@dataclass(frozen=True)
class Samples:
    """Feeds that can be read again and again. `label` says where they come from; `random` is stamped there."""

    label: str
    read: Callable[[], Iterator[dict[str, Array]]]
    count: int | None = None

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return self.read()

    def shard(self, index: int, of: int) -> Samples:
        """Every `of`-th sample from the one at `index` on: all of them together are the whole."""

        def read() -> Iterator[dict[str, Array]]:
            empty = True
            for feed in itertools.islice(self.read(), index, None, of):
                empty = False
                yield feed
            if empty:
                raise InputError(
                    f"the shard {index}/{of} holds no sample",
                    where=self.label,
                    why=f"the data has {index} at most" if index else "the data is empty",
                    do="take fewer shards",
                    code="FG107",
                )

        return Samples(self.label, read, None if self.count is None else len(range(index, self.count, of)))

    def apart(self, of: int) -> tuple[Samples, Samples]:
        """The samples without the last of every `of`, and these: to learn from, and to judge on. One at least is held
        back; reads the samples once where their number is not known."""
        count = self.count if self.count is not None else sum(1 for _ in self)
        of = max(1, min(count, of))

        def part(back: bool) -> Samples:
            chosen = {index for index in range(count) if (index % of == of - 1) == back}

            def read() -> Iterator[dict[str, Array]]:
                return (feed for index, feed in enumerate(itertools.islice(self.read(), count)) if index in chosen)

            return Samples(self.label, read, len(chosen))

        return part(back=False), part(back=True)

    def first(self, number: int) -> Samples:
        """The first samples, `number` at most."""
        count = None if self.count is None else min(number, self.count)
        return Samples(self.label, lambda: itertools.islice(self.read(), number), count)

    def behind(self, done: int) -> Samples:
        """The samples that follow the first `done`, which may be none."""
        left = None if self.count is None else max(0, self.count - done)
        return Samples(self.label, lambda: itertools.islice(self.read(), done, None), left)


def input_specs(model: ir.Model) -> list[InputSpec]:
    """What the model's inputs are; those with an initialiser may be left out."""
    specs = []
    for value in model.graph.inputs:
        dims = tensors.dims(value) if isinstance(value.type, ir.TensorType) else None
        needed = value.name not in model.graph.initializers
        before = coded.retyped([value]).get(value.name or "")
        stands_for = None if before is None else tensors.NUMPY[tensors.FLOATS[before]]
        specs.append(InputSpec(value.name or "", _numpy(value), dims, needed, stands_for))
    return specs


def check_alike(a: ir.Model, b: ir.Model, where: str) -> None:
    """Raises InputError FG107 where two models cannot be run on the same samples, with the inputs of both."""
    left, right = ({spec.name: spec for spec in input_specs(model)} for model in (a, b))
    for name in (*left, *right):
        one, other = left.get(name), right.get(name)
        if one is None or other is None:
            has, lacks = ("the first", "the second") if other is None else ("the second", "the first")
            needed = (one or other or InputSpec("", None, None)).required
            what = f"{has} model has an input '{name}', {lacks} has none" if needed or other is None else ""
        elif not (_is_coded(one) or _is_coded(other) or _meant(one) & _meant(other)):
            what = f"the input '{name}' is {one.dtype} in the first model, {other.dtype} in the second"
        else:
            clash = one.dims is not None and other.dims is not None and not _fit(one.dims, other.dims)
            what = f"the input '{name}' has another shape in the second model" if clash else ""
        if what:
            raise InputError(
                what,
                where=where,
                why=f"inputs of the first: {_listed(left)}; of the second: {_listed(right)}",
                do="compare models with the same inputs: python -m fp8graph inspect MODEL lists them",
                code="FG107",
            )


def _meant(spec: InputSpec) -> set[Any]:
    """The types that can be fed: runners turn that which an input had before into that which it has."""
    return {spec.dtype, *([spec.stands_for] if spec.stands_for is not None else [])}


def _is_coded(spec: InputSpec) -> bool:
    """Whether an input takes FP8 codes (a cache): runners encode the floats of the other model for it."""
    return str(spec.dtype).startswith("float8")


def _fit(one: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    return len(one) == len(other) and all(None in pair or len(set(pair)) == 1 for pair in zip(one, other, strict=True))


def _listed(specs: Mapping[str, InputSpec]) -> str:
    shown = []
    for spec in specs.values():
        dims = "x".join("?" if d is None else str(d) for d in spec.dims) if spec.dims is not None else "of unknown rank"
        shown.append(f"{spec.name} {spec.dtype} {dims}".rstrip())
    return ", ".join(shown) or "none"


def open_samples(
    data: Any,
    model: ir.Model,
    notes: Notes,
    *,
    samples: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    val_range: Mapping[str, random.Range] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Samples:
    """The samples of `data`: a URI or several, a mapping of arrays, an iterable of feeds, or a function that gives one.

    A sample is one feed: what the model takes in one run, a whole batch. URIs: `f.npz`, `f.npy` (models with one
    input), a folder, feeds as Polygraphy saves them (`f.json`), `script:f.py:load_data`, `random`, which alone takes
    `val_range` and `input_shapes`. Only the first `samples` are read.
    Raises InputError FG107 (does not fit the model) or FG108 (cannot be read), UsageError FG100 and FG101.
    """
    specs = input_specs(model)
    if isinstance(data, (str, Path)):
        data = [data]
    if not is_random(data):
        for option, value in (("--val-range", val_range), ("--input-shapes", input_shapes)):
            if value:
                raise UsageError(
                    f"{option} says how random data is made, and the data is not random",
                    where=option,
                    do="leave it out, or give --data random",
                    code="FG100",
                )
    made = random.Random(seed, val_range or {}, input_shapes or {}, walk.shape_inputs(model) if input_shapes else ())
    label, read = _reader(data, specs, notes, samples, batch, made)
    total = _total(data, specs, batch, samples)

    def limited() -> Iterator[dict[str, Array]]:
        empty = True
        for feed in itertools.islice(read(), samples):
            empty = False
            yield feed
        if empty:
            raise InputError("the data holds no sample", where=label, do="give at least one", code="FG107")

    return Samples(label, limited, total if samples is None or total is None else min(total, samples))


def is_random(data: Any) -> bool:
    """Whether `data` asks for random feeds."""
    if isinstance(data, (list, tuple)):
        return len(data) == 1 and isinstance(data[0], str) and data[0] == "random"
    return isinstance(data, str) and data == "random"


def _total(data: Any, specs: list[InputSpec], batch: int | None, samples: int | None) -> int | None:
    """How many samples there are, as far as that is known without reading any: for progress, never for a decision."""
    try:
        if isinstance(data, Mapping):
            return _count({str(name): np.asarray(array).shape for name, array in data.items()}, specs, batch)
        if not isinstance(data, Sequence):
            return objects.length(data, specs, batch)
        if not all(isinstance(item, (str, Path)) for item in data):
            return len(data)
        if is_random(data):
            return samples or DEFAULT_RANDOM
        if any(_is_whole(item) for item in data):
            return None
        return sum(_count(shapes, specs, batch) for item in data for shapes in _shapes(Path(item), specs))
    except Exception:  # reading it will say what is wrong
        return None


def _shapes(path: Path, specs: list[InputSpec]) -> Iterator[dict[str, tuple[int, ...]]]:
    """The shapes by input of each set of arrays that a path holds."""
    if path.suffix == ".npy":
        yield {next(spec.name for spec in specs if spec.required): npz.shapes(path)[path.stem]}
    elif not path.is_dir():
        yield npz.shapes(path)
    else:
        files = npz.files_in(path)
        yield {file.stem: npz.shapes(file)[file.stem] for file in files if file.suffix == ".npy"}
        yield from (npz.shapes(file) for file in files if file.suffix == ".npz")


def _count(shapes: Mapping[str, tuple[int, ...]], specs: list[InputSpec], batch: int | None) -> int:
    if not shapes:
        return 0
    kinds = {spec.name: spec.dtype for spec in specs}
    # Arrays of these shapes that hold one element each, whatever their size.
    views = {name: np.broadcast_to(np.zeros((), kinds.get(name)), shape) for name, shape in shapes.items()}
    return count_of(cut(views, specs, "", batch))


def files_of(data: Any) -> list[Path]:
    """The files that would be read as data, those in folders included; empty for what is no path."""
    items = [data] if isinstance(data, (str, Path)) else data if isinstance(data, (list, tuple)) else []
    paths = [_path_of(item) for item in items if isinstance(item, (str, Path))]
    return [file for path in paths for file in (npz.files_in(path) if path.is_dir() else [path])]


def _path_of(uri: str | Path) -> Path:
    return script.file_of(uri) if _is_script(uri) else Path(uri)


def _is_script(uri: str | Path) -> TypeGuard[str]:
    return isinstance(uri, str) and uri.startswith(script.PREFIX)


def _is_whole(uri: str | Path) -> bool:
    """Whether a URI gives whole feeds, whose number is not known before they are read."""
    return _is_script(uri) or any(file.suffix == ".json" for file in files_of(uri))


def _reader(
    data: Any, specs: list[InputSpec], notes: Notes, samples: int | None, batch: int | None, made: random.Random
) -> tuple[str, Callable[[], Iterator[dict[str, Array]]]]:
    if objects.is_table(data) or (isinstance(data, Mapping) and any(map(objects.is_table, data.values()))):
        return "table", lambda: _checked(objects.rows_of(data, specs, batch), specs, notes=notes)
    if isinstance(data, Mapping):
        arrays = {str(name): objects.array_of(array) for name, array in data.items()}
        return f"arrays {_digest(arrays)}", lambda: _cut_feeds("the arrays given", arrays, specs, notes, batch)
    if is_random(data):
        count = samples or DEFAULT_RANDOM
        notes.add(
            "FG121",
            "",
            f"the scales come from random data (seed {made.seed}): they say nothing about real inputs",
            severity="warning",
        )
        return made.label(count), lambda: random.feeds(specs, count, batch, made)
    if isinstance(data, Sequence) and all(isinstance(item, (str, Path)) for item in data):
        sources = [_source(item, specs, notes, batch) for item in data]
        label = ", ".join(script.label_of(item) if _is_script(item) else Path(item).name for item in data)
        return label, lambda: itertools.chain.from_iterable(source() for source in sources)
    if callable(data):
        return "function", lambda: _checked(_called(data), specs, notes=notes)
    if isinstance(data, Iterable):
        held = list(data) if isinstance(data, Iterator) else data  # what can be read once, is read several times
        return "feeds", lambda: _checked(held, specs, notes=notes)
    raise InputError(
        f"{data!r:.60} is no data",
        why=f"it is of type {type(data).__name__}",
        do="give a path, arrays by input name, or an iterable of feeds",
        code="FG108",
    )


def _source(
    uri: str | Path, specs: list[InputSpec], notes: Notes, batch: int | None
) -> Callable[[], Iterator[dict[str, Array]]]:
    """What reads one URI. Raises InputError FG108 where nothing is there, and what a script raises."""
    if _is_script(uri):
        function = script.function_of(uri)
        return lambda: _checked(function(), specs, f"{uri}, ", notes)
    path = Path(uri)
    if not path.exists():
        raise InputError("the data does not exist", where=str(path), do="check the path after --data", code="FG108")
    return lambda: _from_path(path, specs, notes, batch)


def _from_path(path: Path, specs: list[InputSpec], notes: Notes, batch: int | None) -> Iterator[dict[str, Array]]:
    files = npz.files_in(path) if path.is_dir() else [path]
    if files and files[0].suffix == ".json":
        for file in files:
            yield from _checked(feeds_json.load(file), specs, f"{file}, ")
    elif path.is_dir():
        for where, arrays in npz.folder(path):
            yield from _cut_feeds(where, arrays, specs, notes, batch)
    elif path.suffix == ".npy":
        required = [spec for spec in specs if spec.required]
        if len(required) != 1:
            raise InputError(
                "an .npy file fits a model with one input",
                where=str(path),
                why=f"this one has {len(required)}",
                do="give an .npz file, or a folder of one NAME.npy per input",
                code="FG107",
            )
        yield from _cut_feeds(str(path), {required[0].name: npz.load_npy(path)}, specs, notes, batch)
    else:
        yield from _cut_feeds(str(path), npz.load(path), specs, notes, batch)


def _cut_feeds(
    where: str, arrays: Mapping[str, Array], specs: list[InputSpec], notes: Notes, batch: int | None
) -> Iterator[dict[str, Array]]:
    cuts = cut(arrays, specs, where, batch)
    for name, item in cuts.items():
        if item.rest:
            notes.add(
                "FG122",
                "",
                f"{where}: {item.rest} rows of '{name}' do not fill a batch and are left out",
                severity="warning",
            )
    return feeds(cuts, where)


def _called(function: Callable[[], Any]) -> Iterable[Any]:
    made = function()
    if not isinstance(made, Iterable):
        raise InputError(
            "a function of data gives an iterable of feeds",
            why=f"it gave {type(made).__name__}",
            do=script.YIELD,
            code="FG107",
        )
    return made


def _checked(
    items: Iterable[Any], specs: list[InputSpec], source: str = "", notes: Notes | None = None
) -> Iterator[dict[str, Array]]:
    """Feeds that are whole already; `source` is what errors say in front of the sample. With `notes`, items of other
    libraries, too."""
    for index, given in enumerate(items):
        where = f"{source}sample {index}"
        item = given if notes is None else objects.item_of(given, specs, notes)
        if not isinstance(item, Mapping):
            raise InputError(
                "a feed is a mapping of arrays by input name",
                where=where,
                why=f"got {type(item).__name__}",
                do=script.YIELD,
                code="FG107",
            )
        stacked = {str(name): objects.array_of(array)[None] for name, array in item.items()}
        for spec in specs:
            if spec.name in stacked and spec.dims is not None and stacked[spec.name].ndim != len(spec.dims) + 1:
                raise InputError(
                    f"the input '{spec.name}' has rank {stacked[spec.name].ndim - 1}",
                    where=where,
                    why=f"the model wants rank {len(spec.dims)}: each sample is a whole feed",
                    do="give data for this model",
                    code="FG107",
                )
        yield from feeds(cut(stacked, specs, where, None), where)


def _digest(arrays: Mapping[str, Array]) -> str:
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(name.encode() + str(arrays[name].dtype).encode() + str(arrays[name].shape).encode())
        sha.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha.hexdigest()[:16]


def _numpy(value: ir.Value) -> np.dtype[Any] | None:
    if value.dtype is None or not isinstance(value.type, ir.TensorType):
        return None
    if value.dtype == ir.DataType.STRING:
        return np.dtype(object)
    if value.dtype == ir.DataType.BFLOAT16:
        return tensors.NUMPY["bf16"]
    try:
        return value.dtype.numpy()
    except TypeError:
        return None
