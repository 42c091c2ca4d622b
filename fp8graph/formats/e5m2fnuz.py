"""E5M2FNUZ: finite values and one NaN, no -0, maximum 57344. The wide twin of E4M3FNUZ.

Source: ONNX documentation "Float stored in 8 bits"; Noune et al., "8-bit Numerical Formats for Deep Neural Networks",
2022.
"""

from __future__ import annotations

from fp8graph.formats.spec import Format

FORMAT = Format(
    name="e5m2fnuz",
    kind="float",
    bits=8,
    exponent=5,
    mantissa=2,
    bias=16,
    infinities=False,
    nans=(0x80,),
    negative_zero=False,
    onnx_type=20,  # TensorProto.FLOAT8E5M2FNUZ
    min_opset=19,
    min_ir=9,
)
