"""Fold BatchNormalization into the Conv (or ConvTranspose) before it.

With per-channel a = scale / sqrt(variance + epsilon):   BN(W x + b) = (a W) x + a (b - mean) + bias.

What it does   Folds where the Conv has constant weights, BatchNormalization is in inference form with constant
               parameters, and nothing else reads the Conv's output.
Why            Engines do not fold it behind a quantized Conv (an extra kernel), and the weight scale must be that of
               the folded weight.
Exactness      a few units in the last place: factors are multiplied in another order, in double precision
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core.context import Context
from fp8graph.core.passes import Exactness, RewritePass, Stage, Ulps
from fp8graph.graph import edit, tensors, walk


@dataclass(frozen=True)
class FoldBatchnorm(RewritePass):
    """BatchNormalization behind a constant-weight Conv goes into its weight and bias."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Ulps(16)

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """One pass over the nodes; weights stay lazy."""
        names, changed, stale = edit.Names(model), 0, []
        for place in list(walk.walk(model)):
            if isinstance(place.graph, ir.Function) or not self._foldable(place.node):
                continue
            norm = place.node
            producer = norm.inputs[0].producer() if norm.inputs[0] is not None else None
            if producer is None or producer.graph is not norm.graph or not self._takes(producer):
                continue
            stale += [value for value in (*producer.inputs[1:], *norm.inputs[1:]) if value is not None]
            self._fold(producer, norm, place.graph, names)
            changed += 1
        edit.drop_unused_initializers(stale)
        return changed

    @staticmethod
    def _foldable(node: ir.Node) -> bool:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            return False
        training = node.attributes.get("training_mode")
        if training is not None and training.as_int():
            return False
        # Before opset 14, more than one output is what says training.
        return all(tensors.is_constant(value) for value in node.inputs[1:5]) and not any(
            output.name for output in node.outputs[1:]
        )

    @staticmethod
    def _takes(node: ir.Node) -> bool:
        if node.op_type not in ("Conv", "ConvTranspose") or node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type == "ConvTranspose" and "group" in node.attributes and node.attributes["group"].as_int() != 1:
            return False
        output = node.outputs[0]
        constants = all(value is None or tensors.is_constant(value) for value in node.inputs[1:])
        return constants and len(output.uses()) == 1 and not output.is_graph_output()

    @staticmethod
    def _fold(conv: ir.Node, norm: ir.Node, graph: ir.Graph, names: edit.Names) -> None:
        scale, shift, mean, variance = (
            tensors.read(value).astype(np.float64) for value in norm.inputs[1:5] if value is not None
        )
        epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
        factor = scale / np.sqrt(variance + epsilon)
        weight = conv.inputs[1]
        bias = conv.inputs[2] if len(conv.inputs) > 2 else None
        assert weight is not None and weight.shape is not None
        axis = 0 if conv.op_type == "Conv" else 1
        shape = tuple(-1 if i == axis else 1 for i in range(len(weight.shape)))

        def folded(array: tensors.Array) -> tensors.Array:
            return (array * factor.reshape(shape)).astype(array.dtype)

        dtype = tensors.read(weight).dtype
        old_bias = tensors.read(bias).astype(np.float64) if bias is not None else 0.0
        new_bias = (factor * (old_bias - mean) + shift).astype(dtype)
        new_weight = tensors.lazy_from(weight, names.fresh(f"{weight.name}_bn"), folded)
        graph.register_initializer(new_weight)
        bias_name = names.fresh(f"{bias.name if bias is not None else weight.name}_bn_bias")
        new_bias_value = tensors.constant(bias_name, new_bias)
        graph.register_initializer(new_bias_value)
        conv.resize_inputs(3)
        conv.replace_input_with(1, new_weight)
        conv.replace_input_with(2, new_bias_value)
        edit.take_over(norm.outputs[0], conv.outputs[0])
        edit.remove([norm])
