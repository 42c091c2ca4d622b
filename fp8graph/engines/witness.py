"""What a witness says of an op. Both, the builder's layer listing and the engine's program, are brought to one form.

product     a matrix product or convolution that stands for itself: the operand types are those it computes in
attention   a fused attention kernel: both products and the softmax in one
fusion      a product with its surroundings in one kernel. It dequantizes inside: never FP8, whatever goes in
other       a generated kernel, a copy, a jump
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["product", "attention", "fusion", "other"]
Word = Literal["fp8", "int8", "fp4", "storage", "emulated", "high", "generated", "missing", "unclear"]
# From best to worst: of several layers, profiles or calls the worst counts.
ORDER: tuple[Word, ...] = ("fp8", "int8", "fp4", "storage", "emulated", "high", "generated", "unclear", "missing")

# Types that weights are stored in at one byte or less.
SMALL = frozenset({"fp8", "fp4", "int8", "int4"})
# FP4 first: its block scales are FP8 operands beside it.
_BOTH: tuple[Literal["fp4", "fp8", "int8"], ...] = ("fp4", "fp8", "int8")
_OPERANDS_OF_ATTENTION = 3  # Q, K and V
_STEPS_BACK = 8  # kernels between a stored weight and the product: dequantize, transpose, pad
_ATTENTION = re.compile(r"_gem[mv]_mha_v\d")
_SEPARATOR = re.compile(r"\]\x1f*\[ONNX Layer: ")
_KINDS: Mapping[str, Kind] = {
    "gemm": "product",
    "correlation": "product",
    "deconv": "product",
    "fully_connected": "product",
    "corrltn": "product",
    "deconvolution": "product",
    "runtime_fusion": "fusion",
    "Convolution": "product",  # from here on: OpenVINO's words
    "Deconvolution": "product",
    "FullyConnected": "product",
    "MatMul": "product",
}


@dataclass(frozen=True)
class Tensor:
    """An operand: its name in the engine, its type in common words (fp8, fp16 ...), whether it is a stored constant."""

    name: str
    type: str
    constant: bool


@dataclass(frozen=True)
class Item:
    """An op as a reader found it, before its operands are followed to where they come from."""

    profile: int
    said: str
    names: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class EngineOp:
    """One op of an engine.

    profile    optimisation profile whose program holds it
    said       what the witness calls it: gemm, fully_connected, runtime_fusion, _gemm_mha_v2 ...
    names      names of the ONNX nodes merged into it
    operands   types of its data operands
    stored     types, of one byte or less, of the weights that it reads as they are or dequantized by kernels before it
    rounded    types that its moving operands were rounded to on their way, where all of them were: emulation
    """

    profile: int
    said: str
    names: tuple[str, ...]
    operands: tuple[str, ...]
    stored: tuple[str, ...]
    rounded: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """Which of the four kinds it is."""
        return "attention" if _ATTENTION.match(self.said) else _KINDS.get(self.said, "other")

    def to_json(self) -> dict[str, Any]:
        """The op as a row of an engine's manifest; what is empty or zero is left out."""
        row: dict[str, Any] = {"layer": self.said, "onnx": list(self.names), "operands": list(self.operands)}
        if self.stored:
            row["stored"] = list(self.stored)
        if self.rounded:
            row["rounded"] = list(self.rounded)
        if self.profile:
            row["profile"] = self.profile
        return row

    @staticmethod
    def from_json(row: Any) -> EngineOp:
        """Reads a row. Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
        return EngineOp(
            int(row.get("profile", 0)),
            str(row["layer"]),
            texts(row["onnx"]),
            texts(row["operands"]),
            texts(row.get("stored", [])),
            texts(row.get("rounded", [])),
        )


def texts(items: Any) -> tuple[str, ...]:
    """A list of texts from a document. Raises TypeError for anything else."""
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise TypeError(f"a list of texts was expected, not {items!r}")
    return tuple(items)


def layer_names(text: str) -> tuple[str, ...]:
    """The names in `[ONNX Layer: a][ONNX Layer: b]`; a name may hold brackets."""
    head = "[ONNX Layer: "
    text = text.strip("\x1f\n ")
    if not (text.startswith(head) and text.endswith("]")):
        return ()
    return tuple(_SEPARATOR.split(text[len(head) : -1]))


def link(items: Sequence[Item]) -> list[EngineOp]:
    """The ops of one engine with what their weights are stored in.

    Ops that name no node and compute no product are left out.
    """
    makers: dict[str, list[Item]] = {}
    for item in items:
        for name in item.outputs:
            makers.setdefault(name, []).append(item)
    known: dict[tuple[str, int], set[str] | None] = {}
    ops = []
    for item in items:
        stored: set[str] = set()
        for tensor in item.inputs:
            stored |= _stored(tensor, makers, _STEPS_BACK, known) or set()
        op = EngineOp(item.profile, item.said, item.names, tuple(t.type for t in item.inputs), tuple(sorted(stored)))
        if op.kind != "other" or op.names:
            ops.append(op)
    return ops


def _stored(
    tensor: Tensor, makers: Mapping[str, list[Item]], steps: int, known: dict[tuple[str, int], set[str] | None]
) -> set[str] | None:
    """Small types of the constants that a tensor is made of; None where it depends on anything but constants."""
    if tensor.constant:
        return {tensor.type} & SMALL
    if not steps or tensor.name not in makers:
        return None
    key = (tensor.name, steps)
    if key not in known:
        behind = [_stored(t, makers, steps - 1, known) for maker in makers[tensor.name] for t in maker.inputs]
        small = [types for types in behind if types is not None]
        known[key] = set().union(*small) if len(small) == len(behind) else None
    return known[key]


@dataclass(frozen=True)
class Testimony:
    """What a witness says of one op: a word, and the sentence that goes with it."""

    word: Word
    text: str


@dataclass(frozen=True)
class NodeName:
    """How engines may call a node of the model.

    base     its name, or node_of_<first output>
    full     the same with the bodies that it lies in, `mm | then (then_branch) | if (If)`; empty for a node of a
             function, which engines name by its calls
    looped   it lies in the body of a Loop or Scan, which builders unroll into layers without a name
    """

    base: str
    full: str
    looped: bool = False


@dataclass
class Witness:
    """Answers for the nodes of one model from the ops of one engine.

    `profiles`: how many the engine has, where that is known from elsewhere.
    """

    ops: Sequence[EngineOp]
    nodes: Sequence[NodeName]
    profiles: int = 0
    _of: dict[tuple[NodeName, int], list[EngineOp]] = field(init=False)
    _nameless: dict[int, list[EngineOp]] = field(init=False)
    _twins: dict[NodeName, int] = field(init=False)

    def __post_init__(self) -> None:
        self.profiles = max([self.profiles, 1, *(op.profile + 1 for op in self.ops)])
        by_base: dict[str, list[NodeName]] = {}
        for node in self.nodes:
            by_base.setdefault(node.base, []).append(node)
        self._of, self._nameless = {}, {}
        for op in self.ops:
            if not op.names and op.kind != "other":
                self._nameless.setdefault(op.profile, []).append(op)
            for layer in op.names:
                for node in meant(layer, by_base):
                    self._of.setdefault((node, op.profile), []).append(op)
        # Nodes that engines cannot tell apart: each is there only if as many products name it.
        self._twins = {}
        for same in by_base.values():
            places = Counter(node.full for node in same)
            for node in same:
                self._twins[node] = places[node.full] + places[""] if node.full else len(same)

    def says(self, node: NodeName) -> Testimony:
        """The word on one node, over all profiles: the worst, with where it differs."""
        said = self.in_profiles(node)
        worst = max(said, key=lambda testimony: ORDER.index(testimony.word))
        if len(set(said)) == 1:
            return worst
        each = "; ".join(f"profile {index}: {testimony.text}" for index, testimony in enumerate(said))
        return Testimony(worst.word, each)

    def in_profiles(self, node: NodeName) -> list[Testimony]:
        """The word on one node in each profile."""
        return [self._in_profile(node, profile) for profile in range(self.profiles)]

    def _in_profile(self, node: NodeName, profile: int) -> Testimony:
        listed = self._of.get((node, profile), [])
        # An attention names the projections, too, whose scales per channel it applies: they speak for themselves.
        products = [op for op in listed if op.kind == "product"]
        telling = products or [op for op in listed if op.kind == "attention"]
        twins = self._twins.get(node, 1)
        if twins > 1 and len(telling) < twins:
            return Testimony("unclear", f"{twins} nodes are called '{node.base}', {len(telling)} products name them")
        # A fusion, too, names nodes whose epilogue it took in: it speaks only where no product does.
        telling = telling or [op for op in listed if op.kind == "fusion"]
        if node.looped and telling:
            telling = telling + self._nameless.get(profile, [])
        said = [_judge(op) for op in telling or listed]
        if not said:
            return Testimony("missing", "no layer names it")
        return max(said, key=lambda testimony: ORDER.index(testimony.word))


def meant(layer: str, by_base: Mapping[str, list[NodeName]]) -> Iterable[NodeName]:
    """The nodes that a layer's name may mean: those of the longest base; of several, the one in the same place."""
    base = layer
    while base not in by_base:
        base, found, _ = base.rpartition(" | ")
        if not found:
            return ()
    nodes = by_base[base]
    exact = [node for node in nodes if node.full == layer]
    return exact if exact and len(nodes) > 1 else nodes


def _judge(op: EngineOp) -> Testimony:
    """The word on one op."""
    types = " x ".join(op.operands)
    kept = f", a weight stored in {' and '.join(op.stored)}" if op.stored else ""
    low: Word = "storage" if op.stored else "high"
    if op.kind == "attention":
        for small in _BOTH:
            # _gemv_mha quantizes in registers: its arithmetic is in high precision, whatever goes in.
            if op.operands.count(small) >= _OPERANDS_OF_ATTENTION and op.said.startswith("_gemm"):
                return Testimony(small, f"fused attention on {types}")
        kernel = "attention of a single query" if op.said.startswith("_gemv") else "fused attention"
        return Testimony("high", f"{kernel} on {types}")
    if op.kind == "product":
        for small in _BOTH:
            if op.operands.count(small) >= 2:
                return Testimony(small, f"{small} x {small}")
        if op.rounded:
            text = f"{' x '.join(op.operands[:2])} on values rounded to {' and '.join(dict.fromkeys(op.rounded))}"
            return Testimony("emulated", text)
        return Testimony(low, " x ".join(op.operands[:2]) + kept)
    if op.kind == "fusion":
        return Testimony(low, f"fused with its dequantization, arithmetic in high precision{kept}")
    return Testimony("storage" if op.stored else "generated", f"part of a generated kernel{kept}")
