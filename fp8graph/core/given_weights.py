"""Weights that came as codes and scales: whether a target takes these, and what it costs where it does not.

Blocks along the axis that is summed over run in no kernel. One scale per output channel instead loses some of the
weight; a product for each block loses nothing, and moves more bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fp8graph import formats
from fp8graph.core.quants import contraction_axis, output_axis
from fp8graph.data.plan import CAME, Quant
from fp8graph.data.recipe import Blocks
from fp8graph.data.target import Target
from fp8graph.formats.spec import Granularity, PerAxis, PerBlock
from fp8graph.graph import given, tensors
from fp8graph.graph.given import Given
from fp8graph.numerics.cast import decode, fake_quantize
from fp8graph.numerics.error import ErrorSums
from fp8graph.numerics.observed import scales_of_weight

# The pass that writes a product for each block: targets that take it name it among their forms.
SPLIT = "split-weight-blocks"
# Most products that one is split into unasked. Each is a kernel of its own, all sums are one more (tensorrt_rtx 1.7.1
# engines, 2 to 32 blocks); what a kernel's start costs was measured on no device, so that this is a choice.
MOST = 4


@dataclass(frozen=True)
class Cut:
    """Whether a weight's blocks become products of their own, and why."""

    split: bool
    text: str


def takes(wanted: str, granularity: Granularity, node: ir.Node, slot: int, rank: int) -> bool:
    """Whether scales are as coarse as a target's row wants them: `tensor`, `channel` (of the output) or `any`."""
    if wanted == "any" or not granularity.blocks:
        return True
    axis = output_axis(node, slot, rank)
    return wanted == "channel" and axis is not None and granularity == PerAxis(axis)


def stored(target: Target, format: str) -> bool:
    """Whether weights may be stored in a format there: FP8 other than that of its rows and its importer is not read."""
    held = any(format in row.formats and row.status != "refused" for row in target.rows)
    return held or formats.family(format) != "fp8" or format in (target.qdq.imports or ())


def readable(target: Target, came: Given) -> bool:
    """Whether a weight may lie there as it came: in its format, with blocks that divide their axis where they must."""
    uneven = ragged(target, came.granularity, came.codes)
    return formats.family(came.format) != "fp8" or (stored(target, came.format) and not uneven)


def ragged(target: Target, granularity: Granularity, weight: ir.Value) -> str:
    """Why a target does not read a weight in these blocks; empty where it does."""
    rule, shape = target.ragged, tensors.dims(weight) or ()
    blocks = [(size, shape[axis] or 0) for axis, size in granularity.blocks if size > 1]
    return rule.text if rule is not None and any(rule.cuts(size, length) for size, length in blocks) else ""


def foreign(node: ir.Node, wanted: str, target: Target) -> str:
    """Why a product keeps its weight, which came in a format of another family than is wanted; else empty."""
    for value in node.inputs[:2]:
        came = given.of(value)
        read = came is not None and readable(target, came)
        if came is not None and read and formats.family(came.format) != formats.family(wanted):
            return f"its weight came in {came.format} and stays so: {wanted} would round it once more"
    return ""


def told(
    value: ir.Value | None, quant: Quant, target: Target, left: Callable[[ir.Value, Quant], float | None]
) -> Iterator[tuple[str, str]]:
    """What a plan changes of a weight that came as codes: its format, blocks that are not read; with a code to note."""
    came = given.of(value)
    if value is None or came is None:
        return
    why = ragged(target, came.granularity, value)
    if why and came.granularity != quant.granularity:
        yield "", f"its weight has no blocks: {why}"  # FG229 says what that costs
    if came.format != quant.format:
        lost = left(value, quant)
        cost = "nothing of it is lost" if lost is None else f"{lost:.1f} dB of it are left"
        text = f"the weight came in {came.format}, which {target.name} does not run here: it is in {quant.format}"
        yield "FG236", f"{text}, {cost}"


def loss(weight: ir.Value, quant: Quant) -> float | None:
    """What another rounding of a weight makes of it: SQNR in dB; None where it stays what it is."""
    array, came = tensors.read(weight), given.of(weight)
    form, granularity = formats.get(quant.format), quant.granularity
    if came is not None and quant.scale.rule == CAME:
        array = came.array(ir.DataType.FLOAT)  # what the codes stand for: a weight in fp16 is that rounded once more
        made = decode(came.codes_in(form), form, came.scales_in(form), granularity)
    else:
        made = fake_quantize(array, form, scales_of_weight(array, quant).effective, granularity)
    sums = ErrorSums()
    sums.add(array, made)
    tensors.release(weight)
    return sums.sqnr_db


def parts(came: Given, node: ir.Node, slot: int) -> int:
    """How many products the blocks of a weight make; 0 where they do not lie along the axis that is summed over."""
    shape = tensors.dims(came.codes) or ()
    fits = node.op_type in ("Gemm", "MatMul") and len(shape) == 2 and came.block > 1
    if not fits or came.granularity != PerBlock(contraction_axis(node, slot, 2), came.block, 2):
        return 0
    return -(-(shape[came.axis] or 0) // came.block)


def moved(rows: int, summed: int, channels: int, count: int) -> tuple[int, int]:
    """Bytes that a product in fp16 moves, and those of its split in FP8, where each partial sum is written and read in
    float32 (tensorrt_rtx 1.7.1 engines: so does the kernel that adds them)."""
    whole = 2 * (summed * channels + rows * summed + rows * channels)
    return whole, summed * channels + rows * summed + (8 * count + 2) * rows * channels


def cut(
    wish: Blocks, came: Given, coarse: Granularity, left: float | None, result: Sequence[int | None] | None
) -> Cut | None:
    """What becomes of a weight of rank 2 in blocks, by what each way loses and costs; None where there is one way.

    wish    the recipe's: `split` and `channel` decide, but for a single block, whose scales are those of the channels
    coarse  the blocks that it has where it is rounded anew: one scale per output channel, or one
    left    SQNR in dB of the weight under these; None where nothing is lost
    result  dimensions of the product under the largest shapes, where they are known
    """
    sizes = [int(size or 0) for size in tensors.dims(came.codes) or ()]
    summed, channels = sizes[came.axis], sizes[1 - came.axis]
    count = -(-summed // came.block)
    if count == 1:
        kept = "all of the weight lies in one block: it keeps one scale per output channel"
        return Cut(True, kept) if coarse.blocks else None
    cost, cheap = "with an open number of rows", False
    if result is not None and None not in result and channels:
        rows = math.prod(size or 0 for size in result) // channels
        whole, apart = moved(rows, summed, channels, count)
        cost, cheap = f"with {apart / max(whole, 1):.2g} times the bytes of fp16", count <= MOST and apart <= whole
    loss = "as much" if left is None else f"{left:.1f} dB"
    scales = "one scale per output channel" if coarse.blocks else "one scale"
    if wish == "split" or (wish == "auto" and cheap and left is not None):
        text = f"split into {count} products, {cost}, which lose nothing of the weight"
        return Cut(True, f"{text}: {scales} would leave {loss} of it")
    text = f"{scales}, which leaves {loss} of the weight"
    return Cut(False, f"{text}: {count} products, one for each block, {cost}, would lose nothing")
