"""A model run piece by piece over the same samples: each piece starts from what the one before it has left.

Repairs that learn solve one op after the other, and want to see each behind those that are solved. Running the whole
model for each would cost as many runs as it has layers; piece by piece all of them together are one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from fp8graph.graph import edit, tensors, walk
from fp8graph.runners.base import Runner
from fp8graph.runners.reference import reference

Array = np.ndarray[Any, Any]
T = TypeVar("T")
_WORKERS = min(os.cpu_count() or 1, 4)
_PAIR = ("QuantizeLinear", "DequantizeLinear")
# What numpy holds and ONNX Runtime's Python side takes.
_HELD = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.INT32}
    | {ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8}
)


@dataclass
class Steps:
    """What one model has left, for each sample: by tensor. It starts with the feeds."""

    left: list[dict[str, Array]]
    libraries: Sequence[str] = ()
    providers: Sequence[str] = ()
    _wanted: list[str] = field(default_factory=list)
    _handed: list[str] = field(default_factory=list)
    _runner: Runner | None = None

    def prepare(self, model: ir.Model, wanted: Sequence[str], later: Sequence[str]) -> None:
        """The next piece, which yields the tensors `wanted`; tensors that later pieces yield are `later`.

        Consumes `model`, whose names are those of the pieces before.
        """
        values = {value.name: value for value in walk.values(model.graph) if value.name}
        have = {name for left in self.left for name in left}
        for name in have if self._runner is None else ():  # an input with a value of its own may be fed now and then
            default = model.graph.initializers.get(name)
            if default is not None:
                array = tensors.read(default)
                for left in self.left:
                    left.setdefault(name, array)
        inside, found = _behind([values[name] for name in wanted], lambda value: value.name in have)
        made = {output for node in inside for output in node.outputs}

        def held(value: ir.Value) -> bool:
            maker = value.producer()
            return (value in made or value.name in have) and (
                maker is None or (maker.op_type not in _PAIR and value.dtype in _HELD)
            )

        _, needed = _behind([values[name] for name in later], held)
        keep = {value.name or "" for value in needed}
        self._wanted = list(dict.fromkeys(wanted))
        self._handed = sorted(value.name or "" for value in needed if value in made)
        self._runner = None
        if any(name not in have for name in (*self._wanted, *self._handed)):
            _cut(model, inside, found, [values[name] for name in (*self._wanted, *self._handed) if name not in have])
            self._runner = reference(model, self.libraries, self.providers)
            self._inputs = [value.name or "" for value in model.graph.inputs]
        self._keep = keep

    def run(self, index: int) -> Mapping[str, Array]:
        """The tensors that were wanted, of one sample, which goes on to the next piece. Once a piece."""
        before = self.left[index]
        outputs: Mapping[str, Array] = {}
        if self._runner is not None:
            outputs = self._runner.run({name: before[name] for name in self._inputs})
        wanted = {name: outputs[name] if name in outputs else before[name] for name in self._wanted}
        kept = {name: array for name, array in before.items() if name in self._keep}
        self.left[index] = kept | {name: outputs[name] for name in self._handed if name in outputs}
        return wanted


def each(count: int, what: Callable[[int], T]) -> Iterator[T]:
    """What is found of each sample, in their order, several at a time; never more than a few are held."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting: deque[Future[T]] = deque()
        for index in range(count):
            waiting.append(pool.submit(what, index))
            if len(waiting) > _WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _behind(ends: Iterable[ir.Value], stop: Callable[[ir.Value], bool]) -> tuple[list[ir.Node], list[ir.Value]]:
    """Nodes of the main graph that values need, as far as those where it stops; and these."""
    nodes: dict[ir.Node, None] = {}
    found: dict[ir.Value, None] = {}
    waiting = list(ends)
    while waiting:
        value = waiting.pop()
        maker = value.producer()
        if stop(value):
            found[value] = None
        elif maker is not None and maker not in nodes:
            nodes[maker] = None
            waiting.extend(walk.reads(maker))
    return list(nodes), list(found)


def _cut(model: ir.Model, inside: Sequence[ir.Node], found: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
    """Leaves of a model the nodes `inside`, fed with `found`."""
    graph = model.graph
    kept = set(inside)
    given: list[ir.Value] = []
    for value in found:
        if value.producer() is None:
            given.append(value)
            continue
        name, fed = value.name, ir.Value(name=value.name, type=value.type, shape=value.shape)
        value.name = f"{name}_before"
        ir.convenience.replace_all_uses_with(value, fed, replace_graph_outputs=True)
        given.append(fed)
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    gone = [node for node in reversed(list(graph)) if node not in kept]
    for inner in [inner for node in gone for _, body in walk.bodies(node) for inner in body.all_nodes()]:
        for index in range(len(inner.inputs)):  # else a body would hold on to what lies outside
            inner.replace_input_with(index, None)
    edit.remove(gone)
    graph.inputs.clear()
    graph.inputs.extend(given)
    for value in list(graph.initializers.values()):
        if value not in given:
            edit.drop_unused_initializer(value)
