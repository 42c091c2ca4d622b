"""What is in an engine, as `inspect` shows it and `diff` compares it: its layers, and a word on each node they name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fp8graph.base.names import OpPattern
from fp8graph.data.contents import Contents, OpContent
from fp8graph.engines.manifest import Manifest
from fp8graph.engines.program import EngineFile
from fp8graph.engines.witness import EngineOp, NodeName, Witness

_SCOPE = re.compile(r".*\.(?:then_branch|else_branch|body)/|fn:[^/]*/")
# What exporters append to a node's name for its output: PyTorch, TensorFlow.
_OUTPUT = re.compile(r"_output_\d+$|:\d+$")


def of_engine(file: EngineFile, name: str, manifest: Mapping[str, Any] | None, silent: str = "") -> Contents:
    """The contents of an engine file; `manifest` is the document beside it, `silent` why one there is not heard.

    Of a file whose inside is not known `unknown` says why, whatever the manifest lists: that is the builder's word.
    """
    said = manifest or {}
    about = {
        "file": name,
        "sha256": file.sha256,
        "builder": file.builder,
        "unknown": file.unknown,
        "model": said.get("model", ""),
        "plan": said.get("plan", ""),
        "manifest": silent,
    }
    io = {"chips": list(file.chips), "profiles": file.profiles, **_shapes(said)}
    rest = _sections(file.ops, said)
    ops = _ops(file.ops, said)
    return Contents("engine", about, io, ops, weights=file.weights, unknown=file.unknown, sections=rest)


def of_manifest(manifest: Manifest, document: Mapping[str, Any]) -> Contents:
    """The contents of a manifest without its engine: what the builder listed."""
    unknown = "" if manifest.layers is not None else "the builder listed no layers"
    about = {"engine": manifest.engine, "builder": manifest.builder, "unknown": unknown}
    about |= {"model": manifest.model, "plan": manifest.plan}
    io = {"chips": list(manifest.chips), "profiles": max(1, len(manifest.profiles)), **_shapes(document)}
    layers = manifest.layers or ()
    return Contents("engine", about, io, _ops(layers, document), unknown=unknown, sections=_sections(layers, document))


def by_key(patterns: Sequence[OpPattern], found: Contents) -> list[OpPattern]:
    """The patterns as they select in an engine: where no manifest tells keys, one that is a key and selects nothing
    else stands for the nodes that are called after it.

    A key is a scope and the first output: that is the name of an unnamed node, and begins with a name in most others.
    """
    if any("keys" in op.more for op in found.ops):
        return list(patterns)
    return [_called(pattern, [op.name for op in found.ops]) for pattern in patterns]


def _called(pattern: OpPattern, names: Sequence[str]) -> OpPattern:
    if pattern.kind not in ("", "key") or any(pattern.matches(name, name, "") for name in names):
        return pattern
    scope = _SCOPE.match(pattern.body)
    output = pattern.body[scope.end() :] if scope else pattern.body
    bases = (output, f"node_of_{output}", _OUTPUT.sub("", output))
    called = [name for name in names if name.partition(" | ")[0] in bases]
    if not called:
        return pattern
    wider = OpPattern("re:" + "|".join(map(re.escape, called)))
    wider.text = pattern.text  # what messages speak of
    return wider


def _ops(layers: Sequence[EngineOp], manifest: Mapping[str, Any]) -> tuple[OpContent, ...]:
    """A word on every node that a layer names.

    The first name of a product or a fused attention is the product itself (measured with 1.6.1 and 1.7.1); the nodes
    behind it were merged into its kernel, and are minor.
    """
    products = [layer for layer in layers if layer.kind != "other" and layer.names]
    mains = dict.fromkeys(layer.names[0] for layer in products)
    kinds = {name: layer.kind for layer in layers for name in layer.names}
    kinds |= {name: layer.kind for layer in products for name in layer.names}
    nodes = {name: NodeName(name, name) for layer in (*products, *layers) for name in layer.names}
    witness = Witness(layers, list(nodes.values()))
    keys = manifest.get("keys", {})
    ops = []
    for name, node in nodes.items():
        heard = witness.says(node)
        minor = name not in mains
        more = {"keys": keys[name]} if name in keys else {}
        ops.append(OpContent(name, name, "" if minor else kinds[name], heard.word, heard.text, minor=minor, more=more))
    return tuple(ops)


def _sections(layers: Iterable[EngineOp], manifest: Mapping[str, Any]) -> dict[str, Any]:
    keys = manifest.get("keys", {})
    rows = [
        {
            "kind": layer.kind,
            "layer": layer.said,
            "operands": list(layer.operands),
            "stored": list(layer.stored),
            "profile": layer.profile,
            "name": " + ".join(layer.names) or "(generated)",
            "names": list(layer.names),
            **({"keys": some} if (some := [key for name in layer.names for key in keys.get(name, ())]) else {}),
        }
        for layer in layers
    ]
    return {"options": manifest.get("options", {}), "layers": rows}


def _shapes(manifest: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        {"profile": index, "input": name, **bounds}
        for index, profile in enumerate(manifest.get("profiles", ()))
        for name, bounds in profile.items()
    ]
    return {"shapes": rows} if rows else {}
