"""Scales per block: every granularity, spread over a tensor and used by casts, ragged last blocks included."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph import formats
from fp8graph.formats.spec import Blocks2D, Granularity, PerAxis, PerBlock, PerTensor, PerToken
from fp8graph.numerics import cast
from fp8graph.numerics.blocks import block_scale, expand
from fp8graph.numerics.cast import decode, encode, fake_quantize
from fp8graph.numerics.scale import channel_amax, scale_from_amax

RNG = np.random.default_rng
E4M3FN, E2M1, INT8 = (formats.get(name) for name in ("e4m3fn", "e2m1", "int8"))

CASES = [
    (PerTensor(), (30, 50)),
    (PerTensor(), ()),
    (PerAxis(0), (30, 50)),
    (PerAxis(-1), (30, 50)),
    (PerToken(3), (3, 7, 100)),
    (PerBlock(0, 32, 2), (100, 50)),
    (PerBlock(1, 16, 2), (64, 40)),
    (PerBlock(-1, 32, 4), (5, 4, 3, 65)),
    (Blocks2D(128, 128), (300, 257)),
    (Blocks2D(128, 128), (5, 7)),
    (Blocks2D(3, 5, 3), (4, 10, 11)),
    (Granularity(((0, 7),)), (23, 9)),
    (Granularity(((0, 2), (1, 3), (2, 5))), (7, 8, 9)),
    (PerBlock(0, 32, 1), (700_001,)),
    (PerBlock(1, 32, 2), (3, 300_001)),
    (PerBlock(0, 32, 2), (1000, 701)),
    (Blocks2D(128, 128), (900, 777)),
    (PerBlock(1, 32, 2), (3, 0)),
]
every_case = pytest.mark.parametrize(("granularity", "shape"), CASES, ids=str)


def spelled_out(scale: np.ndarray, granularity: Granularity, shape: tuple[int, ...]) -> np.ndarray:
    """The scale of each element by its indices, from the definition."""
    size = dict.fromkeys(range(len(shape)), 0) | {axis % len(shape): size for axis, size in granularity.blocks}
    counted = scale.reshape([-(-length // size[i]) if size[i] else 1 for i, length in enumerate(shape)])
    return counted[tuple(index // size[i] if size[i] else index * 0 for i, index in enumerate(np.indices(shape)))]


def scales_of(granularity: Granularity, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.asarray(RNG(seed).uniform(0.01, 1, granularity.scale_shape(shape)), np.float32)


@every_case
def test_expand_gives_every_element_the_scale_of_its_block(granularity, shape):
    scale = scales_of(granularity, shape, 1)
    whole = expand(scale, granularity, shape)
    assert (whole.shape, whole.dtype, whole.flags.writeable) == (shape, np.float32, False)
    assert np.array_equal(whole, spelled_out(scale, granularity, shape))


@every_case
@pytest.mark.parametrize("format", [E4M3FN, E2M1, INT8], ids=str)
def test_casts_take_the_scales_of_blocks_as_if_they_were_expanded(granularity, shape, format):
    values, scale = np.asarray(RNG(2).standard_normal(shape, np.float32)), scales_of(granularity, shape, 3)
    whole = np.array(spelled_out(scale, granularity, shape))
    codes = encode(values, format, whole)
    for threads in (1, 3):
        assert np.array_equal(encode(values, format, scale, granularity, threads=threads), codes)
        assert np.array_equal(decode(codes, format, scale, granularity, threads=threads), decode(codes, format, whole))
        pair = fake_quantize(values, format, scale, granularity, threads=threads)
        assert np.array_equal(pair, decode(codes, format, whole))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_blocks_of_any_shape_spread_and_gather(data):
    shape = tuple(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4)))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True).map(sorted))
    granularity = Granularity(tuple((axis, data.draw(st.integers(1, 11))) for axis in axes))
    scale = np.arange(np.prod(granularity.scale_shape(shape)), dtype=np.float32).reshape(granularity.scale_shape(shape))
    whole = spelled_out(scale, granularity, shape)
    assert np.array_equal(expand(scale, granularity, shape), whole)
    spread = block_scale(scale, granularity, shape)
    for tile in cast.tiles(shape, data.draw(st.integers(1, 20))):
        part = spread.part(tile)
        assert np.array_equal(np.broadcast_to(part, whole[tile].shape), whole[tile])
    if 0 not in shape:
        assert np.array_equal(channel_amax(-whole, granularity), scale)


def test_scales_of_whole_dimensions_are_spread_without_a_copy():
    scale = np.ones(300, np.float32)
    assert np.shares_memory(expand(scale, PerAxis(0), (300, 4000)), scale)


def test_a_scale_of_another_shape_or_type_is_refused():
    values = np.ones((64, 64), np.float32)
    for granularity, shape in ((PerBlock(0, 32, 2), (2, 1)), (PerAxis(0), (64, 1)), (PerTensor(), (1,))):
        with pytest.raises(ValueError, match="expected"):
            encode(values, E4M3FN, np.ones(shape, np.float32), granularity)
        with pytest.raises(ValueError, match="must be float32"):
            expand(np.ones(granularity.scale_shape((64, 64))), granularity, (64, 64))
    with pytest.raises(ValueError, match="not an axis"):
        encode(values, E4M3FN, np.ones(1, np.float32), PerAxis(2))


@pytest.mark.parametrize("granularity", [PerBlock(1, 32, 2), PerBlock(0, 16, 2), Blocks2D(128, 128)], ids=str)
def test_nothing_of_the_tensors_size_is_allocated_but_the_result(granularity):
    weight = np.ones((1024, 8192), np.float16)
    amax = channel_amax(weight, granularity)
    scale = np.asarray(scale_from_amax(amax, E4M3FN))
    encode(weight[:2, :2], E4M3FN)  # tables are made
    for work, result in (
        (lambda: channel_amax(weight, granularity), amax.nbytes),
        (lambda: encode(weight, E4M3FN, scale, granularity), weight.size),
        (lambda: fake_quantize(weight, E4M3FN, scale, granularity), 4 * weight.size),
    ):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < result + (6 << 20)
