"""A session that frees what it can at once: what is computed on the side runs right behind what it reads.

ONNX Runtime's own order runs side outputs last, so every tensor that they read stays alive until then (ResNet-50, batch
4: 224 to 282 MB for 50 maxima; in this order 51). Its optimiser numbers rewritten nodes anew, so the order has to be
made after it: the optimised model is saved, sorted, and loaded again as it is. The file is for this machine alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx

_SAVED, _SORTED, _WEIGHTS = "optimised.onnx", "sorted.onnx", "optimised.data"


def save_to(options: Any, folder: Path) -> None:
    """Makes a session with these options leave its optimised model in `folder`, its weights beside it."""
    options.optimized_model_filepath = str(folder / _SAVED)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")


def sorted_model(folder: Path, aside: Collection[str]) -> str:
    """The path of the saved model, sorted for its outputs `aside`."""
    model = onnx.load(str(folder / _SAVED), load_external_data=False)
    order = _order(model.graph, aside)
    nodes = [model.graph.node[index] for index in order]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    (folder / _SORTED).write_bytes(model.SerializeToString())
    return str(folder / _SORTED)


def as_it_is(onnxruntime: Any, options: Any) -> None:
    """Makes a session with these options run a sorted model in the order of its file."""
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED


def _order(graph: onnx.GraphProto, aside: Collection[str]) -> list[int]:
    """Indices of nodes: each node that only outputs `aside` need stands right behind the last that it reads from."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    reads = [_reads(node) for node in graph.node]
    main: set[int] = set()
    waiting = [output.name for output in graph.output if output.name not in aside]
    while waiting:
        index = makers.get(waiting.pop())
        if index is not None and index not in main:
            main.add(index)
            waiting.extend(reads[index])
    users: dict[int, list[int]] = defaultdict(list)
    left = [0] * len(reads)
    for index, names in enumerate(reads):
        sources = {makers[name] for name in names if name in makers}
        left[index] = len(sources)
        for source in sources:
            users[source].append(index)
    order: list[int] = []
    ready = [index for index in range(len(reads)) if index not in main and not left[index]]
    for index in [*ready, *(index for index in range(len(reads)) if index in main)]:
        stack = [index]
        while stack:
            done = stack.pop()
            order.append(done)
            for user in users[done]:
                left[user] -= 1
                if not left[user] and user not in main:
                    stack.append(user)
    return order


def _reads(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, those that its bodies take from around them included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            names += [name for inner in body.node for name in _reads(inner)]
            names += [output.name for output in body.output]
    return names
