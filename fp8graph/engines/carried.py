"""Whether a model is what its plan wrote: the Q/DQ that the plan decided on, in the numbers that it holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from fp8graph.data.plan import Decision, Plan, Quant
from fp8graph.engines.promises import Promise, operands
from fp8graph.engines.sites import MOVES, PRODUCTS, Operand, Site
from fp8graph.formats import family
from fp8graph.graph import walk

# A scale that is kept in bf16 has eight bits.
_TOLERANCE = 2.0**-7
_QUANTIZE = ("QuantizeLinear", "TRT_FP8QuantizeLinear")
_STEPS = 16
# Kept, because it came with Q/DQ of its own.
_QUANTIZED_ALREADY = "FG230"


def lacking(decision: Decision, site: Site, model: ir.Model, known: set[int]) -> str:
    """Which operand has not the Q/DQ that the plan gave it, as a sentence; empty where none lacks any.

    `known`: what `sites.constants` gave.
    """
    pair = operands(site, model, known)
    for slot, quant in sorted(decision.inputs.items()):
        wanted = family(quant.format)
        found = pair[slot].format if slot < len(pair) else ""
        if found != wanted:
            has = f"is quantized to {found}" if found else "has no Q/DQ"
            return f"the plan quantizes operand {slot} to {wanted}, in the model it {has}"
    return ""


def differing(promise: Promise, decision: Decision, model: ir.Model, known: set[int]) -> str:
    """Which scale is not the plan's, as a sentence; empty where all are, or nothing can be compared.

    Passes may fold a power of two into a scale, and a scale may be kept in half precision: both are the plan's.
    """
    # An op that was taken apart, or is one with others, has other operands than the plan names.
    if len(promise.sites) != 1 or walk.ALSO in promise.sites[0].node.metadata_props:
        return ""
    pair = operands(promise.sites[0], model, known)
    for slot, quant in sorted(decision.inputs.items()):
        if slot < len(pair) and (text := _scale_differs(slot, quant, pair[slot])):
            return text
    return ""


def strangers(plan: Plan, found: Sequence[Site], model: ir.Model, known: set[int]) -> Iterator[tuple[str, str]]:
    """Key and sentence of each product that the model quantizes and the plan does not, or that it does not know.

    A product without a key of its own was put in for another, or its model was never normalized: nothing is said.
    """
    for site in found:
        key = walk.node_key(site.node)
        if not key or site.node.op_type not in PRODUCTS or walk.FOR in site.node.metadata_props:
            continue
        decision = plan.ops.get(key) or plan.ops.get(site.whole)
        if decision is None:
            yield key, f"the plan does not know this {site.node.op_type}"
        elif decision.do == "keep" and decision.why.code != _QUANTIZED_ALREADY:
            pair = operands(site, model, known)
            if len(pair) == 2 and all(each.format and each.breaker is None for each in pair):
                yield key, f"the plan keeps this {site.node.op_type} in high precision, the model quantizes it"


def _scale_differs(slot: int, quant: Quant, each: Operand) -> str:
    scale = _scale(each)
    if scale is None:
        return ""
    size = math.prod(int(str(size)) for size in scale.shape)
    if not quant.granularity.blocks and size != 1:
        return f"the plan gives operand {slot} one scale, the model {size}"
    if quant.scale.value is None or size != 1 or each.constant:
        return ""
    number = float(scale.numpy().reshape(()))
    if number > 0 and math.isfinite(number):
        apart = math.frexp(number / quant.scale.value)[0]  # in [0.5, 1): near either end it is a power of two
        if apart <= 0.5 * (1 + _TOLERANCE) or apart >= 1 - _TOLERANCE:
            return ""
    return f"the plan gives operand {slot} the scale {quant.scale.value:.6g}, the model {number:.6g}"


def _scale(each: Operand) -> ir.TensorProtocol | None:
    """The scale that an operand was quantized with: that of its QuantizeLinear; of a stored weight that of DQ."""
    node = each.dequantize
    value = node.inputs[0] if node is not None else None
    for _ in range(_STEPS):
        producer = value.producer() if value is not None else None
        if producer is None or producer.op_type not in MOVES | set(_QUANTIZE):
            break
        if producer.op_type in _QUANTIZE:
            node = producer
            break
        value = producer.inputs[0] if producer.inputs else None
    scale = node.inputs[1] if node is not None and len(node.inputs) > 1 else None
    tensor = scale.const_value if scale is not None else None
    return tensor if tensor is not None and all(isinstance(size, int) for size in tensor.shape) else None


def decisions(plan: Plan | None) -> Mapping[str, Decision]:
    """The quantized ops of a plan by key; none where there is no plan."""
    return dict(plan.quantized()) if plan is not None else {}
