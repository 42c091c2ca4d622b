"""Planning: who is quantized, why, and under which scale. Deciding is apart from doing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.base.errors import UsageError
from fp8graph.core import attention, caches, given_pairs, given_weights, quants, run_scales
from fp8graph.core.context import Context, OpView
from fp8graph.core.contract import holding, opinion_of
from fp8graph.core.epilogues import note_epilogues
from fp8graph.core.facts import Facts
from fp8graph.core.options import Options, Selection, Way
from fp8graph.core.passes import Opinion, PlanRule
from fp8graph.core.sharing import share_concat
from fp8graph.data import recipe as recipes
from fp8graph.data.plan import CAME, Cache, Decision, High, Origin, Plan, Quant, Reason, Scale, Shapes
from fp8graph.data.recipe import Recipe
from fp8graph.data.target import Fact, Row, Target
from fp8graph.formats.spec import FP32_SCALES, PerTensor
from fp8graph.graph import given, tensors, walk
from fp8graph.graph.stages import Normalized
from fp8graph.graph.typing import typed_slots

# The op types that have two data operands, and so can run in FP8.
COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")


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
    run_scales.hold(ops, normalized.model, ctx)
    planner.hold_recipe(ops)
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
        self.selection.check([(p.key, p.node.name or "", p.node.op_type) for p in walk.walk(self.model)], COMPUTE)
        self._finite: dict[ir.Value, bool] = {}
        self._losses: dict[tuple[ir.Value, Quant], float | None] = {}
        self._caches = caches.given_scales(self.model) if options.kv_cache == "fp8" else {}

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
            self._told_in_vain(op, vote)
            return kept
        impossible = self._impossible(op)
        if impossible is not None:
            return self._refuse(op, vote, kept, impossible, by="the graph")
        way = self._way(op)
        came = given_pairs.whole(op, self.ctx)
        weightless = way.recipe.activations.format == "none" and not came
        if weightless and not any(tensors.is_constant(op.input(s)) for s in (0, 1)):
            return kept.kept(Reason("FG227", way.by, "it has no weight, and no more is quantized"))
        other = given_weights.foreign(op.node, way.recipe.weights.format, self.target)
        if other and not vote.wish:
            return kept.kept(Reason("FG230", way.by, other))
        policy = given_pairs.facts() if came else quants.policy_facts(way.recipe) | self._evenness(op)
        asked = op.facts | policy | self._blocked(op)
        format, row = self.target.worst(op.node.op_type, self._formats(op, asked), asked)
        if row.status == "refused" or (row.asked and not self._asks(op, vote)):
            refused = Opinion("keep", "FG301", row.text)
            return self._refuse(op, vote, kept, refused, by=f"target {self.target.name}: {row.source}", format=format)
        if row.status == "costly" and not (self.everywhere or vote.wish):
            return kept.kept(Reason("FG304", f"target {self.target.name}: {row.source}", row.text))
        uneven = self._uneven(op) if row.activations == "any" and not came else None
        if uneven is not None:
            return self._refuse(op, vote, kept, uneven, by=way.by)
        if row.activations != "any" and way.recipe.activations.per == "block" and not came:
            self.ctx.note("FG229", place.key, row.text)
        cut = self._cut(op, row)
        slots = [s for s in (0, 1) if not weightless or tensors.is_constant(op.input(s))]
        inputs = {slot: quants.ruled(self._quant(op, slot, row, cut, asked), row.rule) for slot in slots}
        told = row.weights != "any" or row.rule or row.status == "emulated"
        text = vote.opinion.text + (f"; {cut.text if cut is not None else row.text}" if told else "")
        text += self._changed(op, inputs) + given_pairs.told(op, self.ctx)
        return replace(kept, do="quantize", why=Reason(vote.opinion.code, vote.by, text), inputs=inputs)

    def _way(self, op: OpView) -> Way:
        """How the recipe quantizes an op."""
        return self.selection.way(op.key, op.name, op.node.op_type)

    def _told_in_vain(self, op: OpView, vote: _Vote) -> None:
        """Says where an op that was excluded came quantized: its Q/DQ stays, and with it FP8."""
        if vote.opinion.code != "FG203" or op.node.op_type not in COMPUTE:
            return
        if all(given.dequantizer(op.input(slot)) is not None for slot in (0, 1)):
            text = f"{vote.opinion.text}, but it came with Q/DQ, which stays: engines run it as it came"
            do = "take its Q/DQ out of the model, or start from the unquantized one"
            self.ctx.note("FG230", op.key, text, severity="warning", do=do)

    def _asks(self, op: OpView, vote: _Vote) -> bool:
        """Whether somebody asks for what a target runs only where it is asked for."""
        types = self.options.op_types_to_quantize or ()
        return self.everywhere or vote.wish or op.node.op_type in types

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
        came = given_pairs.whole(op, self.ctx)
        for rule in self.rules:
            if came and not rule.firm:
                continue  # what pays and what costs accuracy is for numbers that are yet to be found
            with holding("rule", rule.name, f"op {op.key}"):
                opinion = opinion_of(rule.name, rule.decide(op, self.ctx), f"op {op.key}")
            if opinion is not None:
                return _Vote(opinion, rule.name)
        wanted = options.op_types_to_quantize or self.recipe.ops
        way = self._way(op)
        named = way.recipe is not self.recipe and op.node.op_type in COMPUTE
        listed = op.node.op_type in wanted or (named and not options.op_types_to_quantize)
        if listed and op.node.domain in ("", "ai.onnx"):
            if op.node.op_type not in COMPUTE:
                return _Vote(
                    Opinion("quantize", "FG204", f"{op.node.op_type} was asked for"), "--op-types-to-quantize", True
                )
            if came:
                return _Vote(given_pairs.opinion(), "the model")
            text = quants.told(way.recipe) + (f": {way.why}" if way.why else "")
            return _Vote(Opinion("quantize", "FG201", text), way.by)
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

    def _formats(self, op: OpView, asked: Mapping[str, Fact]) -> list[str]:
        """The formats that both operands would have."""
        held = [tensors.is_constant(op.input(slot)) for slot in (0, 1)]
        moving = self._way(op).recipe.activations.format
        both = [self._stored(op, slot, asked) if held[slot] else moving for slot in (0, 1)]
        return [format for format in both if format != "none"]

    def _stored(self, op: OpView, slot: int, asked: Mapping[str, Fact]) -> str:
        """The format of a weight: that which it came in, where the target runs it, else the recipe's."""
        came, wanted = given.of(op.input(slot)), self._way(op).recipe.weights.format
        if came is None or given_weights.foreign(op.node, wanted, self.target):
            return wanted
        return came.format if self._open(self.target.row(op.node.op_type, came.format, asked)) else wanted

    def _evenness(self, op: OpView) -> dict[str, Fact]:
        """Of activations in blocks: `even`, whether these are known to be whole along the last axis, `rank`, and
        `came`, whether a weight came with scales of its own; nothing where there are no blocks."""
        size = self._way(op).recipe.activations.block
        held = [tensors.is_constant(op.input(slot)) for slot in (0, 1)]
        dims = [(slot, op.input_dims(slot) or ()) for slot in (0, 1) if size and not held[slot]]
        ends = [(d, quants.contraction_axis(op.node, slot, len(d))) for slot, d in dims]
        whole = [bool(d) and axis == len(d) - 1 and (d[axis] or 1) % size[0] == 0 for d, axis in ends]
        came = any(given.of(op.input(slot)) is not None for slot in (0, 1) if held[slot])
        return {"even": all(whole), "rank": max(len(d) for d, _ in ends), "came": came} if whole else {}

    def _uneven(self, op: OpView) -> Opinion | None:
        """Why blocks do not fit an activation; None where they do."""
        policy = self._way(op).recipe.activations
        for slot in (0, 1) if policy.per == "block" else ():
            dims = op.input_dims(slot)
            if tensors.is_constant(op.input(slot)) or dims is None:
                continue
            along = quants.contraction_axis(op.node, slot, len(dims))
            rest = dims[along + 1 :]
            if dims[along] is None or (len(rest) > 1 and None in rest):
                text = f"operand {slot} has an open length along the axis that is summed over, or behind it"
                return Opinion("keep", "FG228", f"{text}: blocks need a known one")
        return None

    def _refuse(
        self, op: OpView, vote: _Vote, kept: Decision, opinion: Opinion, *, by: str, format: str = ""
    ) -> Decision:
        if not vote.wish:
            return kept.kept(Reason(opinion.code, by, opinion.text))
        asked = format or self._way(op).recipe.activations.format
        raise UsageError(
            f"{op.type} was asked for in {asked}, target '{self.target.name}' refuses it",
            where=f'op {op.key}  (name "{op.name}")',
            why=opinion.text,
            do=f"leave it out of {vote.by}",
            code="FG302",
        )

    def _quant(
        self, op: OpView, slot: int, row: Row, cut: given_weights.Cut | None, asked: Mapping[str, Fact]
    ) -> Quant:
        """How one operand is quantized, with scales that are as coarse as the target's row wants them."""
        value = op.input(slot)
        assert value is not None
        name, rank = self.facts.qualified(value), len(self.facts.dims(value) or ())
        if tensors.is_constant(value):
            came, format = given.of(value), self._stored(op, slot, asked)
            if came is None:
                return self._anew(op, slot, value, row)
            split = cut is not None and cut.split
            coarse = not given_weights.takes(row.weights, came.granularity, op.node, slot, rank)
            cut_off = given_weights.ragged(self.target, came.granularity, value)
            kept = split or not (coarse or cut_off)
            if kept and formats.family(came.format) == formats.family(format):
                origin: Origin = "given" if came.format == format else "computed"
                return Quant(name, format, came.granularity, Scale(origin, CAME))
            quant = self._anew(op, slot, value, row)
            if not kept:
                self._regrained(op, value, quant, row.text if coarse else cut_off)
            return quant
        came_with = given_pairs.quant(op, slot, name, self.ctx, self._way(op).recipe.activations.format)
        if came_with is not None:
            return came_with
        policy = quants.taken(self._way(op).recipe.activations, row.activations)
        item = self.facts.attentions.get(op.node)
        if item is not None and op.node is item.context and slot == item.probability_slot and policy.per != "block":
            scale = Scale("given", "softmax", quants.unit_scale(policy.format))
            return Quant(name, policy.format, PerTensor(), scale)
        blocks = quants.activation_granularity(policy, op.node, slot, rank)
        cached = self._of_cache(value) if not blocks.blocks and policy.format == "e4m3fn" else None
        if cached is not None:
            return Quant(name, policy.format, blocks, cached)
        return Quant(name, policy.format, blocks, quants.activation_scale(policy, blocks, self._rule(op, value)))

    def _anew(self, op: OpView, slot: int, value: ir.Value, row: Row) -> Quant:
        """How a weight is rounded by the recipe."""
        weights = self._way(op).recipe.weights
        blocks = quants.weight_granularity(weights, op.node, slot, len(value.shape or ()), row.weights)
        if given_weights.ragged(self.target, blocks, value):
            blocks = quants.weight_granularity(weights, op.node, slot, len(value.shape or ()), "channel")
        stored = weights.stored if any(size > 1 for _, size in blocks.blocks) else FP32_SCALES
        scale = Scale("computed", weights.scale, stored=stored)
        return Quant(self.facts.qualified(value), weights.format, blocks, scale)

    def _cut(self, op: OpView, row: Row) -> given_weights.Cut | None:
        """What becomes of a weight whose blocks could be products of their own; None for any other."""
        if given_weights.SPLIT not in self.target.forms or row.weights == "any":
            return None
        for slot in (0, 1):
            value = op.input(slot)
            came = given.of(value)
            if value is None or came is None or not given_weights.parts(came, op.node, slot):
                continue
            anew, result = self._anew(op, slot, value, row), self.facts.most(op.node.outputs[0])
            return given_weights.cut(self.recipe.blocks, came, anew.granularity, self._left(value, anew), result)
        return None

    def _of_cache(self, value: ir.Value) -> Scale | None:
        """The scale that came for the cache that a value is moved from: read and written with one scale."""
        found = next((self._caches[item] for item in caches.behind(value) if item in self._caches), None)
        return Scale("given", "checkpoint", float(np.float32(found))) if found is not None else None

    def _regrained(self, op: OpView, value: ir.Value, quant: Quant, why: str) -> None:
        """Says what it costs that a weight does not keep the scales that it came with; each weight is read once."""
        left = self._left(value, quant)
        cost = "nothing is lost" if left is None else f"{left:.1f} dB of it are left"
        self.ctx.note("FG229", op.key, f"the weight is rounded anew ({cost}): {why}")

    def _changed(self, op: OpView, inputs: Mapping[int, Quant]) -> str:
        """Says which weights have another format than they came in, or lost their blocks."""
        told = ""
        for slot, quant in inputs.items():
            for code, text in given_weights.told(op.input(slot), quant, self.target, self._left):
                told += f"; {text}"
                if code:
                    self.ctx.note(code, op.key, text)
        return told

    def _left(self, value: ir.Value, quant: Quant) -> float | None:
        if (value, quant) not in self._losses:
            self._losses[value, quant] = given_weights.loss(value, quant)
        return self._losses[value, quant]

    def _blocked(self, op: OpView) -> dict[str, Fact]:
        """Whether a weight came with several scales along the axis that is summed over, whatever the recipe asks."""
        came = [(slot, value, item) for slot in (0, 1) if (item := given.of(value := op.input(slot))) is not None]
        fine = [
            given_weights.takes("channel", item.granularity, op.node, slot, len(value.shape or ()))
            for slot, value, item in came
            if value is not None
        ]
        return {} if all(fine) else {"scales": "block"}

    def _rule(self, op: OpView, value: ir.Value) -> str:
        """The recipe's rule; with headroom for a value from around the body that the op lies in.

        An engine merges equal quantizations, and FP8 codes that pass into a branch are dequantized in front of it
        (tensorrt_rtx 1.7.1, read in engines): another scale keeps them apart. Twice the range costs a floating
        format nothing but the lowest of its subnormals.
        """
        depth = self.facts.captured_depth(value, op.graph)
        return self._way(op).recipe.activations.scale + (f"*{2**depth}" if depth > 0 else "")

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

    def hold_recipe(self, ops: dict[str, Decision]) -> None:
        """Raises UsageError FG341 where the target refuses what the recipe asks for of every op with a weight."""
        weighty = any(quant.scale.of_weight for op in ops.values() for quant in op.inputs.values())
        if weighty or not any(op.why.code == "FG301" for op in ops.values()):
            return
        asked = quants.policy_facts(self.recipe)
        rows = {op: self.target.worst(op, self._asked_formats(self.recipe), asked)[1] for op in self.recipe.ops}
        lines = self.recipe.ways[1:]
        if not rows or any(map(self._open, rows.values())) or any(self._runs(way, self.target) for way in lines):
            return
        wish = "; or --fp8-everywhere, to have it all the same" if any(row.asked for row in rows.values()) else ""
        able = [name for name in recipes.names() if self._runs(recipes.load(name), self.target)]
        chips = [chip for chip in self.target.all_chips if self._runs(self.recipe, replace(self.target, chips=(chip,)))]
        wish += f"; or --target {self.target.name}:{chips[0]}, which runs this one" if chips else ""
        held = {op.op_type for op in ops.values()}
        told = [row for op, row in rows.items() if op in held] or list(rows.values())
        raise UsageError(
            f"target '{self.target.name}' runs nothing of what recipe '{self.recipe.name}' asks for",
            where=f"--recipe {self.recipe.name}, --target {self.target.asked or self.target.name}",
            why=next((row for row in told if row.asked), told[0]).text,
            do=f"choose --recipe {', '.join(able)}; or --target reference, which runs every recipe{wish}",
            code="FG341",
        )

    def _runs(self, recipe: Recipe, target: Target) -> bool:
        """Whether a target runs some op as a recipe asks."""
        asked, wanted = quants.policy_facts(recipe), self._asked_formats(recipe)
        return any(self._open(target.worst(op, wanted, asked)[1]) for op in recipe.ops)

    def _open(self, row: Row) -> bool:
        """Whether a row lets an op through that nobody names."""
        return row.status != "refused" and (self.everywhere or not row.asked)

    @staticmethod
    def _asked_formats(recipe: Recipe) -> list[str]:
        return [name for name in (recipe.activations.format, recipe.weights.format) if name != "none"]

    def hold_fused(self, ops: dict[str, Decision]) -> None:
        """Every attention is in FP8. Raises UsageError FG233 for the first that is not, or where the target has no
        operator for it."""
        if "write-quantized-attention" not in self.target.forms:
            raise attention.unfused("of any", f"target '{self.target.name}' has no operator that has to fuse")
        if not self.facts.attentions:
            raise attention.unfused("of any", "the model has no attention written as two products around a Softmax")
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
            scale = self._of_cache(item.output or item.input) or Scale("observed", self.recipe.activations.scale)
            quant = Quant(seen, "e4m3fn", PerTensor(), scale)
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
            ways = {self.selection.way(key, ops[key].name, "MatMul").recipe.activations for key in products}
            if keepers or len(ways) > 1:
                odd = f"'{keepers[0]}' is kept" if keepers else "lines of the recipe quantize its products in two ways"
                why = Reason("FG210", f"group {group}", f"attention is decided as one, and {odd}")
                for key in products:
                    ops[key] = ops[key].kept(why) if ops[key].do == "quantize" else ops[key]
