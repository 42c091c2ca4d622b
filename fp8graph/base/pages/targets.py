"""FG3xx: what a target can run, and what keeps it from it."""

from __future__ import annotations

from fp8graph.base.pages.code import Code

CODES = (
    Code(
        "FG301",
        "kept: the target does not run it in this format",
        "A row of the target's table refuses the operator; the reason quotes the row.",
        "The engine would dequantize and compute in high precision: slower than not quantizing at all.",
        "`python -m fp8graph targets show TARGET --op TYPE` shows the rows with their sources.",
    ),
    Code(
        "FG302",
        "the target refuses what was asked for",
        "An option asks for an operator in a format that the target's table refuses for it.",
        "Carrying on without it would be a silent change of what you asked.",
        "Take the operator out of the request, change recipe or target; `targets show TARGET --op TYPE` has the rows.",
    ),
    Code(
        "FG303",
        "the chip has no FP8",
        "The chip that was named has no FP8 arithmetic.",
        "An engine for it would compute everything in high precision, whatever the model says.",
        "Name one of the chips that the message lists, or use a recipe without FP8.",
    ),
    Code(
        "FG304",
        "kept: FP8 does not pay here",
        "The target runs the operator in FP8, and a source says that this is no faster (depthwise convolutions, for "
        "one).",
        "It would cost accuracy for nothing.",
        "Nothing. --fp8-everywhere (recipe fp8-full) quantizes it all the same.",
    ),
    Code(
        "FG305",
        "an operand is quantized and the other is not",
        "Q/DQ stands on one side of the product only, or a Q without its DQ.",
        "Engines run FP8 only where both operands come from a DequantizeLinear; otherwise Q/DQ is pure cost.",
        "Quantize the other operand, too, or remove the pair. `optimize` on the unquantized model does it right.",
    ),
    Code(
        "FG306",
        "an operator between DQ and its consumer breaks the pair",
        "Between DequantizeLinear and the product lies an operator that FP8 does not pass on this target.",
        "The engine then dequantizes there, and the product runs in high precision.",
        "Move the operator before the QuantizeLinear. `targets show TARGET` lists what FP8 passes.",
    ),
    Code(
        "FG307",
        "an activation's scale is no scalar",
        "The scale of an activation has an axis; the target wants one scale for the tensor, as a scalar.",
        "The builder refuses it, or falls back.",
        "Use one scale of rank 0 per activation.",
    ),
    Code(
        "FG308",
        "a scale lies along the axis that is summed over",
        "A weight has one scale per input channel, which is the axis that the product sums over.",
        "Such a scale cannot be applied after the product, so that the engine dequantizes before it.",
        "Take the output-channel axis: 0 for Conv, the last for MatMul with the weight on the right.",
    ),
    Code(
        "FG309",
        "a zero point is not zero",
        "An FP8 Q/DQ pair has a zero point other than zero.",
        "FP8 is symmetric; engines refuse another zero point, and ONNX does not define it.",
        "Set the zero point to zero (of the FP8 type).",
    ),
    Code(
        "FG310",
        "a scale is not positive and finite",
        "A scale is zero, negative, NaN or infinite.",
        "Dividing by it gives infinity or NaN in every output.",
        "Calibrate again with real data; `inspect MODEL --show scales` shows the numbers.",
    ),
    Code(
        "FG311",
        "opset or IR version is out of range",
        "The model's opset or IR version is lower than FP8 Q/DQ needs, or higher than the target's reader loads.",
        "The target refuses the file, whatever is in it.",
        "`optimize` raises the opset as needed; export with a lower IR version where it is too high.",
    ),
    Code(
        "FG312",
        "a Cast between DQ and its consumer is not absorbed",
        "A Cast lies between DequantizeLinear and the product, and the target does not take it away.",
        "The engine computes the product in the type of the Cast.",
        "Let DequantizeLinear give that type itself: a scale of that type does it.",
    ),
    Code(
        "FG390",
        "a decision could not be written for the target",
        "The graph could not be spelled for the target without dropping a precision that the plan promises.",
        "Planning should have known; dropping it silently would break the plan's word.",
        "This is our bug: report it with the plan. --nodes-to-exclude the operator is a way around.",
    ),
)
