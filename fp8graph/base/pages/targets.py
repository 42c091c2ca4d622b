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
        "Nothing. --fp8-everywhere quantizes it all the same.",
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
        "The scale of an activation has an axis, is computed in the graph, or is a list of one: the target wants "
        "one constant scale for the tensor, of rank 0.",
        "Of a list of one, a Conv falls back, and the builder fails where it is its weight's. With a computed scale"
        " FP8 is only simulated.",
        "Use one scale of rank 0 (`check --fix` makes it so). For a computed scale s: x / s, Q/DQ with scale 1, the"
        " op, * s.",
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
        "FG313",
        "quantized, and the target does not run it in FP8",
        "A row of the target's table refuses the operator in FP8: a Conv whose kernel has more than 32 elements, a "
        "transposed convolution.",
        "The engine dequantizes and computes in high precision: slower than without Q/DQ, and less exact.",
        "Leave the operator unquantized. `python -m fp8graph targets show TARGET --op TYPE` shows the rows.",
    ),
    Code(
        "FG314",
        "quantized, and FP8 does not pay here",
        "The target runs the operator in FP8, and a source says that this is no faster: depthwise convolutions, whose "
        "channels are padded to four, for one.",
        "It costs accuracy for nothing.",
        "Leave it unquantized; `optimize` does so unless --fp8-everywhere is given.",
    ),
    Code(
        "FG315",
        "the weight needs one scale here",
        "The weight has a scale for each output channel, and the target runs this operator in FP8 only with one for"
        " the whole weight: a packed qkv product, for one.",
        "The engine falls back to high precision without a word.",
        "Quantize this weight with one scale, or split the product into one for each of q, k and v.",
    ),
    Code(
        "FG316",
        "scales in blocks give wrong results",
        "An operand has scales in blocks and the other operand is quantized, too.",
        "The engine runs one FP8 product and applies the first row of scales alone: the numbers are wrong, and nothing "
        "says so.",
        "Quantize the weight alone (weight-only), or take one scale for each output channel.",
    ),
    Code(
        "FG317",
        "an FP8 tensor goes where none is taken",
        "An operator other than DequantizeLinear reads an FP8 tensor. Of moves, Transpose, Reshape, Flatten, "
        "Identity and Concat may; an FP8 constant goes into DequantizeLinear directly, and no FP8 tensor enters a "
        "branch of If.",
        "The builder refuses the model: 'has datatype FP8 but is not consumed by', 'only allowed before DQ'.",
        "Put DequantizeLinear before that operator. What is to be FP8 behind it wants a pair of its own.",
    ),
    Code(
        "FG318",
        "an FP8 tensor comes from an operator that makes none",
        "A Cast to FP8, as PyTorch exports emulated FP8.",
        "The builder refuses the model: 'has datatype FP8 but is not produced by'.",
        "`optimize` and `check --fix` write x / s, Cast to FP8, Cast back, * s as QuantizeLinear and DequantizeLinear "
        "with the scale s, where that is the same bit for bit.",
    ),
    Code(
        "FG319",
        "attention loses its fused kernel",
        "The products of an attention are quantized, and the engine does not make one FP8 kernel of it: Q, K, V or "
        "the result of Softmax lacks Q/DQ, there are fewer than 32 keys (also as the least of the profile), a guard"
        " against NaN stands behind Softmax, or the graph is in fp32.",
        "Two products and a Softmax in memory instead of one kernel: often slower than fp16, which does fuse.",
        "The finding names the reason. Put Q/DQ on all four (scale 1/448 behind Softmax) or on none; take the guard"
        " away (`check --fix`); build for shapes of 32 keys or more; use fp16.",
    ),
    Code(
        "FG320",
        "the engine's shapes cost what the plan's do not",
        "The model is built for other shapes than its plan was made for, and under these the target runs the "
        "operator worse: an attention whose least number of keys is below 32, for one, loses its fused FP8 kernel.",
        "The engine is built, computes the same, and is slower than the plan says.",
        "Build for the plan's shapes, or `optimize` anew with yours: what does not pay under them then stays as it "
        "was.",
    ),
    Code(
        "FG321",
        "the engine's shapes allow what the plan's do not",
        "An operator was kept in high precision because of the shapes that the plan was made for; the model is "
        "built for others, under which the target runs it in FP8.",
        "It stays in high precision: a build changes no decision.",
        "`optimize` anew with these shapes, where you want it in FP8.",
    ),
    Code(
        "FG322",
        "several nodes have one name",
        "Two or more nodes have the same name.",
        "An engine calls its layers after nodes: nobody can tell which of them runs in FP8.",
        "`python -m fp8graph check MODEL --fix -o OUT` gives each node a name of its own.",
    ),
    Code(
        "FG323",
        "Q/DQ that no product reads",
        "The pair stands before an operator that has no FP8 arithmetic (a norm, an addition), or before nothing.",
        "Its rounding costs accuracy and a kernel, and nothing runs in FP8 for it.",
        "Take the pair away. `check --fix` removes what nothing reads.",
    ),
    Code(
        "FG324",
        "Q and DQ have different scales",
        "QuantizeLinear divides by one scale and DequantizeLinear multiplies with another.",
        "Engines do as written: the tensor comes out multiplied by the quotient of the two.",
        "Give both the same scale, unless the factor is meant.",
    ),
    Code(
        "FG325",
        "a scale is too small for its type",
        "1/scale overflows fp16, the scale's type.",
        "The engine divides by the scale instead, which is slower; below 3e-8 the scale is zero in the file.",
        "Give the scale in fp32.",
    ),
    Code(
        "FG326",
        "a weight holds NaN",
        "FP8 codes of a weight stand for NaN.",
        "The engine is built without a word, and every result that depends on them is NaN.",
        "Quantize anew from the weight in high precision; clip before the cast.",
    ),
    Code(
        "FG327",
        "the operator Attention cannot be built",
        "Attention has a feature that the importer refuses (several outputs, past keys and values, softcap, a type for "
        "Softmax), or no fused kernel exists for it: in fp32.",
        "The build fails: 'Attention operation was not supported by a dedicated kernel'.",
        "Write it as MatMul, Softmax and MatMul, which `optimize` does where it can, or use fp16.",
    ),
    Code(
        "FG328",
        "the target does not import an operator",
        "The operator is not known to the target's importer: one of ONNX Runtime's own (FusedMatMul, FusedConv), "
        "one on integers (QLinearMatMul), or a custom one.",
        "The build fails, whatever else is in the model.",
        "Take the model as it was before ONNX Runtime optimised it; give a custom operator's library to `build "
        "--custom-ops`.",
    ),
    Code(
        "FG329",
        "types do not go together",
        "The operands of a product, a bias, or a tensor and its scale have different types.",
        "Engines convert nothing by themselves: the build fails.",
        "DequantizeLinear gives the type of its scale: give that the op's type, or fp32 and a Cast behind it.",
    ),
    Code(
        "FG330",
        "the target does not import the format",
        "A tensor is in E5M2, in an FNUZ type or in another that the target's importer does not take.",
        "The build fails, or the chip has no arithmetic for it.",
        "Quantize to E4M3FN. `python -m fp8graph targets show TARGET` lists the formats.",
    ),
    Code(
        "FG331",
        "Q/DQ around the operator Attention",
        "Attention has Q/DQ on its inputs.",
        "Its kernel computes in high precision all the same; the pairs are extra kernels.",
        "Write it as MatMul, Softmax and MatMul with Q/DQ on each; `optimize` does so.",
    ),
    Code(
        "FG332",
        "MXFP8 is only simulated",
        "An operand is quantized by blocks of 32 with shared exponents (MXFP8).",
        "TensorRT-RTX 1.7.1 has no such product: it dequantizes and computes in high precision.",
        "Use one scale for the tensor, or a target with MXFP8.",
    ),
    Code(
        "FG333",
        "the operands are in different formats",
        "One operand is in FP8, the other in INT8 or INT4.",
        "No kernel multiplies these: the build fails.",
        "Quantize both to one format. A QuantizeLinear without zero point and output_dtype makes uint8.",
    ),
    Code(
        "FG334",
        "a Q or DQ contradicts itself",
        "The zero point has another type than output_dtype or the codes, or neither of them says which type is meant.",
        "It is refused, or taken for uint8.",
        "Say the type once: output_dtype, or a zero point of that type.",
    ),
    Code(
        "FG335",
        "scales do not fit their tensor",
        "A list of scales has the wrong length, its axis does not exist, its blocks do not divide the tensor; or "
        "weights are joined behind their DequantizeLinear.",
        "The build fails; or, where the number of scales divides the axis and the blocks do not, the engine applies "
        "them to blocks of another size.",
        "Quantize anew: one scale, or one for each index of the output channels' axis: what `optimize` writes.",
    ),
    Code(
        "FG336",
        "an operator is not built in its type",
        "A row of the target's table refuses the operator in this high-precision type: ConvTranspose in bf16, for one.",
        "The build fails, whatever is quantized.",
        "--high-precision-dtype fp16 or fp32.",
    ),
    Code(
        "FG337",
        "a branch reads what was quantized outside",
        "A product in a branch of If reads a tensor that was quantized outside of it, or there with the same scale.",
        "The engine dequantizes in front of the branch, and computes in high precision.",
        "Quantize inside the branch, with a scale of its own.",
    ),
    Code(
        "FG338",
        "nothing to gain for this product",
        "An attention of one query (a decoder that makes one token), or an operand without elements.",
        "The kernel reads its operands in high precision; Q/DQ is extra work.",
        "Leave it unquantized.",
    ),
    Code(
        "FG339",
        "shapes are open",
        "Inputs of the model have dimensions without a number.",
        "An engine is built for shapes: without them the build fails, and what runs in FP8 may depend on them.",
        "Give `build` the shapes, with --shapes or --min-shapes, --opt-shapes and --max-shapes.",
    ),
    Code(
        "FG340",
        "a function with named nodes is called twice",
        "A function of the model is called more than once, and its nodes have names.",
        "The importer takes each name once: the build fails with 'new name is already in use'.",
        "Inline the functions: `check --fix` and `optimize` do.",
    ),
    Code(
        "FG341",
        "the target runs nothing of what the recipe asks for",
        "The target's table refuses the recipe's formats, or where its scales lie, for every operator of the recipe.",
        "A result would be computed in high precision, or not at all.",
        "Choose one of the recipes that the message lists, or another target.",
    ),
    Code(
        "FG342",
        "the target runs nothing in the type asked for",
        "The recipe or --high-precision-dtype asks for a type in which the target has no kernels.",
        "The result would not load there.",
        "Take another type, such as fp16, or another target. A model that came in the type is written all the same.",
    ),
    Code(
        "FG390",
        "a decision could not be written for the target",
        "The graph could not be spelled for the target without dropping a precision that the plan promises.",
        "Planning should have known; dropping it silently would break the plan's word.",
        "This is our bug: report it with the plan. --nodes-to-exclude the operator is a way around.",
    ),
)
