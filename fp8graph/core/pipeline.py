"""Runs passes, and holds each to what its class promises."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from fp8graph.base.errors import PassContractError
from fp8graph.core.carried import undone
from fp8graph.core.context import Context
from fp8graph.core.contract import changes_of, holding
from fp8graph.core.passes import RewritePass, Stage
from fp8graph.graph import walk
from fp8graph.graph.protos import weightless

log = logging.getLogger(__name__)


class Pipeline:
    """Rewriting passes in order. Passes of one stage keep their order; a stage never comes after a later one.

    `Pipeline([...])(model)` runs on any model that `fp8graph.graph.load` takes and returns the same kind; the
    caller's object is not changed.
    """

    def __init__(self, passes: Iterable[RewritePass | str]) -> None:
        from fp8graph.core import registry

        made = [registry.create(item) if isinstance(item, str) else item for item in passes]
        for item in made:
            if not isinstance(item, RewritePass):
                raise PassContractError(f"{type(item).__name__} is no RewritePass", code="FG901")
            if not isinstance(getattr(item, "stage", None), Stage):
                why = f"its class says stage = {getattr(item, 'stage', None)!r}"
                do = "write stage: ClassVar[Stage] = Stage.FOLD, or another stage, in its class"
                raise PassContractError(f"the pass {item.name} has no stage", why=why, do=do, code="FG901")
        self.passes: tuple[RewritePass, ...] = tuple(
            sorted((p for p in made if isinstance(p, RewritePass)), key=lambda p: p.stage)
        )

    def __call__(self, model: Any, ctx: Context | None = None, *, verify: bool = False) -> Any:
        """Runs all passes on a copy of `model` and returns the same kind of object."""
        from fp8graph.core.bare import run_bare

        return run_bare(self, model, ctx, verify=verify)

    def run(
        self, model: ir.Model, ctx: Context, stages: Sequence[Stage] = tuple(Stage), *, verify: bool = False
    ) -> int:
        """Runs the passes of these stages in place and returns the number of changes.

        Raises PassContractError where a pass changes the interface, loses a planned key, or changes what it says it
        did not; with `verify` also where the result is no valid ONNX.
        """
        changes = 0
        for item in self.passes:
            if item.stage in stages:
                changes += _run_one(item, model, ctx, verify=verify)
        return changes


def _run_one(item: RewritePass, model: ir.Model, ctx: Context, *, verify: bool) -> int:
    interface, before = _interface(model, types=not item.retypes), _fingerprint(model)
    carried_out = item.stage > Stage.QUANTIZE and undone(model, ctx) is None
    begin = time.perf_counter()
    with holding("pass", item.name):
        changed = changes_of(item.name, item.rewrite(model, ctx))
    seconds = time.perf_counter() - begin
    log.log(logging.INFO if changed else logging.DEBUG, "pass %s: %d changes, %.2f s", item.name, changed, seconds)
    if _interface(model, types=not item.retypes) != interface:
        raise PassContractError(f"the pass {item.name} changed the model's inputs or outputs", code="FG901")
    if changed == 0 and _fingerprint(model) != before:
        raise PassContractError(f"the pass {item.name} changed the model and says that it did not", code="FG901")
    if ctx.plan is not None:
        here = {key for place in walk.walk(model) for key in walk.keys(place)}
        lost = [key for key, _ in ctx.plan.quantized() if key not in here]
        if lost:
            raise PassContractError(f"the pass {item.name} lost the planned op '{lost[0]}'", code="FG901")
    missing = undone(model, ctx) if changed and carried_out else None
    if missing is not None:
        raise PassContractError(
            f"the pass {item.name} took away what the plan wants",
            where=f"op {missing.key}, input {missing.slot}",
            why=missing.text,
            do=f"leave {item.name} out",
            code="FG901",
        )
    if changed:
        ctx.facts = None
        if verify:
            _verify(item, model)
    return changed


def _interface(model: ir.Model, *, types: bool) -> list[Any]:
    both = (model.graph.inputs, model.graph.outputs)
    return [[(v.name, str(v.type) if types else "", str(v.shape)) for v in values] for values in both]


def _fingerprint(model: ir.Model) -> list[Any]:
    """Every node with its op, wiring and attributes, every initializer with its tensor; all compared by identity."""
    nodes: list[Any] = []
    for place in walk.walk(model):
        node = place.node
        attributes = [(name, id(attribute)) for name, attribute in node.attributes.items()]
        nodes.append((node, node.domain, node.op_type, tuple(node.inputs), tuple(node.outputs), attributes))
    for _, graph in walk.graphs(model):
        held = {} if isinstance(graph, ir.Function) else graph.initializers
        nodes.append([(name, value, id(value.const_value)) for name, value in held.items()])
        nodes.append((tuple(graph.inputs), tuple(graph.outputs)))
    return nodes


def _verify(item: RewritePass, model: ir.Model) -> None:
    proto, _ = weightless(model)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # the checker raises its own and bare errors
        raise PassContractError(
            f"after the pass {item.name} the model is no valid ONNX", why=str(error), code="FG901"
        ) from error
