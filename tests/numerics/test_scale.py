"""Scale rules: exact amax, one fp32 division, and two repairs for degenerate tensors."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import ml_dtypes
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph import formats
from fp8graph.formats.spec import Format, Granularity, PerAxis, PerTensor
from fp8graph.numerics.cast import decode, encode
from fp8graph.numerics.scale import channel_amax, scale_from_amax

FORMATS = [formats.get(name) for name in ("e4m3fn", "e5m2")]
every_format = pytest.mark.parametrize("format", FORMATS, ids=str)


@every_format
def test_the_scale_maps_amax_to_the_largest_value(format):
    for amax in (1e-30, 0.01, 1.0, 6.5, 448.0, 1e30):
        scale = scale_from_amax(amax, format)
        assert isinstance(scale, np.float32)
        codes = encode(np.array([amax, -amax], np.float32), format, scale)
        assert decode(codes, format).tolist() == [format.max, -format.max]


@every_format
@settings(max_examples=200, deadline=None, derandomize=True)
@given(amax=st.floats(min_value=2.0**-100, allow_nan=False, allow_infinity=False, width=32))
def test_the_scale_is_one_fp32_division(format, amax):
    wanted = oracle.exact(oracle.divide(oracle.bits(amax), oracle.bits(float(format.max))))
    assert Fraction(float(scale_from_amax(np.float32(amax), format))) == wanted


@every_format
def test_zero_gives_one_and_tiny_gives_the_smallest_normal_scale(format):
    tiny = float(np.float32(2.0**-126))
    for zero in (0, 0.0, -0.0, np.float32(0)):
        assert scale_from_amax(zero, format) == 1.0
    for amax in (1e-45, 1e-40, 2.0**-126):
        assert scale_from_amax(amax, format) == tiny
    assert scale_from_amax(float(format.max) * tiny, format) == tiny


def test_arrays_keep_their_shape_and_are_float32():
    for shape in ((), (5,), (3, 1), (0,)):
        scale = scale_from_amax(np.ones(shape, np.float16), FORMATS[0])
        assert (np.shape(scale), scale.dtype) == (shape, np.float32)
    assert scale_from_amax([0, 448, 896.0], FORMATS[0]).tolist() == [1, 1, 2]


@pytest.mark.parametrize("wrong", [-1.0, -1e-45, np.nan, np.inf, -np.inf, 1e39])
def test_an_amax_that_is_no_fp32_magnitude_is_refused(wrong):
    with pytest.raises(ValueError, match="finite and not negative"):
        scale_from_amax(wrong, FORMATS[0])
    with pytest.raises(ValueError, match="at index 1"):
        scale_from_amax(np.array([1.0, wrong, 2.0]), FORMATS[0])


def test_a_format_whose_largest_value_is_no_fp32_number_is_refused():
    wide = Format("int32", "int", 32, 0, 31, 0, False, (), False, 6, 10)
    object.__setattr__(wide, "max", Fraction(2**31 - 1))  # not by listing 2^32 codes
    with pytest.raises(ValueError, match="not a fp32 number"):
        scale_from_amax(1.0, wide)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ">f4"], ids=str)
@pytest.mark.parametrize("shape", [(64, 30, 3, 3), (700, 900), (200_001, 2), (3, 150_000), (7,)], ids=str)
def test_amax_is_that_of_the_absolute_values(dtype, shape):
    weight = (np.random.default_rng(1).standard_normal(shape, np.float32) - np.float32(0.3)).astype(dtype)
    absolute = np.abs(weight.astype(np.float32))
    assert channel_amax(weight, PerTensor()) == absolute.max()
    assert channel_amax(weight, PerTensor()).shape == ()
    for axis in range(-len(shape), len(shape)):
        rest = tuple(i for i in range(len(shape)) if i != axis % len(shape))
        amax = channel_amax(weight, PerAxis(axis))
        assert amax.dtype == np.float32
        assert np.array_equal(amax, absolute.max(axis=rest))


def test_amax_of_views_of_numbers_and_of_nothing():
    weight = np.random.default_rng(2).standard_normal((300, 700), np.float32)
    assert np.array_equal(channel_amax(weight.T[::3], PerAxis(0)), np.abs(weight[:, ::3]).max(axis=0))
    assert channel_amax(np.float32(-3), PerTensor()) == 3
    assert channel_amax(np.zeros((4, 0), np.float32), PerAxis(0)).tolist() == [0, 0, 0, 0]
    assert channel_amax(np.zeros((4, 0), np.float32), PerAxis(1)).shape == (0,)
    assert channel_amax(np.array([[5.0], [-7.0]], np.float32), PerAxis(1)).tolist() == [7]
    assert not np.signbit(channel_amax(np.array([-0.0, -0.0], np.float32), PerTensor()))


def test_what_is_not_finite_shows_and_is_then_refused():
    weight = np.ones((3, 4), np.float16)
    weight[1, 2], weight[2, 3] = np.nan, -np.inf
    amax = channel_amax(weight, PerAxis(0))
    assert amax[0] == 1
    assert np.isnan(amax[1])
    assert np.isinf(amax[2])
    with pytest.raises(ValueError, match="nan at index 1"):
        scale_from_amax(amax, FORMATS[0])


def test_unfit_weights_and_granularities_are_refused():
    with pytest.raises(ValueError, match="must be float32"):
        channel_amax(np.ones(3), PerTensor())
    for granularity in (PerAxis(1), Granularity(((0, 2),))):
        with pytest.raises(ValueError, match="granularity"):
            channel_amax(np.ones(4, np.float32), granularity)


def test_amax_allocates_nothing_of_the_weights_size():
    weight = np.ones((2048, 4096), np.float16)
    for granularity in (PerTensor(), PerAxis(0), PerAxis(1)):
        tracemalloc.start()
        channel_amax(weight, granularity)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20
