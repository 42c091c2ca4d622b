"""What a RewritePass promises, held against one model."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from fp8graph.base.errors import Fp8GraphError
from fp8graph.core.passes import Approximate, RewritePass, Stage
from fp8graph.core.pipeline import Pipeline
from fp8graph.graph import walk
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
from fp8graph.testing.exact import compared
from fp8graph.testing.prepare import Prepared, split


def hold(item: RewritePass, where: str, prepared: Prepared) -> int:
    """All promises of a rewriting pass on one model; the number of changes."""
    work, interface = prepared.copy(), _interface(prepared.model, types=not item.retypes)
    was = _stripped(ir.to_proto(prepared.model))
    changed = _rewrite(item, where, work)
    if _interface(work.model, types=not item.retypes) != interface:
        raise InterfaceError(item, where, "the model's inputs or outputs are others than before")
    made = _written(item, where, work)
    now = _stripped(made)
    if not isinstance(changed, int) or changed < 0 or bool(changed) != (now != was):
        did = "changed" if now != was else "did not change"
        raise CountError(item, where, f"it returned {changed!r}, and the model {did}")
    if not changed:
        return 0
    _hold_same_twice(item, where, prepared, made)
    try:
        onnx.checker.check_model(made, full_check=item.stage not in (Stage.QUANTIZE, Stage.FOLD))
    except Exception as error:  # the checker raises its own and bare errors
        raise ValidityError(item, where, str(error)) from error
    if prepared.ctx.plan is not None:
        here = {key for place in walk.walk(work.model) for key in walk.keys(place)}
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


def _written(item: RewritePass, where: str, work: Prepared) -> onnx.ModelProto:
    """The result as a proto; weights that are computed as they are written are computed here."""
    try:
        return ir.to_proto(work.model)
    except Exception as error:  # onnx_ir wraps whatever a lazy weight raises
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = f"what it made cannot be written: {type(cause).__name__}: {cause}"
        raise CrashError(item, where, text) from error


def _hold_same_twice(item: RewritePass, where: str, prepared: Prepared, made: onnx.ModelProto) -> None:
    other = prepared.copy()
    _rewrite(item, where, other)
    if _written(item, where, other).SerializeToString(deterministic=True) != made.SerializeToString(deterministic=True):
        raise DeterminismError(item, where, "two runs on equal models gave different bytes")
    if item.stage == Stage.QUANTIZE:
        return
    again = _rewrite(item, where, other)
    if again or _stripped(_written(item, where, other)) != _stripped(made):
        raise IdempotenceError(item, where, f"a second run made {again!r} changes")


def _hold_exact(item: RewritePass, where: str, prepared: Prepared, work: Prepared) -> None:
    if item.stage == Stage.QUANTIZE and isinstance(item.exact, Approximate):
        before, after = prepared.before, _finished(item, work)
    elif item.stage in (Stage.QUANTIZE, Stage.FOLD):  # half done, Q/DQ is not to be run
        before, after = _finished(item, prepared), _finished(item, work)
    else:
        before, after = prepared.model, work.model
    name, text = compared(before, after, prepared.feeds, item.exact)
    if text:
        raise ExactnessError(item, where, f"output '{name}': {text}")


def _finished(item: RewritePass, side: Prepared) -> ir.Model:
    """The model after the rest of the pipeline."""
    done = side.copy()
    for other in split(side.pipeline, item)[1]:
        Pipeline([other]).run(done.model, done.ctx)
    return done.model


def _interface(model: ir.Model, *, types: bool) -> list[Any]:
    return [
        [(value.name, str(value.type) if types else "", str(value.shape)) for value in values]
        for values in (model.graph.inputs, model.graph.outputs)
    ]


def _stripped(proto: onnx.ModelProto) -> bytes:
    """The bytes of a model without the metadata of any part of it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    _strip(copy)
    content: bytes = copy.SerializeToString(deterministic=True)
    return content


def _strip(message: Message) -> None:
    """Empties every `metadata_props` below a message of onnx."""
    for field, value in message.ListFields():
        if field.name == "metadata_props":
            message.ClearField("metadata_props")
        elif field.message_type is not None:
            for item in [value] if isinstance(value, Message) else value:
                _strip(item)
