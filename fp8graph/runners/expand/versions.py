"""Models of versions that ONNX Runtime does not run yet: lowered where no op of theirs means anything else.

ONNX Runtime 1.31.1 loads opsets up to 26 and IR versions up to 13. 1.32.0 loads opset 28, without kernels for its
QuantizeLinear and for what it takes apart into Swish: every version is given the older opset, so that all run the same.
Most ops that have a new version in opsets 27 and 28 take types more, and nothing else: the older version of the op is
the same op for the types that it has.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from fp8graph.graph import walk
from fp8graph.runners.expand.writing import is_standard, refused

NEWEST, NEWEST_IR = 26, 13
_NAMES = ("", "ai.onnx")
# Attributes that are new after NEWEST, with the value under which the older op is the same. Range adds up in fp32
# either way here, where fp16 is rounded fp32.
_SAME = {("Range", "stash_type"): 1, ("SpaceToDepth", "mode"): "DCR"}


def expand(model: ir.Model) -> ir.Model:
    """A copy of versions that ONNX Runtime loads; the model itself where it is of such.

    Raises BackendError FG133 for an op that older opsets do not have, or whose meaning has changed.
    """
    newest = max(imports.get(name, 0) for imports in _imports(model) for name in _NAMES)
    if newest <= NEWEST and (model.ir_version or 0) <= NEWEST_IR:
        return model
    work = model.clone(deep_copy=True)
    if newest > NEWEST:
        for place in walk.walk(work):
            _lower(place, newest)
        for imports in _imports(work):
            imports.update({name: min(imports[name], NEWEST) for name in _NAMES if name in imports})
    work.ir_version = min(work.ir_version or NEWEST_IR, NEWEST_IR)
    return work


def _imports(model: ir.Model) -> list[dict[str, int]]:
    return [model.graph.opset_imports, *(function.opset_imports for function in model.functions.values())]


def _lower(place: walk.Place, opset: int) -> None:
    node = place.node
    if not is_standard(node, node.op_type):
        return
    try:
        older = onnx.defs.get_schema(node.op_type, NEWEST, "")
    except onnx.defs.SchemaError as error:
        raise refused(place, f"opset {opset} has it, opset {NEWEST}, the newest here, has not") from error
    for name in [name for name in node.attributes if name not in older.attributes]:
        attribute = node.attributes[name]
        if attribute.is_ref() or _SAME.get((node.op_type, name)) != attribute.value:
            why = f"its attribute {name} is new in opset {opset}; the reference runs opset {NEWEST} and older ones"
            raise refused(place, why)
        del node.attributes[name]
