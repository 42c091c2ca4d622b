"""E5M2: the upper half of a float16, with infinities, maximum 57344. One bit less precise than E4M3FN.

Source: ONNX documentation "Float stored in 8 bits"; Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from __future__ import annotations

from fp8graph.formats.spec import Format

FORMAT = Format(
    name="e5m2",
    kind="float",
    bits=8,
    exponent=5,
    mantissa=2,
    bias=15,
    infinities=True,
    nans=(0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF),
    negative_zero=True,
    onnx_type=19,  # TensorProto.FLOAT8E5M2
    min_opset=19,
    min_ir=9,
)
