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
from fp8graph.formats.spec import Blocks2D, Format, Granularity, PerAxis, PerBlock, PerTensor, ScaleFormat
from fp8graph.numerics.cast import decode, encode, fake_quantize
from fp8graph.numerics.scale import SMALLEST_SCALE, channel_amax, outer_scale, scale_from_amax, store_scales

FORMATS = [formats.get(name) for name in formats.names() if name != "e8m0"]
E4M3FN, E2M1, E8M0 = (formats.get(name) for name in ("e4m3fn", "e2m1", "e8m0"))
OCP, UP, NVFP4 = ScaleFormat("e8m0", "ocp"), ScaleFormat("e8m0"), ScaleFormat("e4m3fn", outer=True)
every_format = pytest.mark.parametrize("format", FORMATS, ids=str)


@every_format
def test_the_scale_maps_amax_to_the_largest_value(format):
    for amax in (1e-30, 0.01, 1.0, 6.5, 448.0, 1e30):
        scale = scale_from_amax(amax, format)
        assert isinstance(scale, np.float32)
        codes = encode(np.array([amax, -amax], np.float32), format, scale)
        assert decode(codes, format).tolist() == [format.max, -format.max]


@every_format
@settings(max_examples=50, deadline=None, derandomize=True)
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
    assert scale_from_amax([0, 448, 896.0], E4M3FN).tolist() == [1, 1, 2]


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
    for granularity in (PerAxis(1), PerAxis(-2), Granularity(((-1, 1), (0, 1)))):
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


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        (PerBlock(1, 16, 2), (64, 40)),
        (PerBlock(1, 32, 2), (3, 300_001)),
        (PerBlock(0, 32, 2), (1001, 700)),
        (Blocks2D(128, 128), (900, 777)),
        (Blocks2D(128, 128, 3), (3, 200, 130)),
        (PerBlock(0, 32, 1), (700_001,)),
    ],
    ids=str,
)
def test_amax_of_blocks_is_that_of_each_piece(granularity, shape, dtype):
    weight = (np.random.default_rng(3).standard_normal(shape, np.float32) - np.float32(0.3)).astype(dtype)
    amax, absolute = channel_amax(weight, granularity), np.abs(weight.astype(np.float32))
    assert amax.shape == granularity.scale_shape(shape)
    sizes = granularity.sizes(shape)
    some = np.random.default_rng(4).permutation(list(np.ndindex(amax.shape)))[:300].tolist()
    for block in [*some, [count - 1 for count in amax.shape]]:
        piece = absolute[tuple(slice(i * size, (i + 1) * size) for i, size in zip(block, sizes, strict=True))]
        assert amax[tuple(block)] == piece.max()
    assert np.array_equal(channel_amax(np.asfortranarray(weight), granularity), amax)


# --- scales that are stored in a format -------------------------------------------------------------------------------


def log2_floor(value: Fraction) -> int:
    power = value.numerator.bit_length() - value.denominator.bit_length()
    return power if Fraction(2) ** power <= value else power - 1


NEAR_POWERS = [
    float(value)
    for base in (1.0, 1.5, 1.75, 1.9921875, 448.0, 464.0, 6.0, 7.0, 7.5, 127.0, 240.0, 57344.0)
    for power in (-40, -3, 0, 5, 60)
    for center in [np.float32(base * 2.0**power)]
    for value in (center, np.nextafter(center, np.float32(np.inf)), np.nextafter(center, np.float32(0)))
]


@every_format
def test_ocp_scales_are_the_floor_of_log2_less_emax(format):
    stored = store_scales(NEAR_POWERS, format, OCP)
    wanted = [Fraction(2) ** (log2_floor(Fraction(amax)) - format.emax) for amax in NEAR_POWERS]
    assert [Fraction(scale) for scale in stored.effective.tolist()] == wanted
    assert [E8M0.value(code) for code in stored.codes.tolist()] == wanted
    assert stored.outer is None


@every_format
def test_powers_rounded_up_are_the_least_under_which_nothing_saturates(format):
    stored = store_scales(NEAR_POWERS, format, UP)
    for amax, scale in zip(NEAR_POWERS, stored.effective.tolist(), strict=True):
        assert Fraction(amax) <= format.max * Fraction(scale)
        assert Fraction(amax) > format.max * Fraction(scale) / 2
    assert np.array_equal(decode(stored.codes, E8M0), stored.effective)


def test_the_two_rules_differ_where_ocp_saturates():
    amax = np.array([447, 448, 449, 511, 512], np.float32)
    assert store_scales(amax, E4M3FN, OCP).effective.tolist() == [1, 1, 1, 1, 2]
    assert store_scales(amax, E4M3FN, UP).effective.tolist() == [1, 1, 2, 2, 2]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(min_value=2.0**-100, max_value=2.0**100, width=32), min_size=1, max_size=8))
def test_nvfp4_scales_are_two_divisions_and_one_rounding_under_one_for_the_tensor(amax):
    stored = store_scales(amax, E2M1, NVFP4)
    divide = lambda a, b: oracle.divide(oracle.bits(a), oracle.bits(b))  # noqa: E731
    outer = float(stored.outer)
    assert Fraction(outer) == max(oracle.exact(divide(max(amax), 2688.0)), Fraction(2) ** -117)
    for value, code, effective in zip(amax, stored.codes.tolist(), stored.effective.tolist(), strict=True):
        inner = divide(float(oracle.exact(divide(value, 6.0))), outer)
        assert code == max(oracle.code(inner, oracle.E4M3FN), 1)
        product = Fraction(outer) * oracle.decode(code, oracle.E4M3FN)
        assert abs(Fraction(effective) - product) <= product / 2**24
    assert stored.codes[int(np.argmax(amax))] == 0x7E  # 448


def test_an_outer_scale_that_is_known_is_used():
    amax = np.array([[1.0, 6.0]], np.float32)
    outer = outer_scale(10.0, E2M1, NVFP4)
    assert outer == np.float32(10 / 2688)
    stored = store_scales(amax, E2M1, NVFP4, outer)
    assert stored.outer == outer
    assert stored.codes.shape == (1, 2)
    assert decode(stored.codes, E4M3FN)[0, 1] == 256  # 1 / outer = 268.8, between 256 and 288
    assert store_scales(amax, E2M1, NVFP4, np.float32(1e-9)).codes.tolist() == [[0x7E, 0x7E]]


@pytest.mark.parametrize("scales", [ScaleFormat(), OCP, UP, ScaleFormat("e4m3fn"), NVFP4], ids=str)
@every_format
def test_zeros_and_extremes_get_scales_that_can_be_divided_by(format, scales):
    amax = np.array([0, 1e-45, 1e-38, 1e-30, 1.0, 3.4e38], np.float32)
    for part in (amax, amax[:1], amax[:3], amax[1], np.zeros((0,), np.float32)):
        stored = store_scales(part, format, scales)
        assert np.shape(stored.effective) == np.shape(part)
        assert stored.effective.dtype == np.float32
        assert np.all((stored.effective >= SMALLEST_SCALE) & np.isfinite(stored.effective))
        assert np.all(np.isfinite(encode(part, format, np.asarray(stored.effective))))
    zero = store_scales(np.float32(0), format, scales)
    assert zero.effective == 1
    assert isinstance(zero.effective, np.float32)
    assert (zero.codes is None) == (scales.format is None)
    among_others = store_scales(amax, format, scales)
    if among_others.codes is not None:
        assert decode(among_others.codes, formats.get(scales.format))[0] == 1


def test_float32_scales_are_those_of_the_plain_rule():
    amax = np.array([0, 1, 448, 1e-40], np.float32)
    stored = store_scales(amax, E4M3FN, ScaleFormat())
    assert np.array_equal(stored.effective, scale_from_amax(amax, E4M3FN))
    assert stored.codes is stored.outer is None


def test_what_makes_no_scale_is_refused():
    for wrong in (-1.0, np.nan, np.inf):
        for work in (lambda a: store_scales(a, E2M1, NVFP4), lambda a: outer_scale(a, E2M1, NVFP4)):
            with pytest.raises(ValueError, match="finite and not negative"):
                work(wrong)
    for scales in (ScaleFormat(), OCP, ScaleFormat("e4m3fn")):
        with pytest.raises(ValueError, match="no scale above"):
            store_scales(1.0, E2M1, scales, np.float32(1))
        with pytest.raises(ValueError, match="no scale above"):
            outer_scale(1.0, E2M1, scales)
    for outer in (np.float32(0), np.float32(1e-38), np.float32(np.inf), np.float32(np.nan), np.float64(1)):
        with pytest.raises(ValueError, match="outer must be"):
            store_scales(1.0, E2M1, NVFP4, outer)


def test_smaller_blocks_and_finer_scales_lose_less():
    """On a weight with outlying columns: NVFP4 before MXFP4, MXFP4 before one scale, E4M3 before E5M2."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((256, 512), np.float32) * np.exp(rng.standard_normal(512)).astype(np.float32)

    def sqnr(name: str, granularity: Granularity, scales: ScaleFormat) -> float:
        format = formats.get(name)
        effective = np.asarray(store_scales(channel_amax(weight, granularity), format, scales).effective)
        error = fake_quantize(weight, format, effective, granularity) - weight
        return float(10 * np.log10(np.sum(weight**2) / np.sum(error**2)))

    nvfp4, mxfp4 = sqnr("e2m1", PerBlock(1, 16, 2), NVFP4), sqnr("e2m1", PerBlock(1, 32, 2), OCP)
    assert nvfp4 > mxfp4 + 1 > sqnr("e2m1", PerTensor(), ScaleFormat()) + 2
    assert sqnr("e2m3", PerBlock(1, 32, 2), OCP) > sqnr("e3m2", PerBlock(1, 32, 2), OCP) + 3 > mxfp4 + 6
    plain = ScaleFormat()
    assert sqnr("e4m3fn", PerTensor(), plain) > sqnr("e5m2", PerTensor(), plain) + 5
    assert sqnr("int8", PerAxis(1), plain) > sqnr("int8", PerTensor(), plain) + 5
