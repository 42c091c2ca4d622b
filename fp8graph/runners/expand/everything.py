"""The order in which models are expanded. Each step hands a model back that has nothing for it."""

from __future__ import annotations

import onnx_ir as ir

from fp8graph.runners.expand import (
    attention,
    bfloat16,
    float16,
    mixed_types,
    moved_codes,
    operators,
    quantized_attention,
    small_floats,
    vendor_quantization,
    versions,
)


def operators_of(model: ir.Model) -> ir.Model:
    """Operators that ONNX Runtime lacks or computes otherwise, written out."""
    return operators.expand(quantized_attention.expand(attention.expand(model)))


def numbers(model: ir.Model) -> ir.Model:
    """Types and forms of Q/DQ that it lacks or computes otherwise, in such as it computes exactly.

    What quantizes comes first, for it makes types; fp16 before bf16, which takes the last Casts; versions at the end,
    when no op is left that needs one.
    """
    expanded = moved_codes.expand(small_floats.expand(vendor_quantization.expand(model)))
    expanded = mixed_types.expand(expanded)
    return versions.expand(bfloat16.expand(float16.expand(expanded)))
