"""What parser and builder say, in words: which node, why, and what to do. A table; what it does not know is quoted.

The rows were measured with tensorrt_rtx 1.7.1 on broken graphs, one for each; TensorRT 10.x and 11.x share the parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from fp8graph.base.errors import BackendError, Fp8GraphError, UsageError
from fp8graph.graph import walk

_QUOTED = 300  # characters of a message that are shown


@dataclass(frozen=True)
class Row:
    """One thing that builders say. `op`, a group of the pattern, names a node, a tensor or an initializer."""

    pattern: str
    what: str
    why: str
    do: str
    code: str = "FG504"
    usage: bool = False


# Rows are tried from top to bottom, the more telling first: one failure leaves several lines.
TABLE: tuple[Row, ...] = (
    Row(
        r"Cannot compile for target\(s\) (?P<chip>[^,]+), because the model contains HW-specific datatypes: fp8",
        "the chip has no FP8",
        "the model holds FP8 tensors, and the chip has no arithmetic for them",
        "build for sm89 or later, or optimize with --recipe fp16",
        code="FG303",
        usage=True,
    ),
    Row(
        r"Cannot compile for target\(s\) (?P<chip>[^,]+), because the model contains HW-specific datatypes",
        "the chip does not have a type that the model uses",
        "an engine for several chips has to get by with what all of them have",
        "build for another chip, or optimize for this one: --target tensorrt-rtx:CHIP",
        code="FG302",
        usage=True,
    ),
    Row(
        r"Cannot compile operation '(?P<op>[^']*)' for Turing",
        "the chip cannot run this operator",
        "Turing (sm75) runs no products in fp32 or bf16 here",
        "optimize with --high-precision-dtype fp16, or build for a later chip",
        code="FG302",
        usage=True,
    ),
    Row(
        r"Scale coefficients must all be positive",
        "a scale is zero, negative or NaN",
        "a quantization scale has to be positive; an fp16 scale below 3e-8 is zero in the file",
        "calibrate anew, or keep the operator with --nodes-to-exclude; optimize writes no such scale",
    ),
    Row(
        r"Size mismatch when importing initializer: (?P<op>.+)",
        "a tensor in the model is shorter than its shape says",
        "the file was cut short, or written by a broken exporter",
        "export the model anew",
    ),
    Row(
        r"Failed to import initializer: (?!In node)(?P<op>[^\n]+)",
        "a tensor has a type that the builder does not take",
        "TensorRT takes FP8 as E4M3FN only: no E5M2, no FNUZ, no E8M0, no 16-bit integers",
        "optimize anew for this target: it writes FP8 weights of other formats in E4M3FN",
    ),
    Row(
        r"Attribute output_dtype specifies an unsupported data type",
        "a QuantizeLinear has a type that the builder does not take",
        "TensorRT takes FP8 as E4M3FN only: no E5M2, no FNUZ",
        "optimize anew for this target",
    ),
    Row(
        r"Tensor (?P<op>\S+) has datatype FP8 but is not consumed by",
        "an FP8 tensor goes into an operator that takes none",
        "an FP8 tensor may only go through DequantizeLinear, Concat, Transpose, Reshape and Identity",
        "put the DequantizeLinear directly behind its QuantizeLinear; `check MODEL` lists such places",
    ),
    Row(
        r"Tensor (?P<op>\S+) has datatype FP8 but is not produced by",
        "an FP8 tensor comes from an operator that makes none",
        "a Cast to FP8 is no quantization to TensorRT",
        "optimize turns Casts into Q/DQ: python -m fp8graph optimize MODEL -o OUT",
    ),
    Row(
        r"Quantized constant \((?P<op>.*?)\) is only allowed before DQ",
        "an FP8 weight goes into an operator that takes none",
        "an FP8 weight has to go into DequantizeLinear directly; a Transpose belongs behind it",
        "optimize anew for this target",
    ),
    Row(
        r"IMatrixMultiplyLayer must have same input types",
        "the operands of a product have different types",
        "a DequantizeLinear gives the type of its scale, unless output_dtype says otherwise",
        "optimize anew with one --high-precision-dtype",
    ),
    Row(
        r"`input` and `bias` must be of same type|ElementWiseOperation \w+ must have same input types",
        "an operator's inputs have different types",
        "TensorRT converts nothing by itself: a bias has the type of what it is added to",
        "optimize anew with one --high-precision-dtype",
    ),
    Row(
        r"\(\S+, (?P<op>\S+?)(?:\.\d+)?\)\s+Error is:\s+Input \d's element type \(\w+\) differs",
        "an operator's inputs have different types",
        "TensorRT converts nothing by itself: a mask has the type of the scores that it is added to",
        "optimize anew with one --high-precision-dtype",
    ),
    Row(
        r"Could not infer output types for operation:\s*\d+: deconv: (?P<op>.+?)-\(",
        "a transposed convolution has a type without a kernel",
        "TensorRT-RTX runs ConvTranspose in fp16 and fp32 only",
        "optimize with --high-precision-dtype fp16 or fp32",
    ),
    Row(
        r"Could not infer output types for operation:\s*\d+: \w+: (?P<op>.+?)-\(",
        "an operator's input types do not go together",
        "a bf16 scale does not go with an fp16 tensor, for one",
        "optimize anew: it writes scales in fp32",
    ),
    Row(
        r"Graph contains more than one tensor named (?P<op>.+?)\.\d+_cast",
        "two branches of an If quantize one tensor",
        "both convert it to the type of its scale, under one name",
        "quantize it once, before the If; or give the scale the tensor's own type",
    ),
    Row(
        r"CHECK_EQ\(lhs_scale->type\(\), rhs_scale->type\(\)\) failed",
        "the two scales of a product have different types",
        "a Gemm with a scale for each output channel wants both scales in one type",
        "optimize anew: it writes scales in fp32",
    ),
    Row(
        r"Input and filter have to be the same type",
        "a product has one FP8 operand and one of another type",
        "both operands have to be FP8; a QuantizeLinear without zero point and output_dtype makes int8",
        "`check MODEL` names the operator; optimize anew for this target",
    ),
    Row(
        r"The number of scales is not equal to the number of output channels",
        "a weight has the wrong number of scales",
        "there is one scale for each output channel, or one for the tensor",
        "optimize anew for this target",
    ),
    Row(
        r"The quantization axis must index a dimension",
        "a quantization axis does not exist",
        "the axis lies outside the tensor's rank",
        "optimize anew for this target",
    ),
    Row(
        r"must divide into whole blocks|Inferred block size is not an integer|blocking dimension must be the last"
        r"|operand\.h:\d+: CHECK\(is_constant",
        "scales in blocks do not fit this tensor",
        "blocks have to divide the axis, which is one of the last two; and FP8 activations take no block scales at all",
        "optimize with --recipe fp8-default (one scale per output channel)",
    ),
    Row(
        r"Mismatch between attribute output_dtype",
        "a QuantizeLinear names two types",
        "its zero point and its output_dtype differ",
        "optimize anew, or export the model anew",
    ),
    Row(
        r"TensorRT only supports Attention nodes with one output|is not supported in TensorRT Attention",
        "an Attention operator has a form that TensorRT does not run",
        "it takes no past key and value, no second output, no softcap and no softmax_precision",
        "optimize anew for this target: it takes such operators apart",
    ),
    Row(
        r"Attention operation was not supported by a dedicated kernel",
        "no fused kernel runs an Attention operator of this model",
        "there is none in fp32, for batch x heads of 1, for heads over 256, and in FP8 for fewer than 32 keys",
        "optimize anew with --high-precision-dtype fp16, or --attention off",
    ),
    Row(
        r"same_symbolic_shapes\(op_output->dimensions\(\), A_dims\)",
        "a Conv weight has a scale of shape [1]",
        "a scale for the whole tensor has to be a scalar, without dimensions",
        "optimize anew: it writes scalars",
    ),
    Row(
        r"no optimization profile has been defined|missing values for shape input tensor (?P<op>\S+)",
        "the model has open dimensions, and no shapes were given",
        "an engine is built for a least, a usual and a largest shape",
        "give --shapes, or --min-shapes, --opt-shapes and --max-shapes",
        code="FG100",
        usage=True,
    ),
    Row(
        r"Invalid optimization profiles for input tensors (?P<op>[^,\s]+)|Dimension mismatch for tensor (?P<op2>\S+)",
        "the shapes given do not fit the model",
        "the least shape must not exceed the usual one, nor that the largest, and fixed dimensions stay as they are",
        "correct --min-shapes, --opt-shapes and --max-shapes",
        code="FG100",
        usage=True,
    ),
    Row(
        r"no tactics to implement the operation within workspace limit",
        "the workspace is too small for an operator",
        "a kernel needs more scratch memory than it may take",
        "give a larger --memory-pool-limit workspace:4G, or leave it out",
        code="FG100",
        usage=True,
    ),
    Row(
        r"OutOfMemory|out of memory|Requested size was \d+ bytes",
        "memory ran out while building",
        "an activation or a kernel's scratch memory is larger than the machine's memory",
        "give smaller --max-shapes, or use a machine with more memory",
        code="FG132",
    ),
    Row(
        r"graph_jit\.cpp:\d+: CHECK\(status == CUDA_SUCCESS\)",
        "refittable and stripped engines are built on a GPU only",
        "this machine has none that the builder could use",
        "leave the flags REFIT, REFIT_IDENTICAL and STRIP_PLAN out, or build on a machine with a GPU",
        code="FG505",
    ),
    Row(
        r"new name is already in use",
        "a function is called more than once, and its nodes have names",
        "the parser takes each name once",
        "inline the function: optimize does, or onnx.inliner.inline_local_functions",
    ),
    Row(
        r"Plugin not found|was not found in plugin registry|Op type \S+ is not supported|No importer registered",
        "the builder does not know an operator",
        "there is no importer and no plugin for it",
        "load its library with --custom-ops LIB.so, or take the operator apart in the model",
    ),
    Row(
        r"Node input was not registered",
        "a node reads a tensor that the builder does not know",
        "no node makes it; or it is the condition in the body of a Loop that is given none",
        "give such a Loop a constant true as its second input; onnx.checker.check_model says what else is wrong",
    ),
    Row(
        r"Failed to sort the model topologically|access weights or a null tensor",
        "the model's graph is broken",
        "a tensor is used that no node makes, or nodes wait for each other",
        "python -c \"import onnx; onnx.checker.check_model('MODEL')\" says where",
    ),
    Row(
        r"nested structures that exceed the maximum",
        "If, Loop and Scan are nested too deep",
        "TensorRT has a limit on bodies within bodies",
        "export the model with fewer of them: branches that are never taken can go",
    ),
)
_PATTERNS = tuple(re.compile(row.pattern) for row in TABLE)


def explain(builder: str, file: str, said: Mapping[str, Any], model: ir.Model) -> Fp8GraphError:
    """The error for what a builder said: `stage`, the parser's `errors` (text, node, op_type) and its `log` lines.

    `file` is the name of the model's file, `model` what it holds: names in messages are looked up in it.
    """
    errors: Sequence[Mapping[str, str]] = said["errors"]
    texts = [*(error["text"] for error in errors), *said["log"]]
    for row, pattern in zip(TABLE, _PATTERNS, strict=True):
        for text in texts:
            if found := pattern.search(text):
                named = next((name for group, name in found.groupdict().items() if group.startswith("op") and name), "")
                where = _where(errors, named, model)
                chip = found.groupdict().get("chip") or ""
                kind = UsageError if row.usage else BackendError
                return kind(
                    f"{builder} cannot build the model: {row.what}" + (f" ({chip})" if chip else ""),
                    where=", ".join(part for part in (file, where) if part),
                    why=f"{row.why} ({builder} said: {_quote(text, found.start())})",
                    do=row.do,
                    code=row.code,
                )
    where = _where(errors, "", model)
    # That is all that the parser says of an operator that its support check refuses.
    silent = [error for error in errors if error["text"].strip() in ("false", "", f"Invalid Node - {error['node']}")]
    why = f"the parser does not import this form of {silent[0]['op_type']}" if silent else _first(builder, texts)
    return BackendError(
        f"{builder} refused the model",
        where=", ".join(part for part in (file, where) if part),
        why=why,
        do="--log-file F keeps all that it said; `check MODEL --target TARGET` finds most causes",
        code="FG504",
    )


def _first(builder: str, texts: Sequence[str]) -> str:
    if not texts:
        return f"{builder} gave no reason"
    # Nobody knows which line of it is the telling one: the first ones, on one line.
    return f"{builder} said: {_quote(' / '.join(line.strip() for line in texts[0].splitlines() if line.strip()))}"


def _where(errors: Sequence[Mapping[str, str]], named: str, model: ir.Model) -> str:
    for error in errors:
        if error["node"] or error["op_type"]:
            return f"node '{error['node']}' ({error['op_type']})"
    return describe(named, model) if named else ""


def describe(name: str, model: ir.Model) -> str:
    """The node that a builder's message means by `name`: its name, its output or an initializer that it reads."""
    for place in walk.walk(model):
        node = place.node
        if name == node.name or any(name == output.name for output in node.outputs):
            return f"node '{node.name or name}' ({node.op_type})"
    for place in walk.walk(model):
        for value in place.node.inputs:
            if value is not None and value.name == name:
                kind = f" ({value.dtype})" if value.dtype is not None else ""
                return f"tensor '{name}'{kind}, read by node '{place.node.name}' ({place.node.op_type})"
    return f"'{name}'"


def _quote(text: str, at: int = 0) -> str:
    """The telling line of a message, without the place in the builder's source: the one at `at`, else the first."""
    line = text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0]
    if not line.strip() or line.startswith("Invalid Node"):
        line = next((line for line in text.splitlines() if line.strip() and not line.startswith("Invalid Node")), text)
    line = re.sub(r"^I\w+::\w+: Error Code \d+: ", "", line.strip())
    line = re.sub(r" In \w+ at \S+\.cpp:\d+\)?$", "", line)
    return line if len(line) <= _QUOTED else line[:_QUOTED] + " ..."
