"""E2M1: 0, 0.5, 1, 1.5, 2, 3, 4 and 6 with signs, nothing else. The elements of MXFP4 and NVFP4.

Source: OCP Microscaling Formats (MX) specification v1.0, 5.3.3; ONNX documentation "Float stored in 4 bits".
"""

from __future__ import annotations

from fp8graph.formats.spec import Format

FORMAT = Format(
    name="e2m1",
    kind="float",
    bits=4,
    exponent=2,
    mantissa=1,
    bias=1,
    infinities=False,
    nans=(),
    negative_zero=True,
    onnx_type=23,  # TensorProto.FLOAT4E2M1
    min_opset=23,
    min_ir=11,
)
