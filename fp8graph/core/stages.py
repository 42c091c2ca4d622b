"""The stages of one optimization: each takes a type of `graph.stages` and hands on the next."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from fp8graph.base.errors import InputError, InternalError, UsageError
from fp8graph.base.progress import stage
from fp8graph.core import channels
from fp8graph.core.carried import undone
from fp8graph.core.check import find, ours
from fp8graph.core.context import Context
from fp8graph.core.passes import Stage
from fp8graph.core.pipeline import Pipeline
from fp8graph.core.planner import COMPUTE
from fp8graph.data.plan import Decision, OpKey, Plan, Quant
from fp8graph.graph import keys, protos, tensors, walk
from fp8graph.graph.inlining import inline
from fp8graph.graph.opset import raise_ir_version
from fp8graph.graph.stages import Legal, Normalized, Quantized, Source


def normalize(source: Source, pipeline: Pipeline, ctx: Context, *, verify: bool = False) -> Normalized:
    """Runs the NORMALIZE passes on the model, names every output, and gives every op its key.

    Functions that hold an op which could be quantized are inlined: a function holds no initializers, so neither
    codes nor scales could lie in it. Consumes the source's model.
    """
    model = source.model
    with stage(ctx.progress, "normalizing"):
        TopologicalSortPass()(model)
        keys.adopt(model)
        _fix_overridable(model, ctx)
        wanted = {*COMPUTE, *ctx.target.decompose}
        inline(model, lambda function: any(node.op_type in wanted for node in function.all_nodes()))
        keys.name_everything(model)
        protos.infer_types(model)
        if pipeline.run(model, ctx, (Stage.NORMALIZE,), verify=verify):
            keys.name_everything(model)
            protos.infer_types(model)
        keys.write_keys(model)
    return Normalized(model, source, keys.structure_digest(model))


def _fix_overridable(model: ir.Model, ctx: Context) -> None:
    """Up to IR version 3 every initializer had to be a graph input, too: there it is a constant all the same."""
    if model.ir_version >= 4:
        return
    kept = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    dropped = len(model.graph.inputs) - len(kept)
    model.ir_version = 4  # the first in which they need not be inputs
    if dropped:
        model.graph.inputs.clear()
        model.graph.inputs.extend(kept)
        ctx.note(
            "FG219", "", f"{dropped} initializers were listed as graph inputs (IR version 3): they are constants now"
        )


def fits(plan: Plan, normalized: Normalized) -> Plan:
    """The plan, where it was made for this structure. Raises InputError FG110 that names the first difference."""
    here = {place.key: place.node for place in walk.walk(normalized.model)}
    lost = next((key for key in plan.ops if key not in here), None)
    new = next((key for key in here if key not in plan.ops), None)
    if plan.structure == normalized.structure and not lost and not new:
        for key, op in plan.quantized():
            for slot, quant in op.inputs.items():
                _check_operand(key, here[key], slot, quant)
        return plan
    why = f"the plan has an op '{lost}', the model has none" if lost else ""
    why = why or (f"the model has an op '{new}', the plan has none" if new else "shapes or attributes differ")
    where = f"plan for target {plan.target}, {normalized.source.path or 'the model given'}"
    do = "make a plan for this model: optimize without --plan"
    raise InputError("the plan was made for another model", where=where, why=why, do=do, code="FG110")


def under_shapes(plan: Plan, before: Plan, now: Plan) -> Plan:
    """A plan made without shapes, under those of `now`: `before` and `now` are what planning says without and with.

    What a reader of the plan has changed stays, but for ops that these shapes keep from being quantized.
    """
    ops: dict[OpKey, Decision] = {}
    for key, op in plan.ops.items():
        retreats = op.do == "quantize" and now.ops[key].do == "keep" and before.ops[key].do == "quantize"
        ops[key] = now.ops[key] if op == before.ops[key] or retreats else op
    return replace(plan, ops=ops, shapes=now.shapes)


def _check_operand(key: OpKey, node: ir.Node, slot: int, quant: Quant) -> None:
    """Raises InputError FG110 where the plan quantizes an input that is not there, or along axes that it has not."""
    value = node.inputs[slot] if 0 <= slot < len(node.inputs) else None
    why = "the op has no such input" if value is None else ""
    if value is not None and quant.granularity.blocks:
        if (
            not tensors.is_constant(value)
            and quant.scale.origin in ("observed", "given")
            and not quant.scale.stored.outer
        ):
            why = "an activation has one scale, or scales that are found in the graph"
        elif value.shape is not None:
            try:
                quant.granularity.sizes((1,) * len(value.shape))
            except ValueError as error:
                why = str(error)
    if why:
        raise InputError(
            "the plan does not fit the model",
            where=f"op {key}, input {slot}",
            why=why,
            do="make a plan for this model",
            code="FG110",
        )


def quantize(normalized: Normalized, pipeline: Pipeline, ctx: Context, *, verify: bool = False) -> Quantized:
    """Runs the QUANTIZE and FOLD passes: Q/DQ and casts are in, weights still lazy. Consumes the normalized model.

    Raises UsageError FG141 where the recipe's passes do not carry the plan out.
    """
    with stage(ctx.progress, "quantizing"):
        if not normalized.moved:
            channels.move(normalized.model, ctx.plan)
        pipeline.run(normalized.model, ctx, (Stage.QUANTIZE,), verify=verify)
        missing = undone(normalized.model, ctx)
        if missing is not None:
            raise UsageError(
                "the recipe's passes do not carry the plan out",
                where=f"op {missing.key}, input {missing.slot}",
                why=missing.text,
                do="name insert-qdq among the passes of the recipe",
                code="FG141",
            )
        pipeline.run(normalized.model, ctx, (Stage.FOLD,), verify=verify)
    return Quantized(normalized.model, normalized.source)


def legalize(quantized: Quantized, pipeline: Pipeline, ctx: Context, *, verify: bool = False) -> Legal:
    """Runs the LEGALIZE and CLEAN passes and checks the result. A finding of severity `error` in our own work is
    InternalError FG390: planning should have known."""
    model: ir.Model = quantized.model
    with stage(ctx.progress, "legalizing"):
        pipeline.run(model, ctx, (Stage.LEGALIZE, Stage.CLEAN), verify=verify)
        keys.name_everything(model)
        raise_ir_version(model)
        for item in find(model, ctx.target, planned=True):
            finding = item.finding
            if finding.severity == "error" and ours(item, ctx.plan):
                raise InternalError(
                    f"the result breaks a rule of the target: {finding.text}",
                    where=f"op {finding.op}",
                    why=finding.code,
                    code="FG390",
                )
            ctx.notes.add(finding.code, finding.op, finding.text, severity=finding.severity, do=finding.do)
    return Legal(model, quantized.source)
