"""E4M3FN: finite values and NaN only, maximum 448. The format of forward tensors.

Source: ONNX documentation "Float stored in 8 bits"; Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from __future__ import annotations

from fp8graph.formats.spec import Format

FORMAT = Format(
    name="e4m3fn",
    kind="float",
    bits=8,
    exponent=4,
    mantissa=3,
    bias=7,
    infinities=False,
    nans=(0x7F, 0xFF),
    negative_zero=True,
    onnx_type=17,  # TensorProto.FLOAT8E4M3FN
    min_opset=19,
    min_ir=9,
)
