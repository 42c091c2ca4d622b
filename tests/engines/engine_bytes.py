"""Engine files made by hand, in the form of TensorRT-RTX, and layer listings as the builder logs them."""

from __future__ import annotations

import struct

HEADER = 'header {{ version = {version} inputs={{ {inputs} }} outputs={{ "y" }} accelerators={{{chips} }} }}'

# Shortened from an engine of tensorrt_rtx 1.7.1: Q, then an FP8 product with an epilogue.
FP8 = """
descriptors {
  tensor={ alignment=128 const_payload_size=8192 dims={ 64 128 } name="w" region=consts type=fp8_e4m3 }
  tensor={ alignment=16 dims={ 32 64 } name="x.1" region="" stride_order={ 1 0 } type=half }
  tensor={ alignment=128 dims={ 32 64 } name="mm_o.1_2" region="devmem" type=fp8_e4m3 }
  tensor={ const_payload_size=4 dims={ 1 } name="alpha" type=float }
  tensor={ dims={ 32 128 } name="mm_o.1" region="" type=half }
}
main {
 label bb1:
  function={ name=__myl_MulCast fqn=__myl_MulCast_0x33 args={ "x.1" "mm_o.1_2" } input_args={ "x.1" } \
output_args={ "mm_o.1_2" } binary = 0 grid = { 8 1 1 } layers="[ONNX Layer: x_Q]" swap_ab=false }
  fully_connected={ name="mm" output={"mm_o.1" } input={"mm_o.1_2" "w" "alpha" "alpha" } stream=0 alpha=3951CE08 \
kernel=__myelin_CASK_STUB layers="[ONNX Layer: mm][ONNX Layer: x_DQ]\x1f[ONNX Layer: w_DQ]" }
}
"""
# The same product in fp16: the weight is dequantized by a kernel of its own, and looked at through a view.
HIGH = """
descriptors {
  tensor={ const_payload_size=8192 dims={ 64 128 } name="w" type=fp8_e4m3 }
  tensor={ dims={ 32 64 } name="x.1" type=half }
  tensor={ dims={ 2 32 128 } name="w_o" type=half }
  sub_tensor={ base="w_o" dims={ 64 128 } name="w_o^deref" type=half }
  tensor={ dims={ 32 128 } name="mm_o.1" type=half }
}
main {
  function={ name=__myl_CastMul input_args={ "w" } output_args={ "w_o" } layers="[ONNX Layer: w_DQ]" }
  fully_connected={ name="mm" output={"mm_o.1" } input={"x.1" "w_o^deref" } layers="[ONNX Layer: mm]" }
}
"""
FUSION = """
descriptors {
  tensor={ const_payload_size=8192 dims={ 64 128 } name="w" type=fp8_e4m3 }
  tensor={ dims={ 32 64 } name="x.1" type=fp8_e4m3 }
  tensor={ dims={ 32 128 } name="mm_o.1" type=half }
}
main {
  runtime_fusion={ name=__myl_CastMulFc input_args={ "w" "x.1" } output_args={ "mm_o.1" } \
layers="[ONNX Layer: mm][ONNX Layer: w_DQ]" backbone=gemm }
}
"""
# Its body: that both operands are FP8 here does not make the fusion FP8.
BODY = """
descriptors {
  tensor={ dims={ 64 128 } name="w" type=fp8_e4m3 }
  tensor={ dims={ 32 64 } name="x.1" type=fp8_e4m3 }
  tensor={ dims={ 32 128 } name="mm_o.1" type=half }
}
main {
  fully_connected={ name="mm" output={"mm_o.1" } input={"x.1" "w" } layers="[ONNX Layer: mm]" }
}
"""
ATTENTION = """
descriptors {
  tensor={ dims={ 4 64 64 } name="q" type=fp8_e4m3 }
  tensor={ dims={ 4 64 64 } name="k" type=fp8_e4m3 }
  tensor={ dims={ 4 64 64 } name="v" type=fp8_e4m3 }
  tensor={ dims={ 1 1 64 64 } name="mask" type=bool }
  tensor={ dims={ 4 64 64 } name="o" type=half }
}
main {
  function={ name=_gemm_mha_v2 fqn=_gemm_mha_v2_0x6f input_args={ "q" "k" "v" "mask" } output_args={ "o" } \
layers="[ONNX Layer: mixed][ONNX Layer: softmax][ONNX Layer: scores]" }
}
"""


def program(body: str, version: int = 5, chips: str = "sm89", inputs: str = '"x.1"') -> str:
    """A program's text: header, then `body`."""
    return HEADER.format(version=version, chips=chips, inputs=inputs) + body


def engine(*programs: str | bytes, version: tuple[int, ...] = (1, 7, 1, 116), weights: bytes = b"\0" * 64) -> bytes:
    """An engine file with these programs; a program given as bytes is taken as it is, magic and all."""
    blob = b""
    for text in programs:
        if isinstance(text, str):
            data = text.encode()
            text = b"NLYM" + struct.pack("<IQ", 0x1EDAA1, len(data)) + data
        blob += text + b"\0" * 8
    first = 112
    directory = b"NGNE" + struct.pack("<IQQ", 0, first, len(blob))
    directory += b"THGW" + struct.pack("<IQQ", 0, first + len(blob), len(weights))
    size = first + len(blob) + len(weights)
    start = b"vtrt" + struct.pack("<III", 0, 2, 0) + struct.pack("<Q", size) + bytes(version) + b"vtrt"
    start += struct.pack("<I", 8)
    return (start.ljust(64, b"\0") + directory).ljust(first, b"\0") + blob + weights


_TENSOR = (
    "{{ Name: {name}, Dimensions: [{dims}], Strides: [1], StrideOrder: [0], Datatype: {type}, "
    "Format: (Linear) Row major linear format }}"
)
_LINE = (
    "Name: {name}, LayerType: {kind}, Inputs: [ {inputs}], Constants: [ {constants}], Outputs: [ {outputs}], "
    "TacticName: {kernel}, StreamId: 0, Metadata: {metadata}"
)
_END = (
    "\n\nI/O Tensors:\n Name: x, IOMode: Input, DataType: Half, Dimensions: [32,64], Location: Device\n\n"
    "Engine Metadata:\n Multi-Device: Disabled"
)
Tensors = list[tuple[str, str, str]]


def line(
    name: str, kind: str, inputs: Tensors, constants: Tensors, outputs: Tensors, names: list[str], kernel: str = ""
) -> str:
    """One line of a listing. A tensor is (name, dims, type)."""

    def spell(tensors: Tensors) -> str:
        return ", ".join(_TENSOR.format(name=n, dims=d, type=t) for n, d, t in tensors)

    metadata = "".join(f"[ONNX Layer: {each}]" for each in names)
    return _LINE.format(
        name=name,
        kind=kind,
        inputs=spell(inputs),
        constants=spell(constants),
        outputs=spell(outputs),
        kernel=kernel,
        metadata=metadata,
    )


def listing(*lines: str) -> str:
    """A listing as it stands in the log."""
    return "Layers:\n" + "\n".join(lines) + _END
