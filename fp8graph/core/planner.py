"""Planning: who is quantized, why, and under which scale. Deciding is apart from doing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fp8graph.base.errors import UsageError
from fp8graph.core import attention, caches
from fp8graph.core.context import Context, OpView
from fp8graph.core.contract import holding, opinion_of
from fp8graph.core.epilogues import note_epilogues
from fp8graph.core.facts import Facts
from fp8graph.core.options import Options, Selection
from fp8graph.core.passes import Opinion, PlanRule
from fp8graph.core.sharing import share_concat
from fp8graph.data.plan import Cache, Decision, High, Plan, Quant, Reason, Scale, Shapes
from fp8graph.formats.spec import Granularity, PerAxis, PerTensor
from fp8graph.graph import tensors, walk
from fp8graph.graph.stages import Normalized
from fp8graph.graph.typing import typed_slots

# The op types that have two data operands, and so can run in FP8.
COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# The largest probability is 1: E4M3's largest value stands for it, whatever the data.
SOFTMAX_SCALE = float(np.float32(1 / 448))


@dataclass(frozen=True)
class _Vote:
    opinion: Opinion
    by: str
    wish: bool = False


def make_plan(
    normalized: Normalized, rules: Iterable[PlanRule], ctx: Context, options: Options, shapes: Shapes, facts: Facts
) -> Plan:
    """The plan of a normalized model: every op once, each with its reason; observed scales are still without numbers.

    The first opinion wins: the user's option, the recipe's patterns, the rules in their order, the recipe's default.
    The target's rows then bound it, whoever spoke. Raises UsageError (a pattern without a match, a user's wish that
    the target refuses).
    """
    planner = _Planner(normalized, list(rules), ctx, options, facts)
    ops = {place.key: planner.decide(place) for place in walk.walk(normalized.model)}
    planner.group_attention(ops)
    if options.attention == "must-fuse":
        planner.hold_fused(ops)
    if ctx.recipe.concat:
        ops = share_concat(ops, normalized.model, facts)
    note_epilogues(ops, normalized.model, ctx, facts)
    return Plan(
        structure=normalized.structure,
        target=ctx.target.asked,
        recipe=ctx.recipe.to_json(),
        asked=options.asked(),
        shapes=dict(shapes),
        caches=planner.caches() if options.kv_cache == "fp8" else {},
        ops=ops,
    )


class _Planner:
    def __init__(
        self, normalized: Normalized, rules: list[PlanRule], ctx: Context, options: Options, facts: Facts
    ) -> None:
        self.model, self.ctx, self.options, self.facts = normalized.model, ctx, options, facts
        self.recipe, self.target = ctx.recipe, ctx.target
        self.everywhere = options.fp8_everywhere or self.recipe.costly
        self.rules = [rule for rule in rules if rule.firm or not self.everywhere]
        self.selection = Selection(options, self.recipe)
        self.selection.check([(p.key, p.node.name or "", p.node.op_type) for p in walk.walk(self.model)])
        self._finite: dict[ir.Value, bool] = {}

    def decide(self, place: walk.Place) -> Decision:
        """The decision on one op; in fp32 where the target has no kernel for it in the type asked for."""
        high, node = self._high(place.node), place.node
        row = self.target.untyped(node.op_type, high) if node.domain in ("", "ai.onnx") else None
        if row is None:
            return self._decided(place, high)
        decision = self._decided(place, "fp32")
        self.ctx.note("FG222", place.key, f"stays fp32: {row.text}")
        if decision.do == "quantize":
            return decision
        why = Reason("FG222", f"target {self.target.name}: {row.source}", f"{row.text}; {decision.why.text}")
        return decision.kept(why)

    def _decided(self, place: walk.Place, high: High) -> Decision:
        op = OpView(place, self.facts, half=high != "fp32")
        vote = self._vote(op)
        kept = Decision(op.type, op.name, "keep", Reason(vote.opinion.code, vote.by, vote.opinion.text), high)
        if vote.opinion.do == "keep":
            return kept
        impossible = self._impossible(op)
        if impossible is not None:
            return self._refuse(op, vote, kept, impossible, by="the graph")
        format, row = self.target.worst(op.node.op_type, self._formats(op), op.facts)
        if row.status == "refused":
            refused = Opinion("keep", "FG301", row.text)
            return self._refuse(op, vote, kept, refused, by=f"target {self.target.name}: {row.source}", format=format)
        if row.status == "costly" and not (self.everywhere or vote.wish):
            return kept.kept(Reason("FG304", f"target {self.target.name}: {row.source}", row.text))
        per_tensor = row.weights == "tensor" or self.recipe.weights.per == "tensor"
        inputs = {slot: self._quant(op, slot, per_tensor=per_tensor) for slot in (0, 1)}
        text = vote.opinion.text + (f"; {row.text}" if row.weights == "tensor" or row.status == "emulated" else "")
        return replace(kept, do="quantize", why=Reason(vote.opinion.code, vote.by, text), inputs=inputs)

    def _vote(self, op: OpView) -> _Vote:
        identity = (op.key, op.name, op.node.op_type)
        options = self.options
        for pattern in self.selection.exclude:
            if pattern.matches(*identity):
                return _Vote(Opinion("keep", "FG203", f"'{pattern.text}' was excluded"), "--nodes-to-exclude")
        for pattern in self.selection.quantize:
            if pattern.matches(*identity):
                return _Vote(
                    Opinion("quantize", "FG204", f"'{pattern.text}' was asked for"), "--nodes-to-quantize", True
                )
        if options.op_types_to_exclude and op.node.op_type in options.op_types_to_exclude:
            return _Vote(Opinion("keep", "FG203", f"{op.node.op_type} was excluded"), "--op-types-to-exclude")
        if options.op_types_to_quantize and op.node.op_type not in options.op_types_to_quantize:
            return _Vote(
                Opinion("keep", "FG203", f"{op.node.op_type} is not among the types asked for"),
                "--op-types-to-quantize",
            )
        for pattern, line in self.selection.keep:
            if pattern.matches(*identity):
                return _Vote(Opinion("keep", "FG205", line.why), f"recipe {self.recipe.name}: '{pattern.text}'")
        if options.attention == "off" and op.node in self.facts.attentions and op.node.op_type == "MatMul":
            return _Vote(Opinion("keep", "FG211", "attention was switched off"), "--attention off")
        for rule in self.rules:
            with holding("rule", rule.name, f"op {op.key}"):
                opinion = opinion_of(rule.name, rule.decide(op, self.ctx), f"op {op.key}")
            if opinion is not None:
                return _Vote(opinion, rule.name)
        wanted = options.op_types_to_quantize or self.recipe.ops
        if op.node.op_type in wanted and op.node.domain in ("", "ai.onnx"):
            if op.node.op_type not in COMPUTE:
                return _Vote(
                    Opinion("quantize", "FG204", f"{op.node.op_type} was asked for"), "--op-types-to-quantize", True
                )
            return _Vote(Opinion("quantize", "FG201", "both operands in FP8"), f"recipe {self.recipe.name}")
        return _Vote(Opinion("keep", "FG202", f"the recipe does not quantize {op.type}"), f"recipe {self.recipe.name}")

    def _impossible(self, op: OpView) -> Opinion | None:
        """Why the op cannot be quantized whatever anybody wants; None where it can."""
        if op.node.op_type not in COMPUTE or op.node.domain not in ("", "ai.onnx"):
            return Opinion("keep", "FG215", f"{op.type} has no operands that can be in FP8")
        if op.scope.startswith("fn:"):
            return Opinion("keep", "FG215", "the op lies in a function, which holds no initializers; inline it")
        for slot in (0, 1):
            value = op.input(slot)
            if value is None or value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
                return Opinion("keep", "FG215", f"operand {slot} is {'missing' if value is None else value.dtype}")
            if tensors.is_constant(value) and not self._is_finite(value):
                return Opinion("keep", "FG212", f"the weight '{value.name}' holds a NaN or an infinity")
        if all(tensors.is_constant(op.input(slot)) for slot in (0, 1)):
            return Opinion("keep", "FG217", "both operands are constants")
        return None

    def _is_finite(self, value: ir.Value) -> bool:
        if value not in self._finite:
            array = tensors.read(value)
            self._finite[value] = array.size == 0 or bool(np.isfinite(array.max()) and np.isfinite(array.min()))
            tensors.release(value)
        return self._finite[value]

    def _formats(self, op: OpView) -> list[str]:
        """The formats that both operands would have."""
        return [
            (self.recipe.weights if tensors.is_constant(op.input(slot)) else self.recipe.activations).format
            for slot in (0, 1)
        ]

    def _refuse(
        self, op: OpView, vote: _Vote, kept: Decision, opinion: Opinion, *, by: str, format: str = ""
    ) -> Decision:
        if not vote.wish:
            return kept.kept(Reason(opinion.code, by, opinion.text))
        asked = format or self.recipe.activations.format
        raise UsageError(
            f"{op.type} was asked for in {asked}, target '{self.target.name}' refuses it",
            where=f'op {op.key}  (name "{op.name}")',
            why=opinion.text,
            do=f"leave it out of {vote.by}",
            code="FG302",
        )

    def _quant(self, op: OpView, slot: int, *, per_tensor: bool) -> Quant:
        value = op.input(slot)
        assert value is not None
        name = self.facts.qualified(value)
        if tensors.is_constant(value):
            policy = self.recipe.weights
            axis = None if per_tensor else output_axis(op.node, slot, len(value.shape or ()))
            granularity: Granularity = PerTensor() if axis is None else PerAxis(axis)
            return Quant(name, policy.format, granularity, Scale("computed", policy.scale))
        policy = self.recipe.activations
        item = self.facts.attentions.get(op.node)
        if item is not None and op.node is item.context and slot == item.probability_slot and policy.format == "e4m3fn":
            return Quant(name, policy.format, PerTensor(), Scale("given", "softmax", SOFTMAX_SCALE))
        return Quant(name, policy.format, PerTensor(), Scale("observed", self._rule(op, value)))

    def _rule(self, op: OpView, value: ir.Value) -> str:
        """The recipe's rule; with headroom for a value from around the body that the op lies in.

        An engine merges equal quantizations, and FP8 codes that pass into a branch are dequantized in front of it
        (tensorrt_rtx 1.7.1, read in engines): another scale keeps them apart. Twice the range costs a floating
        format nothing but the lowest of its subnormals.
        """
        depth = self.facts.captured_depth(value, op.graph)
        return self.recipe.activations.scale + (f"*{2**depth}" if depth > 0 else "")

    def _high(self, node: ir.Node) -> High:
        choice = self.ctx.high
        if choice != "keep":
            able = typed_slots(node, self.model.graph.opset_imports, tensors.ONNX[choice])
            return choice if able.inputs or able.outputs else "fp32"
        # A Cast has the type that it reads: that which it yields is said in its attribute.
        for value in node.inputs if node.op_type == "Cast" else (*node.outputs, *node.inputs):
            kind = tensors.FLOATS.get(value.dtype) if value is not None and value.dtype is not None else None
            if kind == "fp16":
                return "fp16"
            if kind == "bf16":
                return "bf16"
        return "fp32"

    def hold_fused(self, ops: dict[str, Decision]) -> None:
        """Every attention is in FP8. Raises UsageError FG233 for the first that is not, or where the target has no
        operator for it."""
        if "write-quantized-attention" not in self.target.forms:
            raise attention.unfused("of any", f"target '{self.target.name}' has no operator that has to fuse")
        for item in dict.fromkeys(self.facts.attentions.values()):
            members = [(key, ops[key]) for node in (item.scores, item.context) if (key := walk.node_key(node)) in ops]
            # The one that was kept for a reason of its own, not the one that follows it.
            for key, op in sorted(members, key=lambda member: member[1].why.code == "FG210"):
                if op.do == "keep":
                    raise attention.unfused(key, op.why.text)
            why = self._unfusable(item)
            if why:
                raise attention.unfused(walk.node_key(item.context), why)

    def _unfusable(self, item: attention.Attention) -> str:
        """Why no fused kernel runs an attention though its products run in FP8 (tensorrt_rtx 1.7.1)."""
        scores, query = self.facts.dims(item.scores.outputs[0]), self.facts.dims(item.scores.inputs[0])
        if scores is not None and len(scores) == 4 and scores[0] == scores[1] == 1:
            return "batch x heads is 1, for which no kernel fuses it"
        if query is not None and (query[-1] or 0) > 256:
            return f"its heads are of {query[-1]}, and none of more than 256 fuses"
        return ""

    def caches(self) -> dict[str, Cache]:
        """Caches of keys and values, to be held in FP8. Raises UsageError FG109 where the model has none."""
        found = {}
        for item in caches.find(self.model):
            seen = self.facts.qualified(item.output if item.output is not None else item.input)
            quant = Quant(seen, "e4m3fn", PerTensor(), Scale("observed", self.recipe.activations.scale))
            found[item.input.name or ""] = Cache(item.output.name or "" if item.output is not None else "", quant)
        if not found:
            raise UsageError(
                "the model has no cache of keys and values",
                where="--kv-cache fp8",
                why="no float input is joined with new values, returned, and read by a product of two activations",
                do="leave --kv-cache out, or export the model with its cache as inputs and outputs",
                code="FG109",
            )
        return found

    def group_attention(self, ops: dict[str, Decision]) -> None:
        """Attention is all or nothing: one product kept keeps both, and the reason names it."""
        for item in dict.fromkeys(self.facts.attentions.values()):
            members = [key for node in (item.scores, item.softmax, item.context) if (key := walk.node_key(node)) in ops]
            products = [key for key in members if ops[key].op_type == "MatMul"]
            group = f"attention {walk.node_key(item.softmax)}"
            for key in members:
                ops[key] = replace(ops[key], group=group)
            keepers = [key for key in products if ops[key].do == "keep"]
            if keepers:
                for key in products:
                    if ops[key].do == "quantize":
                        ops[key] = ops[key].kept(
                            Reason(
                                "FG210", f"group {group}", f"attention is decided as one, and '{keepers[0]}' is kept"
                            )
                        )


def output_axis(node: ir.Node, slot: int, rank: int) -> int | None:
    """The axis of a weight that runs along output channels; None where it has none, or per tensor must do.

    A scale along any other axis lies in the sum over products, where no kernel can apply it behind the sum.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        group = node.attributes.get("group")
        return 1 if group is None or group.as_int() == 1 else None
    if node.op_type == "Gemm":
        attribute = node.attributes.get("transB" if slot else "transA")
        flipped = attribute is not None and attribute.as_int() == 1
        return (0 if flipped else 1) if slot else (1 if flipped else 0)
    if rank < 2:
        return None
    if slot:
        return rank - 1
    return 0 if rank == 2 else None
