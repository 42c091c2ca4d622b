"""Write ONNX's Attention (opset 23 and above) out as two products around a Softmax.

    Y = Softmax(scale Q K^T + mask) V

What it does   Where the target wants it (`decompose` in its table), and for one output without caches and soft capping.
               1. Inputs of rank 3 are parted into heads by Reshape and Transpose, and the result is joined again.
               2. Fewer heads of K and V than of Q are repeated by Unsqueeze, Expand and Reshape.
               3. The scale, 1/sqrt(head size) where none is given, is one Mul on Q: a power of two then folds into Q's.
               4. A boolean mask becomes Where(mask, scores, -1e9), -1e4 in fp16; a float mask is added, raised to that
                  number by Max where it may hold -inf or, in fp16, might reach it in the sum.
               5. is_causal becomes Where(key <= query, ...) on two Ranges, which engines know for a causal mask; layers
                  of equal lengths share it.
               All else is left as it is, with a note.
Why            Engines run the operator in half precision only, whatever Q/DQ say, and TensorRT-RTX builds none in fp32.
               Written out it fuses in fp16, fuses in FP8, and builds in fp32.
Names          The last node takes over the output's name; keys are the operator's with `~scores`, `~softmax`,
               `~context` and so on behind it.
Limits         Lengths that are open are taken to agree: of a mask and its keys, a mismatch is an error at run time.
Codes          FG231 an Attention operator was left fused
Exactness      approximate in one case: a row that is masked throughout gives the mean of V where the operator gives 0.
               Any other row moves by a few units in the last place, for the operator puts sqrt(scale) on Q and on K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from fp8graph.core import bounds
from fp8graph.core.context import Context
from fp8graph.core.passes import Approximate, Exactness, RewritePass, Stage
from fp8graph.graph import edit, tensors, walk

# A masked score: exp of it is zero beside any other, and both fit their types.
_LEAST, _LEAST_FP16 = -1e9, -1e4
Dim = int | ir.SymbolicDim


@dataclass(frozen=True)
class DecomposeAttention(RewritePass):
    """Attention becomes MatMul, Softmax, MatMul."""

    stage: ClassVar[Stage] = Stage.NORMALIZE
    exact: ClassVar[Exactness] = Approximate("a row that is masked throughout gives the mean of V instead of 0")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Every Attention of the default domain once, in bodies, too."""
        if "Attention" not in ctx.target.decompose:
            return 0
        work, changed = _Writing(model, fp16=ctx.high == "fp16"), 0
        for place in list(walk.walk(model)):
            if place.node.op_type != "Attention" or place.node.domain not in ("", "ai.onnx"):
                continue
            form = _form(place)
            if isinstance(form, str):
                ctx.note("FG231", place.key, f"Attention was left fused: {form}")
                continue
            work.write(place, form)
            changed += 1
        return changed


@dataclass(frozen=True)
class _Form:
    """What an Attention computes. Sizes are None where they are open; `joined`: heads lie side by side, rank 3."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    mask: ir.Value | None
    dtype: ir.DataType
    joined: bool
    heads: int | None
    repeats: int
    value_size: int | None
    scale: float
    causal: bool

    def length(self, value: ir.Value) -> Dim:
        """Length of the sequence of q, k or v."""
        assert value.shape is not None
        return value.shape[1 if self.joined else 2]


def _form(place: walk.Place) -> _Form | str:
    """The form of an Attention, or what stands in the way of writing it out."""
    node = place.node
    inputs = [*node.inputs, *[None] * 7]
    q, k, v, mask = inputs[:4]
    why = _obstacle(place, inputs)
    if why or q is None or k is None or v is None or q.shape is None or k.shape is None or v.shape is None:
        return why or "Q, K or V is missing"
    joined = len(q.shape) == 3
    heads, key_heads = _heads(node, (q, k, v), joined)
    repeats = heads // key_heads if heads and key_heads and heads % key_heads == 0 else 0
    same = not joined and heads is None and str(q.shape[1]) == str(k.shape[1]) == str(v.shape[1])
    if not repeats and not same:
        return "the numbers of heads are not known, or do not divide"
    size, value_size = (_head_size(value, n, joined) for value, n in ((q, heads), (v, key_heads)))
    if repeats > 1 and (size is None or value_size is None):
        return "the head size is not known, and heads are to be repeated"
    scale = _number(node, "scale", 1 / math.sqrt(size) if size else 0.0)
    if not (scale > 0 and math.isfinite(scale)):
        return (
            "the head size, and so the scale, is not known" if "scale" not in node.attributes else f"scale is {scale}"
        )
    assert q.dtype is not None
    return _Form(
        q, k, v, mask, q.dtype, joined, heads, max(repeats, 1), value_size, scale, bool(_number(node, "is_causal", 0))
    )


def _obstacle(place: walk.Place, inputs: Sequence[ir.Value | None]) -> str:
    node = place.node
    q, k, v, mask = inputs[:4]
    if isinstance(place.graph, ir.Function):
        return "it lies in a function, which holds no initializers"
    if any(value is not None for value in inputs[4:]):
        return "it holds a cache of keys and values, or is told their lengths"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "it has more than one output"
    if _number(node, "softcap", 0.0):
        return "soft capping has no form that an engine fuses"
    if "softmax_precision" in node.attributes:
        return "it asks for another precision of Softmax"
    if any(_number(node, f"{side}_window_size", -1) >= 0 for side in ("left", "right")):
        return "it attends within a window"
    operands = (q, k, v)
    if any(
        value is None or value.dtype not in tensors.PLAIN or value.dtype != q.dtype
        for value in operands
        if q is not None
    ):
        return "Q, K and V are not of one float type"
    ranks = {len(value.shape) if value is not None and value.shape is not None else 0 for value in operands}
    if ranks not in ({3}, {4}):
        return "Q, K and V are not known to be all of rank 3 or all of rank 4"
    return _mask_obstacle(mask, k, joined=ranks == {3})


def _mask_obstacle(mask: ir.Value | None, k: ir.Value | None, *, joined: bool) -> str:
    if mask is None or k is None or k.shape is None:
        return ""
    if mask.dtype != ir.DataType.BOOL and mask.dtype not in tensors.PLAIN:
        return f"its mask is {mask.dtype}"
    if mask.shape is None or not len(mask.shape):
        return "the rank of its mask is not known"
    width, keys = mask.shape[-1], k.shape[1 if joined else 2]
    if isinstance(width, int) and width != keys and (width == 1 or isinstance(keys, int)):
        return "its mask is narrower than its keys: the rest would be masked"
    return ""


def _heads(node: ir.Node, operands: Sequence[ir.Value], joined: bool) -> tuple[int | None, int | None]:
    """Heads of Q, and of K and V; None where they are open or K and V differ."""
    if joined:
        return int(_number(node, "q_num_heads", 0)) or None, int(_number(node, "kv_num_heads", 0)) or None
    of_q, of_k, of_v = (value.shape[1] if value.shape is not None else None for value in operands)
    return of_q if isinstance(of_q, int) else None, of_k if isinstance(of_k, int) and of_k == of_v else None


def _head_size(value: ir.Value, heads: int | None, joined: bool) -> int | None:
    last = value.shape[-1] if value.shape is not None else None
    if not isinstance(last, int):
        return None
    return last // heads if joined and heads else last


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return float(attribute.value) if attribute is not None and not attribute.is_ref() else default


class _Writing:
    """Writes operators out; what several layers have in common (causal masks, raised masks) is written once a graph."""

    def __init__(self, model: ir.Model, *, fp16: bool) -> None:
        self.names = edit.Names(model)
        self.fp16 = fp16
        self.shared: dict[tuple[Any, ...], ir.Value] = {}

    def write(self, place: walk.Place, form: _Form) -> None:
        """Puts the nodes before the operator, lets the last one take its output over, and removes it."""
        self.node, self.key, self.nodes = place.node, place.key, list[ir.Node]()
        assert isinstance(place.graph, ir.Graph)
        self.graph = place.graph
        old = place.node.outputs[0]
        q, k, v = self._parted(form, form.q, "q"), self._parted(form, form.k, "k"), self._parted(form, form.v, "v")
        if form.scale != 1.0:
            q = self._add("Mul", [q, self._constant(form.scale, form.dtype, "scale")], "scaled", form.dtype)
        k = self._add("Transpose", [k], "turned", form.dtype, perm=[0, 1, 3, 2])
        assert form.q.shape is not None
        square = ir.Shape([form.q.shape[0], _open(form.heads), form.length(form.q), form.length(form.k)])
        scores = self._add("MatMul", [q, k], "scores", form.dtype, shape=square)
        scores = self._masked(form, scores, square)
        p = self._add("Softmax", [scores], "softmax", form.dtype, shape=square, axis=-1)
        shape = ir.Shape([*square[:3], _open(form.value_size)])
        y = self._add("MatMul", [p, v], "context", form.dtype, shape=shape)
        if form.joined:
            y = self._add("Transpose", [y], "apart", form.dtype, perm=[0, 2, 1, 3])
            width = form.heads * form.value_size if form.heads and form.value_size else -1
            y = self._add("Reshape", [y, self._integers([0, 0, width], "joined_shape")], "joined", form.dtype)
        self.graph.insert_before(place.node, self.nodes)
        y.shape, y.doc_string = old.shape or y.shape, old.doc_string
        y.metadata_props.update(old.metadata_props)
        edit.take_over(old, y, rename=True)
        edit.remove([place.node])

    def _parted(self, form: _Form, value: ir.Value, role: str) -> ir.Value:
        """The operand as [batch, heads of Q, length, head size]."""
        own = (form.heads or 0) // (form.repeats if role != "q" else 1)
        if form.joined:
            value = self._add("Reshape", [value, self._integers([0, 0, own, -1], f"{role}_shape")], role, form.dtype)
            value = self._add("Transpose", [value], f"{role}_heads", form.dtype, perm=[0, 2, 1, 3])
        if role == "q" or form.repeats == 1:
            return value
        # Each head is repeated as often as it serves heads of Q.
        value = self._add("Unsqueeze", [value, self._integers([2], "axis")], f"{role}_apart", form.dtype)
        times = self._integers([1, 1, form.repeats, 1, 1], "repeats")
        value = self._add("Expand", [value, times], f"{role}_repeated", form.dtype)
        size = _head_size(form.q, form.heads, form.joined) if role == "k" else form.value_size
        whole = self._integers([0, form.heads or 0, -1, size or 0], f"{role}_whole")
        return self._add("Reshape", [value, whole], f"{role}_all", form.dtype)

    def _masked(self, form: _Form, scores: ir.Value, square: ir.Shape) -> ir.Value:
        allowed = self._causal(form) if form.causal else None
        if form.mask is not None and form.mask.dtype == ir.DataType.BOOL:
            both = [form.mask] if allowed is None else [form.mask, allowed]
            allowed = both[0] if len(both) == 1 else self._add("And", both, "allowed", ir.DataType.BOOL)
        elif form.mask is not None:
            mask = self._raised(form.mask, form.dtype)
            scores = self._add("Add", [scores, mask], "biased", form.dtype, shape=square)
        if allowed is None:
            return scores
        least = self._constant(self._least(form.dtype), form.dtype, "least")
        return self._add("Where", [allowed, scores, least], "masked", form.dtype, shape=square)

    def _least(self, dtype: ir.DataType) -> float:
        return _LEAST_FP16 if self.fp16 or dtype == ir.DataType.FLOAT16 else _LEAST

    def _raised(self, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A float mask in the type of the scores, and so that its sum with them stays finite."""
        narrow = ir.DataType.FLOAT16 if self.fp16 else dtype
        low, high = bounds.bounds(mask)
        if not bounds.finite(bounds.in_type((low - bounds.ACTIVATION, min(high, 0.0)), narrow)):
            assert mask.dtype is not None
            key = (id(self.graph), mask, "raised")
            if key not in self.shared:
                least = self._constant(self._least(dtype), mask.dtype, "least")
                self.shared[key] = self._add("Max", [mask, least], "mask", mask.dtype, shape=mask.shape)
            mask = self.shared[key]
        if mask.dtype == dtype:
            return mask
        return self._add("Cast", [mask], "mask_cast", dtype, shape=mask.shape, to=int(dtype))

    def _causal(self, form: _Form) -> ir.Value:
        """[queries, keys], true where a key comes no later than the query."""
        lengths = [form.length(value) for value in (form.q, form.k)]
        known = [str(size) if _named(size) else f"{id(form)} {position}" for position, size in enumerate(lengths)]
        key = (id(self.graph), "causal", *known)
        if key not in self.shared:
            query, keys = (
                self._positions(form, value, size, role)
                for value, size, role in zip((form.q, form.k), lengths, ("query", "key"), strict=True)
            )
            column = self._add("Unsqueeze", [query, self._integers([1], "column")], "queries", ir.DataType.INT64)
            self.shared[key] = self._add(
                "LessOrEqual", [keys, column], "causal", ir.DataType.BOOL, shape=ir.Shape([*lengths])
            )
        return self.shared[key]

    def _positions(self, form: _Form, value: ir.Value, size: Dim, role: str) -> ir.Value:
        """0, 1, 2 ... along a sequence."""
        whole = ir.DataType.INT64
        zero, one = self._integers(0, "zero"), self._integers(1, "one")
        if isinstance(size, int):
            end = self._integers(size, "length")
        else:
            axis = 1 if form.joined else 2
            shape = self._add("Shape", [value], f"{role}_shape", whole, start=axis, end=axis + 1)
            end = self._add(
                "Squeeze", [shape, self._integers([0], "first")], f"{role}_length", whole, shape=ir.Shape([])
            )
        return self._add("Range", [zero, end, one], f"{role}_positions", whole, shape=ir.Shape([size]))

    def _add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        role: str,
        dtype: ir.DataType,
        *,
        shape: ir.Shape | None = None,
        **attributes: edit.AttributeValue,
    ) -> ir.Value:
        base = f"{self.node.outputs[0].name}_{role}"
        node = edit.new_node(op_type, inputs, self.names, output=base, shape=shape, dtype=dtype, attributes=attributes)
        node.name = self.names.fresh(f"{self.node.name}_{role}") if self.node.name else node.name
        # Where the exporter says that it comes from, but for its stack: some kilobytes with paths of the author's.
        said = {name: text for name, text in self.node.metadata_props.items() if not name.endswith("stack_trace")}
        node.metadata_props.update({**said, walk.KEY: f"{self.key}~{role}"})
        self.nodes.append(node)
        return node.outputs[0]

    def _constant(self, number: float, dtype: ir.DataType, role: str) -> ir.Value:
        return self._once(role, np.asarray(number, tensors.NUMPY[tensors.FLOATS[dtype]]))

    def _integers(self, numbers: int | Sequence[int], role: str) -> ir.Value:
        return self._once(role, np.asarray(numbers, np.int64))

    def _once(self, role: str, array: tensors.Array) -> ir.Value:
        """A constant of the graph at hand, one for all operators in it."""
        key = (id(self.graph), str(array.dtype), array.shape, array.tobytes())
        if key not in self.shared:
            self.shared[key] = tensors.constant(self.names.fresh(f"attention_{role}"), array)
            self.graph.register_initializer(self.shared[key])
        return self.shared[key]


def _open(size: int | None) -> Dim:
    return ir.SymbolicDim(None) if size is None else size


def _named(size: Dim) -> bool:
    return isinstance(size, int) or size.value is not None
