"""How close two models are: what each computes, op by op, and what counts as a difference."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import InlinePass

from fp8graph.base.errors import BackendError
from fp8graph.core.passes import Approximate, Exactness, Ulps
from fp8graph.graph import walk
from fp8graph.graph.tensors import FLOATS, HALF
from fp8graph.runners.coded import around
from fp8graph.runners.expand import quantized_attention
from fp8graph.runners.onnxruntime import OnnxRuntime
from fp8graph.testing.models import Array, Feeds

_EPS = {"fp64": 2.0**-52, "fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}


def compared(before: ir.Model, after: ir.Model, feeds: Sequence[Feeds], exact: Exactness) -> tuple[str, str]:
    """The first output that moved further than is declared, and how far; both empty where none did.

    ONNX Runtime decides, but for models with fp16 inside, which it leaves out between ops: there onnx.reference does.
    Raises BackendError where neither can run the models.
    """

    def moved(promise: Exactness, *, by_reference: bool, eps: float | None = None) -> tuple[str, str]:
        for feed in feeds:
            expected, got = (outputs(model, feed, by_reference=by_reference) for model in (before, after))
            for name, array in expected.items():
                text = difference(array, got[name], promise, coarsest if eps is None else eps)
                if text:
                    return name, text
        return "", ""

    known = (value.dtype for _, graph in walk.graphs(before) for value in walk.values(graph))
    coarsest = max((_EPS[FLOATS[dtype]] for dtype in known if dtype in FLOATS), default=0.0)
    if _only_reference(before) or _only_reference(after):
        return moved(exact, by_reference=True)
    if (_has_fp16(before) or _has_fp16(after)) and not isinstance(exact, Approximate):
        with contextlib.suppress(BackendError):
            found = moved(exact, by_reference=True)
            # numpy adds up in another order where a matrix is a transposed view: so little does not count by itself.
            if not found[0] or moved(Ulps(4), by_reference=True, eps=_EPS["fp32"])[0]:
                return found
    try:
        return moved(exact, by_reference=False)
    except BackendError:
        return moved(exact, by_reference=True)


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
        peak = float(np.abs(old[np.isfinite(old)]).max(initial=0.0))
        allowed = 4 * exact.n * eps * 2.0 ** math.floor(math.log2(peak)) if peak else 0.0
        text = f"moved by {worst:.3g}, {exact.n} units in the last place allow {allowed:.3g}"
        return "" if worst <= allowed else text
    return f"{int((~same).sum())} of {same.size} elements differ, by up to {worst:.3g}; `exact` declares none"


def outputs(model: ir.Model, feed: Feeds, *, by_reference: bool | None = None) -> dict[str, Array]:
    """What the model yields when each op is computed alone, in ONNX Runtime.

    With `by_reference` in onnx.reference, at the first opset that can say what Q/DQ pairs of mixed types mean; None:
    where ONNX Runtime cannot take the model (bf16 from outside, pairs half done) or does not compute it as written
    (fp16, which it leaves out between ops). Raises BackendError where that fails: it is no judgement on a pass.
    """
    model = quantized_attention.expand(model)
    if by_reference is None:
        by_reference = _only_reference(model) or _has_fp16(model)
    if not by_reference:
        return around(OnnxRuntime(model, fuse=False), model).run(feed)
    view = model.clone()
    InlinePass()(view)  # onnx.reference does not hand a function's attributes on to its nodes
    pairs = list(_mixed(view))
    if pairs:
        view.graph.opset_imports[""] = max(23, view.graph.opset_imports[""])
    for node in pairs:
        dtype = node.outputs[0].dtype
        if node.op_type == "DequantizeLinear" and dtype is not None:
            node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(dtype))
        elif node.op_type == "QuantizeLinear":
            node.attributes["precision"] = ir.AttrInt64("precision", int(ir.DataType.FLOAT))
    try:
        session = ReferenceEvaluator(ir.to_proto(view))
        with np.errstate(all="ignore"):
            return dict(zip(session.output_names, session.run(None, dict(feed)), strict=True))
    except Exception as error:  # it raises whatever numpy does
        why = f"{type(error).__name__}: {error}"
        raise BackendError(
            "onnx.reference cannot run the model",
            where=model.graph.name or "",
            why=why,
            do="check the pass on other models",
            code="FG133",
        ) from error


def _only_reference(model: ir.Model) -> bool:
    outside = {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    return ir.DataType.BFLOAT16 in outside or any(_mixed(model))


def _has_fp16(model: ir.Model) -> bool:
    return any(value.dtype == ir.DataType.FLOAT16 for _, graph in walk.graphs(model) for value in walk.values(graph))


def _mixed(model: ir.Model) -> Iterator[ir.Node]:
    """Q on a half-precision value, and DQ that yields one, whose scale is float32."""
    for place in walk.walk(model):
        node = place.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.inputs[1] is not None:
            value = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
            if node.inputs[1].dtype == ir.DataType.FLOAT and value is not None and value.dtype in HALF:
                yield node
