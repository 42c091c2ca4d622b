"""What an engine will do with every product of a Q/DQ graph, foretold from the graph alone: anybody's, without a plan.

    forecast(model, target)   {node: Forecast} for each Conv, ConvTranspose, Gemm, MatMul, Einsum and Attention

The rules were measured on engines of TensorRT-RTX 1.7.1; what depends on the target is in its tables. Where they do not
decide, an op is not forecast to run in FP8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from fp8graph.base.findings import Severity
from fp8graph.core.facts import Facts
from fp8graph.core.operands import PRODUCTS, UNKNOWN, Follower, Operand
from fp8graph.core.quants import output_axis
from fp8graph.core.reading import ONNX, Reading, attribute, given, is_quantizer
from fp8graph.data.target import Fact, Target
from fp8graph.formats import family
from fp8graph.graph import tensors

Word = Literal["fp8", "int8", "int4", "fp4", "storage", "fell-back", "refused", "absent", "none"]
_OTHER: Mapping[str, Word] = {"int8": "int8", "int4": "int4", "fp4": "fp4"}
FIX = "python -m fp8graph check MODEL --fix -o OUT"
_RANK_0 = f"give the scale rank 0: {FIX}"
_ALONE = "leave it unquantized"
_UNFUSED = "leave attention unquantized, or build for shapes under which it fuses"
_DOMAINS = {"TRT_QuantizedAttention": ("trt", *ONNX)}


@dataclass(frozen=True)
class Forecast:
    """What will become of one op.

    verdict   the word that an attestation would use; `refused`: no engine will be built; `absent`: no output depends on
              it; `none`: nobody meant it to be quantized
    code      of the reason; empty where all is well
    """

    verdict: Word
    code: str = ""
    severity: Severity = "warning"
    text: str = ""
    do: str = ""


def forecast(model: ir.Model, target: Target, facts: Facts | None = None) -> dict[ir.Node, Forecast]:
    """The forecast for every product of a model, in graph order; types and shapes have to be inferred.

    facts   under the shapes that the engine is built for (`core.facts.facts_for`); without them the model's own
    """
    return Prophet(Reading(model), target, facts).all()


class Prophet:
    """Foretells one model for one target."""

    def __init__(self, reading: Reading, target: Target, facts: Facts | None = None) -> None:
        self.reading, self.target, self.table = reading, target, target.qdq
        self.facts = facts or Facts(reading.model, {})
        self.follower = Follower(reading, target.qdq, target.through)
        self._said: dict[ir.Node, list[Forecast]] = {}
        self._operands: dict[ir.Node, tuple[Operand, ...]] = {}

    def all(self) -> dict[ir.Node, Forecast]:
        """Every product with its forecast."""
        return {place.node: self.of(place.node) for place in self.reading.places if is_product(place.node)}

    def operands(self, node: ir.Node) -> tuple[Operand, ...]:
        """The data operands of a product, followed upwards."""
        if node not in self._operands:
            many = 3 if node.op_type in ("Attention", "TRT_QuantizedAttention") else 2
            found = [self.follower.operand(node, slot) for slot in range(many)]
            self._operands[node] = tuple(each for each in found if each is not None)
        return self._operands[node]

    def of(self, node: ir.Node) -> Forecast:
        """The forecast for one product: the first reason decides."""
        found = self._reasons(node)
        return found[0]

    def reasons(self, node: ir.Node) -> list[Forecast]:
        """All reasons that speak against a product, or about it; none where all is well."""
        return [item for item in self._reasons(node) if item.code]

    def _reasons(self, node: ir.Node) -> list[Forecast]:
        if node not in self._said:
            self._said[node] = list(dict.fromkeys(self._foretell(node)))
        return self._said[node]

    def _foretell(self, node: ir.Node) -> Iterator[Forecast]:
        if node not in self.reading.alive:
            yield Forecast("absent")
            return
        pair = self.operands(node)
        families = [family(each.format) if each.dequantizer is not None else "" for each in pair]
        # What stands behind an obstacle tells that the op was meant only where the other side says so, too.
        plain = [name for name, each in zip(families, pair, strict=True) if name and each.obstacle is None]
        if len(pair) < 2 or not (plain or all(families)):
            yield Forecast("none")
        elif not all(families):
            yield self._one_sided(pair, families)
        elif set(families) != {"fp8"}:
            yield self._other(pair, families)
        else:
            yield from self._causes(node, pair) if self.table.engine else self._seen(pair)
            yield Forecast("fp8")

    def _one_sided(self, pair: Sequence[Operand], families: Sequence[str]) -> Forecast:
        quantized = next(slot for slot, name in enumerate(families) if name)
        bare = next(slot for slot, name in enumerate(families) if not name)
        weight = self.is_weight(pair[quantized])
        if families[quantized] != "fp8":
            return Forecast("storage" if weight else "none")
        if weight:
            text = f"operand {bare} has no Q/DQ: the weight is stored in FP8, the op runs in high precision"
            do = "quantize the activation, too, where the arithmetic is to be FP8"
            return Forecast("storage", "FG305", "warning", text, do)
        text = f"operand {bare} has no Q/DQ, operand {quantized} has: the op runs in high precision"
        return Forecast("fell-back", "FG305", "warning", text, "put Q/DQ on both, or on neither")

    def is_weight(self, operand: Operand) -> bool:
        """Whether an operand is made of constants alone."""
        return self.reading.constant(operand.value) or (
            operand.dequantizer is not None and self.reading.constant(given(operand.dequantizer, 0))
        )

    def _other(self, pair: Sequence[Operand], families: Sequence[str]) -> Forecast:
        if "fp8" in families and self.table.engine:
            text = f"the operands are in {pair[0].format} and {pair[1].format}: no kernel multiplies these"
            return Forecast("refused", "FG333", "error", text, "quantize both operands to one format")
        moving = [name for name, each in zip(families, pair, strict=True) if not self.is_weight(each)]
        return Forecast(_OTHER.get((moving or list(families))[0], "none"))

    def _causes(self, node: ir.Node, pair: Sequence[Operand]) -> Iterator[Forecast]:
        """What keeps an op with FP8 on both sides from running in it; the first counts."""
        yield from self._formats(pair)
        if node.op_type == "Attention":
            yield Forecast(
                "fell-back",
                "FG331",
                "warning",
                "the operator Attention is computed in high precision, its Q/DQ are extra kernels",
                "write it as MatMul, Softmax and MatMul: `optimize` does so on the unquantized model",
            )
        yield from self._seen(pair)
        for slot, each in enumerate(pair):
            yield from self._scale(node, slot, each)
        yield from self._blocks(node, pair)
        for slot, each in enumerate(pair):
            yield from self._vector(node, slot, each)
            yield from self._place(node, slot, each)
        yield from self._row(node, pair)

    def _formats(self, pair: Sequence[Operand]) -> Iterator[Forecast]:
        for slot, each in enumerate(pair):
            if self.table.imports is not None and each.format not in self.table.imports:
                text = f"operand {slot} is in {each.format}, which {self.target.name} does not import"
                yield Forecast("refused", "FG330", "error", text, "quantize to e4m3fn")

    def _seen(self, pair: Sequence[Operand]) -> Iterator[Forecast]:
        for slot, each in enumerate(pair):
            joined = next((step for step in each.steps if step.op_type == "Concat"), None)
            if joined is not None and self.table.engine and all(self.reading.constant(item) for item in joined.inputs):
                text = f"operand {slot} joins weights behind their DequantizeLinear, on which the builder fails"
                yield Forecast("refused", "FG335", "error", text, "join the weights before they are quantized")
            if each.obstacle is not None:
                yield _hidden(each.obstacle, slot)
            if _is_mxfp8(each) and not set(self.target.chips) <= set(self.table.mxfp8):
                text = f"operand {slot} is in MXFP8, which this engine only simulates"
                yield Forecast("fell-back", "FG332", "warning", text, "quantize with one scale for the tensor")

    def _scale(self, node: ir.Node, slot: int, each: Operand) -> Iterator[Forecast]:
        scale = each.scale
        if scale is None:
            return
        if not self._fixed(scale) and not _is_mxfp8(each):
            yield Forecast(
                "fell-back",
                "FG307",
                "warning",
                f"the scale '{scale.name}' of operand {slot} is computed: the engine only simulates FP8",
                "divide by the scale before a Q/DQ with scale 1, and multiply behind the op",
            )
        shape = self.reading.shape(scale)
        if node.op_type in self.table.scalars and shape == (1,) and not self._one_channel(each):
            yield from self._list_of_one(node, slot, each, scale)

    def _list_of_one(self, node: ir.Node, slot: int, each: Operand, scale: ir.Value) -> Iterator[Forecast]:
        """Measured with tensorrt_rtx 1.7.1: the activation's makes a Conv fall back; the weight's, where the activation
        is fine, fails the build in half precision, and does nothing in fp32."""
        text = f"the scale '{scale.name}' of operand {slot} has shape [1]"
        if not self.is_weight(each):
            yield Forecast("fell-back", "FG307", "warning", f"{text}: the op runs in high precision", _RANK_0)
            return
        other = self.operands(node)[0].scale
        alone = other is None or self.reading.shape(other) != (1,)
        if alone and self.reading.dtype(node.outputs[0]) in tensors.HALF:
            yield Forecast("refused", "FG307", "error", f"{text}: the builder fails on it", _RANK_0)

    def _fixed(self, scale: ir.Value) -> bool:
        """Whether a scale is constant; one that a function is given, where every call gives a constant."""
        given_ = self.reading.argument(scale)
        return self.reading.constant(scale) or (bool(given_) and all(self.reading.constant(each) for each in given_))

    def _one_channel(self, each: Operand) -> bool:
        """Whether one scale in a list stands for the output channels of a weight, of which there is one."""
        assert each.dequantizer is not None
        shape = self.reading.shape(each.dequantizer.outputs[0])
        return shape is not None and shape[:1] == (1,) and attribute(each.dequantizer, "axis", 1) in (0, -len(shape))

    def _blocks(self, node: ir.Node, pair: Sequence[Operand]) -> Iterator[Forecast]:
        for slot, each in enumerate(pair):
            if each.dequantizer is None or _is_mxfp8(each) or not self.blocked(each.dequantizer):
                continue
            if node.op_type == "Conv":
                text = f"operand {slot} of a Conv has scales in blocks, which the importer refuses"
                yield Forecast("refused", "FG335", "error", text, "take one scale for each output channel")
                continue
            yield Forecast(
                "fp8",
                "FG316",
                "error",
                f"operand {slot} has scales in blocks, and both operands are quantized: the engine applies the first "
                "row of scales alone, the result is WRONG",
                "quantize the weight alone, or take one scale for each output channel",
            )

    def blocked(self, dequantizer: ir.Node) -> bool:
        """Whether a DQ has a scale for each of several blocks; one block over the whole axis is a vector of scales."""
        shape = self.reading.shape(given(dequantizer, 1))
        return shape is not None and len(shape) > 1 and sum((size or 2) > 1 for size in shape) > 1

    def _vector(self, node: ir.Node, slot: int, each: Operand) -> Iterator[Forecast]:
        if each.axis is None or each.dequantizer is None or self.blocked(each.dequantizer):
            return
        shape = self.reading.shape(each.value)
        rank = len(shape) if shape is not None else None
        if self._allows(node, slot, each, rank):
            return
        name = each.scale.name if each.scale is not None else ""
        if node.op_type == "Conv" and slot == 0:
            text = f"the activation has a scale for each index of an axis ('{name}'), which no Conv takes"
            yield Forecast("fell-back", "FG307", "warning", text, "take one scale for the tensor, of rank 0")
            return
        along = f"axis {each.axis}" if each.axis != UNKNOWN else "an axis that a move in between takes apart"
        yield Forecast(
            "fell-back",
            "FG308",
            "warning",
            f"the scales of operand {slot} ('{name}') lie along {along}, and cannot be applied behind the sum: the op "
            "runs in high precision",
            "take one scale, or one per output channel",
        )

    def _allows(self, node: ir.Node, slot: int, each: Operand, rank: int | None) -> bool:
        """Whether an engine can apply these scales behind the sum: where their axis is the operand's only one that is
        neither summed over nor shared with the other operand. What was not measured is refused."""
        if each.axis is None or each.axis == UNKNOWN or rank is None:
            return False
        if node.op_type == "Conv":
            return slot == 1 and each.axis == 0
        if node.op_type == "Einsum":
            return _free(node, slot, each.axis)
        if node.op_type == "Gemm":
            return each.axis == output_axis(node, slot, rank)
        if node.op_type != "MatMul":
            return False
        own = rank - 2 if slot == 0 else rank - 1
        return rank == 1 or (each.axis == own and self._batch_is_shared(node, slot, rank))

    def _batch_is_shared(self, node: ir.Node, slot: int, rank: int) -> bool:
        """Whether every leading axis of an operand of a MatMul is the other's, too."""
        mine, other = (self.reading.shape(given(node, each)) for each in (slot, 1 - slot))
        if mine is None or other is None:
            return rank == 2
        lead, across = mine[:-2], other[:-2]
        across = (1,) * (len(lead) - len(across)) + tuple(across)
        across = across[len(across) - len(lead) :]
        return all(size == 1 or there != 1 for size, there in zip(lead, across, strict=True))

    def _place(self, node: ir.Node, slot: int, each: Operand) -> Iterator[Forecast]:
        """FP8 codes that pass into a branch are dequantized in front of it."""
        assert each.dequantizer is not None
        quantizer = self.reading.source(each.dequantizer)
        if self.is_weight(each) or quantizer is None or slot > 1:
            return
        graphs = self.reading.graphs
        inside = graphs[node]
        entered = [owner for owner in self.reading.between(graphs[quantizer], inside) if owner.op_type == "If"]
        twin = None if entered else self._twin(quantizer, inside)
        if entered or twin is not None:
            text = f"operand {slot} is quantized outside of the branch that the op lies in"
            if twin is not None:
                text = f"operand {slot} is quantized alike outside of the branch ('{twin.name}'), which engines merge"
            do = "quantize inside the branch, with a scale of its own"
            yield Forecast("fell-back", "FG337", "warning", f"{text}: the op runs in high precision", do)

    def _twin(self, quantizer: ir.Node, inside: ir.Graph | ir.Function) -> ir.Node | None:
        """A Q around the If that reads the same value with the same scale."""
        value, scale = given(quantizer, 0), self.reading.number(given(quantizer, 1))
        if value is None or scale is None or value.graph is inside:
            return None
        for user, _ in value.uses():
            if user is quantizer or not is_quantizer(user):
                continue
            graph = self.reading.graphs[user]
            crossed = [owner for owner in self.reading.between(graph, inside) if owner.op_type == "If"]
            other = self.reading.number(given(user, 1))
            if crossed and other is not None and other.shape == scale.shape and (other == scale).all():
                return user
        return None

    def row_facts(self, node: ir.Node) -> dict[str, Fact]:
        """The facts that rows of the target's table ask for."""
        kinds = {self.reading.dtype(value) for value in node.outputs}
        return self.facts.of(node, half=bool(kinds & set(tensors.HALF)))

    def _row(self, node: ir.Node, pair: Sequence[Operand]) -> Iterator[Forecast]:
        if any(size == 0 for each in pair for size in self.reading.shape(each.value) or ()):
            yield Forecast("fell-back", "FG338", "info", "an operand is empty: there is nothing to compute")
        imports = self.table.imports
        if node.op_type == "Attention" or (imports is not None and any(each.format not in imports for each in pair)):
            return  # told already
        op_type = "MatMul" if node.op_type in ("Einsum", "TRT_QuantizedAttention") else node.op_type
        facts = self.row_facts(node)
        _, row = self.target.worst(op_type, [each.format for each in pair[:2]], facts)
        if row.status == "refused":
            text = f"{node.op_type} is quantized, and {self.target.name} does not run it in FP8: {row.text}"
            do = "leave it unquantized"
            yield Forecast("fell-back", "FG313", "warning", text, do)
        # Measured with tensorrt_rtx 1.7.1: stored codes fall back there, a weight with its Q in the graph does not.
        vectors = [
            each
            for each in pair
            if self.is_weight(each) and each.axis is not None and self.reading.source(each.dequantizer) is None
        ]
        if row.weights == "tensor" and vectors:
            text = f"the weight has a scale for each output channel: {row.text}"
            yield Forecast("fell-back", "FG315", "warning", text, "take one scale for the weight")
        if facts.get("attention") and facts.get("queries") == 1 and facts.get("high") == "half":
            text = "attention of one query: the fused kernel reads its operands in high precision"
            yield Forecast("fell-back", "FG338", "info", text, "leave attention unquantized in a decoder of one token")
        elif row.status == "costly" and facts.get("attention") and any(bound.fact == "high" for bound in row.when):
            # A row that asks for half precision compares with what fuses there.
            yield Forecast("fp8", "FG319", "warning", f"it runs in FP8, and not fused: {row.text}", _UNFUSED)
        elif row.status == "costly":
            yield Forecast("fp8", "FG314", "info", f"it runs in FP8, which does not pay: {row.text}", _ALONE)


def is_product(node: ir.Node) -> bool:
    """Whether a node multiplies two operands that could be in FP8."""
    return node.op_type in PRODUCTS and node.domain in _DOMAINS.get(node.op_type, ONNX)


def _is_mxfp8(each: Operand) -> bool:
    return each.dequantizer is not None and each.dequantizer.op_type == "TRT_MXFP8DequantizeLinear"


def _hidden(obstacle: ir.Node, slot: int) -> Forecast:
    if obstacle.op_type == "Cast":
        return Forecast(
            "fell-back",
            "FG312",
            "warning",
            f"operand {slot} has Cast between DQ and the op, and not from fp32 down: the op runs in high precision",
            "let DequantizeLinear give the op's type itself: a scale of that type does it",
        )
    what = f"{obstacle.op_type} between DQ and the op"
    if obstacle.op_type == "Concat":
        what = "Concat of tensors that are not quantized with one scale"
    return Forecast(
        "fell-back",
        "FG306",
        "warning",
        f"operand {slot} has {what}: the op runs in high precision",
        f"put Q/DQ behind the {obstacle.op_type}, directly before the op",
    )


def _free(node: ir.Node, slot: int, axis: int) -> bool:
    """Whether an axis of an Einsum's operand is the only one that stays in the output and is not the other's, too."""
    said = node.attributes.get("equation")
    equation = said.as_string().replace(" ", "") if said is not None and not said.is_ref() else ""
    terms, _, out = equation.partition("->")
    inputs = terms.split(",")
    if len(inputs) != 2 or "." in equation or axis >= len(inputs[slot]):
        return False
    own = [letter for letter in inputs[slot] if letter in out and letter not in inputs[1 - slot]]
    return own == [inputs[slot][axis]]
