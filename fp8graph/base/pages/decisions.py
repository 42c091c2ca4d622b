"""FG2xx: decisions, the reasons that plans hold."""

from __future__ import annotations

from fp8graph.base.pages.code import Code

CODES = (
    Code(
        "FG201",
        "quantized by the recipe",
        "The recipe quantizes operators of this type, or a [[quantize.for]] line of it selects this one (the reason "
        "then quotes the pattern), and nothing spoke against it.",
        "This is the usual reason of a quantized operator.",
        "Nothing. To keep it nevertheless: --nodes-to-exclude 'KEY'.",
    ),
    Code(
        "FG202",
        "the recipe does not quantize this type",
        "Operators of this type are not in the recipe's `quantize.ops`, so they stay in high precision.",
        "Most of them (Relu, Add, Reshape ...) have no FP8 arithmetic anywhere; they fuse with their neighbours.",
        "Nothing, usually. --op-types-to-quantize TYPE asks for it; the target then has a say.",
    ),
    Code(
        "FG203",
        "kept on your request",
        "An option or a [[keep]] list names this operator, so it stays in high precision.",
        "What the user says comes before recipe and rules.",
        "Nothing. To undo it, take the pattern out of --nodes-to-exclude or --op-types-to-exclude.",
    ),
    Code(
        "FG204",
        "quantized on your request",
        "An option names this operator, so it is quantized where the recipe would have kept it.",
        "The target still bounds it: what it refuses becomes an error, never a silent change.",
        "Compare the accuracy with and without it.",
    ),
    Code(
        "FG205",
        "kept by a pattern of the recipe",
        "A [[keep]] line of the recipe selects this operator; the reason quotes the line's `why`.",
        "Recipes carry what was learned about a family of models.",
        "Change the recipe where it does not hold for this model.",
    ),
    Code(
        "FG206",
        "kept: a sensitive operator",
        "Normalisation, softmax, embedding look-ups, recurrent cells and their like lose much accuracy in FP8.",
        "They are a small part of the work, so that keeping them costs next to nothing.",
        "Nothing. --nodes-to-quantize asks for one all the same.",
    ),
    Code(
        "FG207",
        "kept: a router",
        "The product decides which expert gets which token; its result goes into a TopK or ArgMax.",
        "A small error there sends tokens to another expert, which no later layer mends, and the product is small.",
        "Nothing. --nodes-to-quantize asks for it all the same.",
    ),
    Code(
        "FG208",
        "kept: the first convolution on an image",
        "It reads the few channels of the input picture.",
        "Few channels fill no FP8 tile, so that it gains nothing, and every later layer inherits its error.",
        "Nothing. --nodes-to-quantize asks for it all the same.",
    ),
    Code(
        "FG209",
        "kept: small attention heads",
        "The heads of this attention are too small for the FP8 kernels to pay.",
        "Quantizing and dequantizing would take longer than the products gain.",
        "Nothing. --fp8-everywhere quantizes also what does not pay.",
    ),
    Code(
        "FG210",
        "decided together with its group",
        "The operator belongs to a group that is decided as one (attention: both products and the softmax between "
        "them), and a member of it stays in high precision. The reason names that member.",
        "Half an attention in FP8 does not fuse: it would be slower than none.",
        "Look up the member that the reason names; its own reason is the one to mend.",
    ),
    Code(
        "FG211",
        "kept: attention is switched off",
        "--attention off (or ModelOpt's --disable-mha-qdq) keeps the products inside attention in high precision.",
        "The projections around it are quantized as usual.",
        "Leave the option out to let the target's table decide.",
    ),
    Code(
        "FG212",
        "kept: a value is not finite",
        "Calibration saw NaN or infinity in a tensor that this operator reads, or a weight holds one.",
        "There is no scale for infinity; FP8 would spread it.",
        "Compare MODEL with itself on this data. A mask made of -inf is common: use a large finite number, or keep it.",
    ),
    Code(
        "FG213",
        "kept: a range is not known",
        "Calibration never reached a tensor that this operator reads (a branch that was not taken).",
        "No scale can be derived; any would be a guess.",
        "Give data that exercises this part of the model.",
    ),
    Code(
        "FG214",
        "kept in fp32: fp16 would overflow",
        "A value seen here is larger than 65504, the largest of fp16.",
        "In fp16 it would become infinity, and NaN soon after.",
        "Nothing: the operator stays in fp32. --high-precision-dtype bf16 has the range of fp32.",
    ),
    Code(
        "FG215",
        "kept: an operand is no floating tensor",
        "The operator reads integers or a type that cannot be quantized to FP8.",
        "There is nothing to scale.",
        "Nothing.",
    ),
    Code(
        "FG216",
        "kept: a weight is shared or has an odd form",
        "The weight is read by operators that want it quantized differently, or its shape has no axis for a scale.",
        "One tensor has one scale; two would need a copy of the weight.",
        "Give the operators a weight each, or --nodes-to-exclude the one that matters less.",
    ),
    Code(
        "FG217",
        "kept: a constant operand is computed in the graph",
        "The operand comes from constants by way of operators that could not be folded.",
        "Its values are not known before the model runs, so that no scale can be derived from them.",
        "Simplify the model (constant folding) before optimizing it.",
    ),
    Code(
        "FG218",
        "not quantized: no main operand",
        "This input is a bias or an auxiliary operand; only data and weight are quantized.",
        "Biases are added in high precision after the product.",
        "Nothing.",
    ),
    Code(
        "FG219",
        "initializers that were graph inputs became constants",
        "Up to IR version 3 every initializer had to be listed as a graph input; nobody meant it to be one.",
        "A weight that a caller may replace at run time cannot be stored in FP8.",
        "Nothing to do. If a caller really feeds one of them, keep its operator: --nodes-to-exclude.",
    ),
    Code(
        "FG220",
        "a scale was folded",
        "A multiplication by a constant was moved into a neighbouring scale.",
        "One operator less at run time; the result is the same up to the exactness that the pass declares.",
        "Nothing. `python -m fp8graph passes` shows which pass does it.",
    ),
    Code(
        "FG221",
        "one scale for the whole weight",
        "The target's kernel for this operator wants one weight scale, so that the weight has not one per channel.",
        "With a scale per channel this kernel would not be chosen and the operator would fall back.",
        "Nothing. The loss of accuracy is small; keep the operator if it is not.",
    ),
    Code(
        "FG222",
        "computed in fp32: the target lacks a kernel",
        "The target cannot build this operator in the high-precision type around it, quantized or not.",
        "The whole build would fail for this one operator.",
        "Nothing: Casts around it are in the result. `targets show TARGET --op TYPE` has the row with its source.",
    ),
    Code(
        "FG223",
        "an addition reads a rounded skip branch",
        "The pass share-residual was asked for: the addition reads the FP8 tensor that the products beside it read.",
        "The skip branch need not be kept in high precision. No engine adds in FP8: the rounding costs accuracy.",
        "Compare with and without it; leave the pass out where it does not pay.",
    ),
    Code(
        "FG224",
        "an embedding is stored in FP8",
        "The pass store-embeddings was asked for: the table has codes of the weights' format.",
        "The table takes a quarter of the bytes of float32. A look-up has no arithmetic that FP8 would speed up.",
        "Compare with and without it; leave the pass out where accuracy suffers.",
    ),
    Code(
        "FG225",
        "FP8 loses a fused epilogue",
        "What stands behind the product (bias, activation, scale, residual) is one kernel with it in fp16, and one of "
        "its own in FP8.",
        "For small or memory-bound products FP8 may not pay. Without a measurement on a device this is no reason to "
        "keep it.",
        "Measure on the device; --nodes-to-exclude 'KEY' keeps the operator.",
    ),
    Code(
        "FG226",
        "whether tensors fit fp16 is not known",
        "The model could not be run on the data given, and no scale needs it; constants alone were held against fp16.",
        "A tensor that overflows would be infinite in the result.",
        "Give the library that holds the model's operators: --custom-ops LIB.so; or --high-precision-dtype bf16.",
    ),
    Code(
        "FG227",
        "kept: it has no weight",
        "The recipe quantizes weights alone, and both operands of this operator are computed.",
        "There is nothing to store in fewer bytes.",
        "Nothing. A recipe that quantizes activations, too, quantizes it.",
    ),
    Code(
        "FG228",
        "kept: a length is open",
        "Blocks of an activation are cut along the axis that the product sums over, and its length is not known.",
        "The graph that finds a scale for each block needs the number of blocks.",
        "Export the model with that length fixed, or take a recipe with scales per tensor or token.",
    ),
    Code(
        "FG229",
        "coarser scales than were asked for",
        "The target computes the scales that the recipe asks for, or that a weight came with, wrongly or not in "
        "FP8, so that the plan has coarser ones.",
        "Numbers would be wrong, or the operator would fall back.",
        "Nothing; compare the result with the original. --target reference keeps the recipe's scales, and "
        'quantize.blocks = "split" in a recipe those of a weight that came in blocks.',
    ),
    Code(
        "FG230",
        "quantized already",
        "The model came with scales for this operator. Where both operands have them, in a format that the recipe "
        "quantizes to, the plan takes them over (origin `given`) and needs no data for them; else the operator stays "
        "as it came, with its Q/DQ.",
        "Numbers found in training are better than those that calibration would find; a second rounding adds noise.",
        "Nothing. --given-scales recalibrate finds the scales of activations anew; --nodes-to-exclude takes the Q/DQ "
        "out of an operator that was taken over.",
    ),
    Code(
        "FG231",
        "an Attention operator was left fused",
        "ONNX's Attention could not be written out as two products around a Softmax; the text says what stood in the "
        "way.",
        "Engines run the fused operator in half precision only: its products are not in FP8, and in a model of fp32 "
        "TensorRT-RTX cannot build it.",
        "Export the model at opset 22 or below, or without what the text names (a cache in the operator, softcap).",
    ),
    Code(
        "FG233",
        "an attention that must fuse cannot",
        "--attention must-fuse writes each attention as an operator that the builder has to fuse in FP8. This one "
        "stays in high precision by the plan, or has a form that the operator does not have.",
        "In Q/DQ form it would be built all the same, as separate products around a Softmax in memory.",
        "Mend what the reason names (mask, shapes, --high-precision-dtype fp16), or take --attention auto.",
    ),
    Code(
        "FG234",
        "an input or output keeps its type",
        "--direct-io-types gives inputs and outputs the high-precision type. No operator reads this input, or computes "
        "this output, in that type.",
        "A value that does not fit fp16, or whose operator has no kernel for the type, must not become infinite at the "
        "border of the model.",
        "Nothing: the others have the type. --high-precision-dtype bf16 has the range of fp32.",
    ),
    Code(
        "FG235",
        "FP8 that came with the model was left as it is spelled",
        "Casts, scales or operators of a vendor that say FP8 could not be written as ONNX's Q/DQ bit for bit; the text "
        "says what stood in the way.",
        "Engines take FP8 from QuantizeLinear with constant scales alone: the product behind it runs in high "
        "precision, or the model is not built.",
        "Export with one constant scale for each activation, or export the float model and let `optimize` quantize it.",
    ),
    Code(
        "FG236",
        "a weight has another format than it came in",
        "A weight came as codes of E5M2 or of an FNUZ format, which the target does not run. Its codes are written in "
        "the recipe's format; its scales are those that it came with, times a power of two.",
        "The power of two changes no digit: only values far below the largest are rounded. The text says what is left.",
        "Nothing. --target reference keeps the weight as it came.",
    ),
    Code(
        "FG237",
        "kept: the checkpoint names it",
        "The model came from a checkpoint whose config lists this layer among those that are not quantized "
        "(modules_to_not_convert, ignored_layers, ignore or exclude_modules), and whose weight of it is no FP8.",
        "Whoever made the checkpoint measured it with this layer in high precision.",
        "Nothing. --nodes-to-quantize asks for it all the same.",
    ),
    Code(
        "FG238",
        "kept for the accuracy that was asked for",
        "A search (--min-sqnr, --max-drop), `sensitivity` or `debug precision` found that the model is accurate enough "
        "where this operator stays in high precision. The reason says what FP8 costs there: its part of the noise, and "
        "its part of the multiply-accumulates.",
        "Those are given up first that cost the most accuracy for the least FP8 arithmetic.",
        "Nothing. A lower bound gives more FP8; --nodes-to-quantize asks for this one all the same.",
    ),
    Code(
        "FG239",
        "an operand in two FP8 terms",
        "A part of the operand's channels is summed over twice, the second time with what rounding to FP8 has lost: "
        "x = hi + lo / 16, both in FP8 with one scale.",
        "These channels cost the output most of its noise for the multiply-accumulates that they add; all of them "
        "together add no more than the repair split-terms may (its option `share`).",
        "Nothing. Leave split-terms out of the recipe's repairs to have every operand in one term.",
    ),
    Code(
        "FG240",
        "repairs were left out",
        "The recipe names repairs that learn from data, and there are no samples (or random ones; ranges alone do "
        'not do), or, with learn = "light", fewer than eight feeds.',
        "They solve for what the model computes on real inputs, and samples held back tell whether they have helped.",
        "Give --data FILE, more of it, or a smaller --batch; or a plan that holds what they have found (--plan).",
    ),
    Code(
        "FG241",
        "repairs were dropped",
        "On samples that they had not learned from, the model was no nearer to the original with what they found.",
        "A repair is switched on by measurement.",
        "Nothing. More samples in --data let them learn more.",
    ),
    Code(
        "FG242",
        "channels have been scaled",
        "The channels of this operand are divided by powers of two, and the weights that read it multiplied by them: "
        "the same numbers, in ranges that round better. The text says by how much, by an estimate for these operators.",
        "One scale is that of the largest channel: INT8 has few steps left for the others.",
        "Nothing. Leave migrate-channels and equalize-channels out of the recipe's repairs to have it as it came.",
    ),
    Code(
        "FG243",
        "quantized in the format that costs the least",
        "The recipe lets operators have other formats than its own (quantize.instead, recipe auto): what each costs "
        "the model's output was measured on the data. The text says what is left where this one alone is quantized.",
        "FP8 is better where few values are far larger than the others, INT8 where they are alike.",
        "Nothing. --recipe fp8-default and --recipe int8 have one format for all; a [[quantize.for]] line names one.",
    ),
    Code(
        "FG244",
        "kept: it costs more than it is worth",
        "In the best of the formats that it may have, this operator has more than twenty times its part of the model's "
        "multiply-accumulates as its part of the noise.",
        "In high precision it slows the model little, and makes it much more accurate.",
        "Nothing. --nodes-to-quantize 'KEY' asks for it all the same.",
    ),
    Code(
        "FG245",
        "FP8 buys little or nothing",
        "FP8 computes less than a tenth of the multiply-accumulates, or each product is so small that a kernel takes "
        "longer to start than to compute it.",
        "What is not computed in FP8, or takes no time, does not become faster by it; accuracy is lost all the same.",
        "Measure on the device (bench) against --recipe int8 and --recipe fp16.",
    ),
    Code(
        "FG246",
        "what single operators cost is known in part",
        "`sensitivity`, or the search for a goal, could not measure an operator, because the target's form of it "
        "leaves no tensor under the name that it had; or the samples are so few that one had to do for each operator.",
        "Noise of one sample is a rough guide, and an operator that was not measured counts as one that costs nothing.",
        "Give more samples; measure with --target reference, which keeps all forms; or sensitivity --exact.",
    ),
    Code(
        "FG247",
        "repairs left operators out",
        'The recipe has repairs learn in little time (learn = "light"): of operators with wide weights, whose '
        "solving takes the longest, they do not learn; where those are more than half, or the model is large (more "
        "than 2^24 weights, or a very long graph), they learn of none.",
        "Solving for a weight takes time with the third power of how many inputs an output sums over.",
        "Name the repairs (--passes reconstruct-weights,correct-bias), or --recipe fp8-full: then all are solved for.",
    ),
    Code(
        "FG248",
        "codes and biases of the plan were found for other weights",
        "The model has the plan's structure, and other weights: it was trained on; or the plan was edited, and "
        "quantizes them in another way. What repairs have found there is left out, or, with samples, found anew.",
        "Codes and biases are about the very weights that they were solved for. Scales of weights are derived anew.",
        "Give --data with --plan, so that they are found anew; or nothing: the plan is whole without them.",
    ),
    Code(
        "FG232",
        "a guard against NaN was left behind Softmax",
        "Where(IsNaN(p), 0, p) stands between Softmax and the second product, rows of -inf may need it, and it could "
        "not be moved behind the product.",
        "With the guard in between, an engine does not fuse attention in FP8, though it does in fp16.",
        "Export with a mask of large negative numbers in place of -inf; or --attention off.",
    ),
)
