"""What a RewritePass promises, held against one model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import Message
from onnx.reference import ReferenceEvaluator

from fp8graph.base.errors import Fp8GraphError, UsageError
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage, Ulps
from fp8graph.core.pipeline import Pipeline
from fp8graph.graph import walk
from fp8graph.graph.tensors import FLOATS
from fp8graph.runners.onnxruntime import OnnxRuntime
from fp8graph.testing.errors import (
    CountError,
    CrashError,
    DeterminismError,
    ExactnessError,
    IdempotenceError,
    InterfaceError,
    PlanError,
    ValidityError,
)
from fp8graph.testing.models import Array, Feeds
from fp8graph.testing.prepare import Prepared, split

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_EPS = {"fp64": 2.0**-52, "fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}


def hold(item: RewritePass, where: str, prepared: Prepared) -> int:
    """All promises of a rewriting pass on one model; the number of changes."""
    before, work = prepared.model, prepared.copy()
    was, interface = _stripped(before), _interface(before)
    changed = _rewrite(item, where, work)
    if _interface(work.model) != interface:
        raise InterfaceError(item, where, "the model's inputs or outputs are others than before")
    now = _stripped(work.model)
    if not isinstance(changed, int) or changed < 0 or bool(changed) != (now != was):
        raise CountError(
            item, where, f"it returned {changed!r}, and the model {'changed' if now != was else 'did not'}"
        )
    if not changed:
        return 0
    _hold_same_twice(item, where, prepared, work)
    try:
        onnx.checker.check_model(ir.to_proto(work.model), full_check=item.stage not in (Stage.QUANTIZE, Stage.FOLD))
    except Exception as error:  # the checker raises its own and bare errors
        raise ValidityError(item, where, str(error)) from error
    if prepared.ctx.plan is not None:
        here = {place.key for place in walk.walk(work.model)}
        for key, _ in prepared.ctx.plan.quantized():
            if key not in here:
                raise PlanError(item, where, f"the planned op '{key}' is gone")
    _hold_exact(item, where, prepared, work)
    return changed


def _rewrite(item: RewritePass, where: str, work: Prepared) -> Any:
    try:
        return item.rewrite(work.model, work.ctx)
    except Fp8GraphError as error:
        raise CrashError(item, where, f"it refused a model that it should take: {error}") from error
    except Exception as error:  # whatever a pass may raise
        raise CrashError(item, where, f"it raised {type(error).__name__}: {error}") from error


def _hold_same_twice(item: RewritePass, where: str, prepared: Prepared, work: Prepared) -> None:
    once, other = ir.to_proto(work.model), prepared.copy()
    _rewrite(item, where, other)
    if ir.to_proto(other.model).SerializeToString(deterministic=True) != once.SerializeToString(deterministic=True):
        raise DeterminismError(item, where, "two runs on equal models gave different bytes")
    if item.stage == Stage.QUANTIZE:
        return
    again = _rewrite(item, where, other)
    if again or _stripped(other.model) != _stripped(work.model):
        raise IdempotenceError(item, where, f"a second run made {again!r} changes")


def _hold_exact(item: RewritePass, where: str, prepared: Prepared, work: Prepared) -> None:
    if item.stage == Stage.QUANTIZE and isinstance(item.exact, Approximate):
        before, after = prepared.before, _finished(item, work)
    elif item.stage in (Stage.QUANTIZE, Stage.FOLD):  # half done, Q/DQ is not to be run
        before, after = _finished(item, prepared), _finished(item, work)
    else:
        before, after = prepared.model, work.model
    by_reference = _needs_reference(before) or _needs_reference(after)
    known = (value.dtype for _, graph in walk.graphs(before) for value in walk.values(graph))
    eps = max((_EPS[FLOATS[dtype]] for dtype in known if dtype in FLOATS), default=0.0)
    for feed in prepared.feeds:
        expected, got = (outputs(model, feed, by_reference=by_reference) for model in (before, after))
        for name, array in expected.items():
            text = difference(array, got[name], item.exact, eps)
            if text:
                raise ExactnessError(item, where, f"output '{name}': {text}")


def _finished(item: RewritePass, side: Prepared) -> ir.Model:
    """The model after the rest of the pipeline."""
    done = side.copy()
    for other in split(side.pipeline, item)[1]:
        Pipeline([other]).run(done.model, done.ctx)
    return done.model


def difference(expected: Array, got: Array, exact: Exactness, eps: float) -> str:
    """In what `got` differs from `expected` by more than is declared; empty where it does not.

    Exact          equal bit by bit; NaN equals NaN
    Ulps(n)        |got - expected| <= 4 n units in the last place of the largest element of `expected`, in a type of
                   this `eps`: the coarsest of the model. A value moves by n of its own units; sums behind it have terms
                   that are larger than the sum, for which 4 is left.
    Approximate    finite wherever `expected` is
    """
    if expected.dtype != got.dtype or expected.shape != got.shape:
        return f"{got.dtype}{list(got.shape)} instead of {expected.dtype}{list(expected.shape)}"
    if expected.dtype.kind in "biuOSU":
        return "" if isinstance(exact, Approximate) or np.array_equal(expected, got) else "other values"
    old, new = expected.astype(np.float64), got.astype(np.float64)
    if isinstance(exact, Approximate):
        return "" if np.isfinite(new[np.isfinite(old)]).all() else "not finite where it was"
    same = (old == new) | (np.isnan(old) & np.isnan(new))
    if same.all():
        return ""
    if not (np.isfinite(old) == np.isfinite(new)).all():
        return "not finite in other places"
    worst = float(np.abs(new - old)[~same].max())
    if isinstance(exact, Ulps):
        peak = float(np.abs(old[np.isfinite(old)]).max())
        allowed = 4 * exact.n * eps * 2.0 ** math.floor(math.log2(peak)) if peak else 0.0
        return (
            "" if worst <= allowed else f"moved by {worst:.3g}, {exact.n} units in the last place allow {allowed:.3g}"
        )
    return f"{int((~same).sum())} of {same.size} elements differ, by up to {worst:.3g}; `exact` declares none"


def outputs(model: ir.Model, feed: Feeds, *, by_reference: bool | None = None) -> dict[str, Array]:
    """What the model yields when each op is computed alone, in ONNX Runtime.

    With `by_reference` in onnx.reference, at the first opset that can say what Q/DQ pairs of mixed types mean; None:
    where ONNX Runtime cannot take the model (bf16 from outside, pairs half done) or does not compute it as written
    (fp16, which it leaves out between ops). Raises UsageError where that fails: it is no judgement on a pass.
    """
    if by_reference is None:
        by_reference = _needs_reference(model)
    if not by_reference:
        return OnnxRuntime(model, fuse=False).run(feed)
    view = model.clone()
    view.graph.opset_imports[""] = max(23, view.graph.opset_imports[""])
    for node in _mixed(view):
        dtype = node.outputs[0].dtype
        if node.op_type == "DequantizeLinear" and dtype is not None:
            node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(dtype))
        elif node.op_type == "QuantizeLinear":
            node.attributes["precision"] = ir.AttrInt64("precision", int(ir.DataType.FLOAT))
    try:
        session = ReferenceEvaluator(ir.to_proto(view))
        return dict(zip(session.output_names, session.run(None, dict(feed)), strict=True))
    except Exception as error:  # it raises whatever numpy does
        why = f"{type(error).__name__}: {error}"
        raise UsageError(
            "onnx.reference cannot run the model", where=model.graph.name or "", why=why, do="check on others"
        ) from error


def _needs_reference(model: ir.Model) -> bool:
    outside = {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    inside = {value.dtype for _, graph in walk.graphs(model) for value in walk.values(graph)}
    return ir.DataType.BFLOAT16 in outside or ir.DataType.FLOAT16 in inside or any(_mixed(model))


def _mixed(model: ir.Model) -> Iterator[ir.Node]:
    """Q on a half-precision value, and DQ that yields one, whose scale is float32."""
    for place in walk.walk(model):
        node = place.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.inputs[1] is not None:
            value = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
            if node.inputs[1].dtype == ir.DataType.FLOAT and value is not None and value.dtype in _HALF:
                yield node


def _interface(model: ir.Model) -> list[Any]:
    return [
        [(value.name, str(value.type), str(value.shape)) for value in values]
        for values in (model.graph.inputs, model.graph.outputs)
    ]


def _stripped(model: ir.Model) -> bytes:
    """The model's bytes without the metadata of any part of it."""
    proto = ir.to_proto(model)
    _strip(proto)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _strip(message: Message) -> None:
    """Empties every `metadata_props` below a message of onnx."""
    for field, value in message.ListFields():
        if field.name == "metadata_props":
            message.ClearField("metadata_props")
        elif field.message_type is not None:
            for item in [value] if isinstance(value, Message) else value:
                _strip(item)
