"""What a graph of torch's exporters says about where a parameter came from: names, folds and scopes.

`dynamo=True` keeps a folded weight's parameter in the metadata `folded_from` of its value, and modules in `name_scopes`
of nodes; TorchScript keeps modules in node names (`/layers.0/self_attn/q_proj/MatMul`). Measured on torch 2.13.0.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator

import onnx_ir as ir

_FOLDED = "pkg.onnxscript.optimizer.folded_from"
_SCOPES = "pkg.torch.onnx.name_scopes"
_RULE = "pkg.onnxscript.rewriter.rule_name"
KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
_LEAVES = ("weight", "bias")


class Prefixes:
    """Finds a graph's name in a checkpoint, where one of the two puts a prefix such as `model.` before all names."""

    def __init__(self, graph_names: Iterable[str], names: Iterable[str]) -> None:
        self._names = frozenset(names)
        tails: dict[str, list[str]] = {}
        for name in sorted(self._names):
            for tail in _tails(name):
                tails.setdefault(tail, []).append(name)
        added: Counter[str] = Counter()
        cut: Counter[str] = Counter()
        for name in graph_names:
            added.update(full.removesuffix(name) for full in tails.get(name, ()) if full != name)
            cut.update(name.removesuffix(tail) for tail in _tails(name) if tail != name and tail in self._names)
        self._added = [prefix for prefix, _ in sorted(added.items(), key=lambda item: (-item[1], item[0]))]
        self._cut = [prefix for prefix, _ in sorted(cut.items(), key=lambda item: (-item[1], item[0]))]

    def find(self, name: str) -> str | None:
        """The checkpoint's name: the same, else with the prefix that fits most names of the graph."""
        if name in self._names:
            return name
        longer = (prefix + name for prefix in self._added)
        shorter = (name.removeprefix(prefix) for prefix in self._cut if name.startswith(prefix))
        return next((found for found in (*longer, *shorter) if found in self._names), None)


def _tails(name: str) -> Iterator[str]:
    """A dotted name and what is left of it from each dot on."""
    while True:
        yield name
        _, dot, name = name.partition(".")
        if not dot:
            return


def own_names(value: ir.Value) -> list[str]:
    """The value's name, where it still speaks of its numbers: a Conv with a BatchNormalization in it holds others."""
    fused = any(node.metadata_props.get(_RULE, "").startswith("FuseBatchNorm") for node, _ in value.uses())
    return [] if fused or not value.name else [value.name]


def folded_names(value: ir.Value) -> list[str]:
    """The one parameter that the exporter folded into this value."""
    found = _texts(value.metadata_props.get(_FOLDED, ""))
    return found if len(found) == 1 else []


def scope_names(value: ir.Value, node: ir.Node, slot: int) -> list[str]:
    """What the parameter that a node reads is called by the module that the node stands in, the likeliest first.

    TorchScript keeps one of two equal parameters and makes the other an Identity of it, under the other's name.
    """
    if node.op_type == "Identity":
        return [node.outputs[0].name or ""]
    module = _module(node)
    if not module:
        return []
    last = (value.name or "").rpartition(".")
    own = [last[2]] if last[1] and "::" not in last[2] else []
    leaves = _LEAVES[::-1] if slot == 2 or node.op_type in ("Add", "Sub") else _LEAVES
    return [f"{module}.{leaf}" for leaf in dict.fromkeys([*own, *leaves])]


def _module(node: ir.Node) -> str:
    scopes = _texts(node.metadata_props.get(_SCOPES, ""))
    if len(scopes) > 1:
        return scopes[-2]
    if not (node.name or "").startswith("/"):
        return ""
    parts = (node.name or "").strip("/").split("/")[:-1]
    # Sequential and ModuleList stand in front of their items once more: blocks/blocks.0/block/block.0
    kept = [part for part, after in zip(parts, [*parts[1:], ""], strict=True) if not after.startswith(f"{part}.")]
    return ".".join(kept)


def _texts(written: str) -> list[str]:
    """A list of texts as Python writes it; empty for anything else."""
    try:
        found = ast.literal_eval(written) if written else []
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else []
