"""The builder's own layer listing, which it logs at the end of a detailed build: the first witness.

One line for each kernel, as the engine inspector writes them:
    Name: mm_myl0_1, LayerType: gemm, Inputs: [ { Name: .., Dimensions: [32,64], .. Datatype: FP8, .. }],
    Constants: [..], Outputs: [..], TacticName: .., StreamId: 0, Metadata: [ONNX Layer: mm][ONNX Layer: x_DQ]
`mylN` numbers the compiled programs; names in the program of a profile other than the first hold `[profile K]`.
Measured with tensorrt_rtx 1.7.1.
"""

from __future__ import annotations

import re
from dataclasses import replace

from fp8graph.engines.witness import EngineOp, Item, Tensor, layer_names, link

# The builder's words for types, in common words.
_TYPES = {
    "FP8": "fp8",
    "FP4E2M1": "fp4",
    "E8M0": "e8m0",
    "Half": "fp16",
    "BFloat16": "bf16",
    "Float": "fp32",
    "Int8": "int8",
    "Int4": "int4",
}
_PROGRAM = re.compile(r"_myl(\d{1,9})_\d+$")
_PROFILE = re.compile(r"\[profile (\d{1,4})\]")


class FormError(Exception):
    """The text is not in the form that this reader knows: the witness has nothing to say."""


def parse(text: str) -> list[EngineOp]:
    """The ops of a listing that name ONNX nodes or compute products, of all profiles.

    Raises FormError for an empty text, or a line in another form. Linear in the text.
    """
    if not text.startswith("Layers:"):
        raise FormError("the log holds no listing")
    body = text.partition("\n\nI/O Tensors:")[0]
    lines = body.split("\nName: ")[1:]
    rows = [_row(line, index) for index, line in enumerate(lines)]
    profile_of: dict[int, int] = {}
    for program, named, _ in rows:
        if named:
            profile_of[program] = named
    if max(profile_of.values(), default=0) >= len(rows):
        raise FormError("it names more profiles than it has layers")
    return link([replace(item, profile=profile_of.get(program, 0)) for program, _, item in rows])


def _row(line: str, index: int) -> tuple[int, int, Item]:
    """Number of the program (of a layer outside of all, one below zero), profile in its names, and the op itself."""
    name, rest = _cut(line, ", LayerType: ")
    layer_type, rest = _cut(rest, ", Inputs: [")
    inputs, rest = _cut(rest, "], Outputs: [")
    inputs, _, constants = inputs.partition("], Constants: [")
    outputs, rest = _cut(rest, "], TacticName: ")
    kernel, rest = _cut(rest, ", StreamId: ")
    metadata = rest.partition("Metadata: ")[2]
    program = _PROGRAM.search(name)
    if not layer_type.replace("_", "").isalnum():
        raise FormError(f"a line without layer type: {line[:80]!r}")
    tensors = [*_tensors(inputs, constant=False), *_tensors(constants, constant=True)]
    fused = layer_type == "kgen" and "_mha_v" in kernel
    said = kernel.rpartition("_0x")[0] if fused else layer_type
    # Of a product the scale factors have one dimension, of fused attention the mask is no float.
    least = 2 if layer_type in ("gemm", "correlation", "deconv") else 3 if fused else 0
    operands = tuple(t for t, rank in tensors if rank >= least and not (fused and t.type not in _TYPES.values()))
    named = [int(found) for text in (name, inputs, outputs) for found in _PROFILE.findall(text)]
    made = tuple(tensor.name for tensor, _ in _tensors(outputs, constant=False))
    number = int(program.group(1)) if program else -1 - index
    return number, max(named, default=0), Item(0, said, layer_names(metadata), operands, made)


def _cut(text: str, at: str) -> tuple[str, str]:
    before, found, after = text.partition(at)
    if not found:
        raise FormError(f"a line without '{at.strip(', :[]')}': {text[:80]!r}")
    return before, after


def _tensors(text: str, *, constant: bool) -> list[tuple[Tensor, int]]:
    """The tensors of one list, each with its rank."""
    found = []
    for part in text.split("{ Name: ")[1:]:
        name, rest = _cut(part, ", Dimensions: [")
        dims, rest = _cut(rest, "]")
        _, rest = _cut(rest, ", Datatype: ")
        type_ = rest.partition(",")[0]
        rank = len(dims.split(",")) if dims else 0
        found.append((Tensor(name, _TYPES.get(type_, type_.lower()), constant), rank))
    return found
