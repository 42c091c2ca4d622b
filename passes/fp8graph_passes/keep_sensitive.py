"""Keep ops in high precision whose result FP8 would spoil, and say which kind each is.

What it does   Norms, softmax, exponentials, embeddings, recurrent cells, ConvTranspose and outer products stay.
Why            A norm divides by a spread of its input, softmax exponentiates it, an embedding is a look-up without
               arithmetic, a recurrent cell feeds its own rounding back. A product over one element sums nothing: there
               is no arithmetic to gain on, and nothing averages the rounding of its operands. Exporters write the
               angles of rotary positions so (positions times frequencies), of which a sine and a cosine are taken.
Codes          FG206 kept: sensitive op
Exactness      plan only, no arithmetic changes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fp8graph.core.context import Context, OpView
from fp8graph.core.passes import Opinion, PlanRule
from fp8graph.core.quants import contraction_axis
from fp8graph.graph import tensors

_KINDS = {
    "norm": "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization RMSNormalization LRN "
    "LpNormalization MeanVarianceNormalization SimplifiedLayerNormalization SkipLayerNormalization",
    "softmax": "Softmax LogSoftmax Hardmax",
    "recurrent cell": "LSTM GRU RNN",
    "transposed convolution": "ConvTranspose",
    "fused attention": "Attention MultiHeadAttention GroupQueryAttention",
    "transcendental function": "Exp Log Erf Gelu Tanh Sigmoid Pow Sqrt Reciprocal Sin Cos",
}
_TEXT = {
    "norm": "a norm divides by its input's spread: it stays in high precision",
    "softmax": "softmax exponentiates its input: it stays in high precision",
    "recurrent cell": "a recurrent cell feeds its rounding back: it stays in high precision",
    "transposed convolution": "no kernel runs a transposed convolution in FP8",
    "fused attention": "the fused operator has no place for the scale of its probabilities",
    "transcendental function": "the function is computed in high precision",
    "outer product": "a product over one element sums nothing: there is no arithmetic to gain on",
    "embedding": "an embedding is a look-up, there is no arithmetic to gain on",
}
_BY_TYPE = {op_type: kind for kind, types in _KINDS.items() for op_type in types.split()}


@dataclass(frozen=True)
class KeepSensitive(PlanRule):
    """Sensitive kinds of op stay in high precision."""

    firm: ClassVar[bool] = True

    def decide(self, op: OpView, ctx: Context) -> Opinion | None:
        """By op type; a Gather from a constant table is an embedding, a product over one element an outer one."""
        kind = _BY_TYPE.get(op.node.op_type)
        if op.node.op_type == "Gather" and tensors.is_constant(op.input(0)) and len(op.input_dims(0) or ()) > 1:
            kind = "embedding"
        if op.node.op_type in ("MatMul", "Gemm") and _is_outer(op):
            kind = "outer product"
        return Opinion("keep", "FG206", _TEXT[kind]) if kind is not None else None


def _is_outer(op: OpView) -> bool:
    """Whether one element is summed over, at every size that the model allows: an open length may be one, too."""
    dims = tensors.dims(op.input(0))
    return dims is not None and len(dims) > 1 and dims[contraction_axis(op.node, 0, len(dims))] == 1
