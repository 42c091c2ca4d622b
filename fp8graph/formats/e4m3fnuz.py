"""E4M3FNUZ: finite values and one NaN, no -0, maximum 240. Found in checkpoints for AMD chips.

Source: ONNX documentation "Float stored in 8 bits"; Noune et al., "8-bit Numerical Formats for Deep Neural Networks",
2022.
"""

from __future__ import annotations

from fp8graph.formats.spec import Format

FORMAT = Format(
    name="e4m3fnuz",
    kind="float",
    bits=8,
    exponent=4,
    mantissa=3,
    bias=8,
    infinities=False,
    nans=(0x80,),
    negative_zero=False,
    onnx_type=18,  # TensorProto.FLOAT8E4M3FNUZ
    min_opset=19,
    min_ir=9,
)
