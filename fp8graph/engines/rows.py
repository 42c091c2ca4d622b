"""What a target's table says of every product of a model, what was to be expected, and which make its outputs."""

from __future__ import annotations

import onnx_ir as ir

from fp8graph.core.facts import Facts, facts_for
from fp8graph.core.forecast import forecast
from fp8graph.data.attestation import HIGH
from fp8graph.data.plan import Shapes
from fp8graph.data.target import Target
from fp8graph.engines.sites import PRODUCTS
from fp8graph.graph import tensors, walk

SIZED = ("Conv", "Gemm", "MatMul")
_FORMAT = "e4m3fn"


def facts_under(model: ir.Model, shapes: Shapes) -> Facts:
    """The facts that rows ask for, under the shapes of the profiles, as planning asks."""
    try:
        return facts_for(model, shapes)
    except Exception:  # onnx raises many types; rows that ask for sizes then do not apply
        return Facts(model, {})


def statuses(model: ir.Model, target: Target, facts: Facts) -> dict[str, str]:
    """Status of the row for FP8 of every Conv, Gemm and MatMul on floating tensors, by op key."""
    found: dict[str, str] = {}
    for place in walk.walk(model):
        node = place.node
        if node.op_type in SIZED and node.domain in ("", "ai.onnx") and len(node.inputs) >= 2:
            types = [value.dtype for value in node.inputs[:2] if value is not None]
            if all(dtype is None or dtype in tensors.PLAIN for dtype in types):
                half = any(dtype in tensors.HALF for dtype in types)
                found[place.key] = target.row(node.op_type, _FORMAT, facts.of(node, half=half)).status
    return found


def forecasts(model: ir.Model, target: Target, facts: Facts) -> dict[int, str]:
    """What was to be expected of every product before the build, by id() of its node, in the words of verdicts."""
    words = {"none": HIGH}
    found: dict[int, str] = {}
    for node, said in forecast(model, target, facts).items():
        emulated = said.verdict == "fp8" and target.row(node.op_type, _FORMAT, {}).status == "emulated"
        emulated = emulated or said.code == "FG332"  # MXFP8 where there are no kernels for it
        found[id(node)] = "emulated" if emulated else words.get(said.verdict, said.verdict)
    return found


def heads(model: ir.Model) -> set[int]:
    """id() of every product behind which there is no other one: it makes an output of the model.

    Followed from each product upwards, out of bodies to what their owners read, and into the bodies of what it reads.
    """
    owners = {id(body): place.node for place in walk.walk(model) for _, body in walk.bodies(place.node)}
    products = [place.node for place in walk.walk(model) if place.node.op_type in PRODUCTS]
    waiting = [value for node in products for value in node.inputs if value is not None]
    seen: set[int] = set()
    before: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        maker = value.producer() or owners.get(id(value.graph))
        if maker is not None:
            before.add(id(maker))
            waiting += [each for each in maker.inputs if each is not None]
            waiting += [output for _, body in walk.bodies(maker) for output in body.outputs]
    return {id(node) for node in products if id(node) not in before}
