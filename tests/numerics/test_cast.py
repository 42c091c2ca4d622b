"""encode, decode and fake_quantize against the exact oracle: values, shapes, scales, threads, memory."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph import formats
from fp8graph.formats.spec import Format, PerAxis
from fp8graph.numerics import cast
from fp8graph.numerics.cast import decode, encode, fake_quantize, ml_dtype, tiles

FORMATS = [formats.get(name) for name in formats.names()]
ELEMENTS = [format for format in FORMATS if format.kind != "exponent"]
E4M3FN, E8M0, INT8, E2M1 = (formats.get(name) for name in ("e4m3fn", "e8m0", "int8", "e2m1"))
NO_NAN = ("e2m1", "e2m3", "e3m2", "int4", "int8")
RNG = np.random.default_rng
every_format = pytest.mark.parametrize("format", FORMATS, ids=str)
every_element = pytest.mark.parametrize("format", ELEMENTS, ids=str)
# for what does not depend on the format: one that the table knows a NaN of, one of 15 bits less, one of 4 bits
some_formats = pytest.mark.parametrize("format", [E4M3FN, INT8, E2M1], ids=str)


def f32(patterns) -> np.ndarray:
    return np.asarray(patterns, np.uint32).view(np.float32)


def patterns(values) -> list[int]:
    return np.asarray(values, np.float32).reshape(-1).view(np.uint32).tolist()


def assert_codes(codes: np.ndarray, wanted: list[int | None], format: Format, values) -> None:
    """Codes are those of the oracle; where it says NaN, any NaN code will do."""
    wrong = [
        (float(value), hex(code), want)
        for code, want, value in zip(codes.reshape(-1).tolist(), wanted, np.asarray(values).reshape(-1), strict=True)
        if (not format.is_nan(code) if want is oracle.NAN else code != want)
    ]
    assert wrong == [], f"{len(wrong)} wrong"


def without_nan(values: np.ndarray, format: Format) -> np.ndarray:
    """The values, less NaN where the format has none: it refuses them."""
    with np.errstate(invalid="ignore"):  # bfloat16's isnan
        return values[~np.isnan(values)] if format.name in NO_NAN else values


def assert_rounds_as_the_oracle(values: np.ndarray, format: Format) -> None:
    exact, values = oracle.BY_NAME[format.name], without_nan(values, format)
    assert_codes(encode(values, format), [oracle.code(bits, exact) for bits in patterns(values)], format, values)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal float32 arrays, zeros by sign, all NaN alike."""
    nan = np.isnan(left)
    return (
        left.shape == right.shape
        and np.array_equal(nan, np.isnan(right))
        and np.array_equal(np.where(nan, 0, left.view(np.uint32)), np.where(nan, 0, right.view(np.uint32)))
    )


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "dtype"),
    [*((f, ml_dtypes.bfloat16) for f in FORMATS), *((f, np.float16) for f in (E4M3FN, INT8, E2M1))],
    ids=str,
)
def test_every_16_bit_float_rounds_as_the_oracle(format, dtype):
    values = without_nan(np.arange(1 << 16, dtype=np.uint16).view(dtype), format)
    wanted = [oracle.code(bits, oracle.BY_NAME[format.name]) for bits in patterns(values.astype(np.float32))]
    assert_codes(encode(values, format), wanted, format, values.astype(np.float32))


@every_format
def test_every_upper_half_rounds_as_the_oracle_with_the_least_and_the_greatest_lower_half(format):
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    middle = [upper | 0x8000, upper | 0x8001] if format is INT8 else []  # its table drops 15 bits
    assert_rounds_as_the_oracle(f32(np.concatenate([upper | 1, upper | 0xFFFF, *middle])), format)


@every_format
def test_codes_midpoints_and_their_fp32_neighbours_round_as_the_oracle(format):
    values = around_codes(format)
    around = [values, np.nextafter(values, np.float32(np.inf)), np.nextafter(values, np.float32(-np.inf))]
    assert_rounds_as_the_oracle(np.concatenate([*around, *(-part for part in around)]), format)


def around_codes(format: Format) -> np.ndarray:
    """Every value and every middle between two, and the one beyond the last: exact, float32."""
    exact = oracle.BY_NAME[format.name]
    found = {abs(value) for code in format.codes if (value := oracle.decode(code, exact)) is not None}
    finite = sorted(found)
    finite += [] if format is E8M0 else [2 * finite[-1] - finite[-2]]  # 2^128 is no float32
    points = finite + [(low + high) / 2 for low, high in pairwise(finite)]
    values = np.array([float(point) for point in points], np.float32)
    assert [Fraction(float(value)) for value in values] == points
    return values


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_powers_of_two_round_as_casts_round_mode_says(mode):
    exact = oracle.Power(mode)
    points = around_codes(E8M0)
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    values = np.concatenate([
        points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0)),
        f32(upper), f32(upper | 1), np.array([0.0, -0.0, 1e-45, np.inf, -np.inf, -1.0, np.nan, -np.nan], np.float32),
    ])  # fmt: skip
    wanted = [oracle.code(bits, exact) for bits in patterns(values)]
    assert_codes(encode(values, E8M0, round_mode=mode), wanted, E8M0, values)


def test_one_and_a_half_becomes_two_one_and_two():
    for mode, power in (("up", 2.0), ("down", 1.0), ("nearest", 2.0)):
        assert decode(encode(np.array([1.5, 3e-45], np.float32), E8M0, round_mode=mode), E8M0)[0] == power
    with pytest.raises(ValueError, match="round_mode"):
        encode(np.ones(3, np.float32), E8M0, round_mode="even")


@every_format
def test_random_fp32_patterns_round_as_the_oracle(format):
    values = f32(RNG(1).integers(0, 1 << 32, 40_000, dtype=np.uint32))
    assert np.isnan(values).any()
    assert_rounds_as_the_oracle(values, format)


@pytest.mark.parametrize("format", [format for format in FORMATS if format.name in NO_NAN], ids=str)
def test_a_nan_without_a_code_is_refused_wherever_it_is(format):
    for place in (0, 5, 299_999, 300_000):
        values = np.zeros(300_001, np.float32)
        encode(values, format)
        for nan in (np.nan, -np.nan):
            values[place] = nan
            for function in (encode, fake_quantize):
                for threads in (1, 2):
                    with pytest.raises(ValueError, match=f"format {format.name} has no NaN"):
                        function(values, format, threads=threads)
    for zero in (np.float32(0), np.float32(np.nan)):
        with pytest.raises(ValueError, match="has no NaN"):
            encode(np.zeros(3, np.float32), format, zero)


@every_element
def test_what_has_no_nearest_value_is_saturated_and_nan_and_minus_zero_stay(format):
    largest, smallest = float(format.max), min(float(format.value(code) or 0) for code in format.codes)
    assert smallest == (-largest - 1 if format.kind == "int" else -largest)
    back = decode(encode(np.array([np.inf, -np.inf, 3e38, -3e38], np.float32), format), format)
    assert back.tolist() == [largest, smallest, largest, smallest]
    zeros = decode(encode(np.array([-0.0, 1e-45, -1e-45, 0.0], np.float32), format), format)
    assert (zeros == 0).all()
    signed = format.name in ("e4m3fn", "e5m2", "e2m1", "e2m3", "e3m2")
    assert np.signbit(zeros).tolist() == [signed, False, signed, False]
    if format.name not in NO_NAN:
        codes = encode(f32([0x7FC00000, 0xFFC00000, 0x7F800001]), format)
        assert codes.tolist() == ([0x80, 0x80, 0x80] if format.name.endswith("fnuz") else [0x7F, 0xFF, 0x7F])


@every_element
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_value_under_any_scale_is_one_fp32_division_and_one_rounding(format, data):
    value = data.draw(st.floats(width=32, allow_nan=False, allow_infinity=False))
    scale = data.draw(st.floats(min_value=2.0**-149, allow_nan=False, allow_infinity=False, width=32))
    want = oracle.code(oracle.divide(oracle.bits(value), oracle.bits(scale)), oracle.BY_NAME[format.name])
    assert encode(np.array([value], np.float32), format, np.float32(scale)).tolist() == [want]


@every_element
@pytest.mark.parametrize("scale", [1 / 3, 0.0173, 1e-3, 37.1])
def test_quotients_next_to_midpoints_are_divided_and_not_multiplied_by_the_reciprocal(format, scale):
    exact, scale = oracle.BY_NAME[format.name], np.float32(scale)
    near = (around_codes(format).astype(np.float64) * float(scale)).astype(np.float32)
    values = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(0))])
    quotients = [oracle.divide(bits, oracle.bits(float(scale))) for bits in patterns(values)]
    assert_codes(encode(values, format, scale), [oracle.code(bits, exact) for bits in quotients], format, values)


@every_format
def test_every_code_decodes_to_its_exact_value_and_encodes_to_itself(format):
    codes = np.arange(2**format.bits, dtype=np.uint8)
    numbers = decode(codes, format)
    assert numbers.dtype == np.float32
    for code, number in zip(codes.tolist(), numbers.tolist(), strict=True):
        value = oracle.decode(code, oracle.BY_NAME[format.name])
        if value is not None:
            assert Fraction(number) == value == format.value(code)
            assert np.signbit(number) == (format.kind != "exponent" and code >> (format.bits - 1))
        else:
            assert np.isnan(number) == format.is_nan(code)
            assert np.isinf(number) == format.is_infinite(code)
    finite = np.isfinite(numbers)
    assert np.array_equal(encode(numbers, format)[finite], codes[finite])
    assert same_bits(codes.view(ml_dtype(format)).astype(np.float32), numbers)


@every_element
@pytest.mark.parametrize("scale", [0.0, np.inf, np.nan, -0.5, 1e-40])
def test_a_bad_scale_gives_what_ieee_division_gives(format, scale):
    values, scale = np.array([2.0, -2.0, 0.0], np.float32), np.float32(scale)
    with np.errstate(all="ignore"):
        quotient = values / scale
    kept = ~np.isnan(quotient) if format.name in NO_NAN else np.full(3, True)
    wanted = [oracle.code(bits, oracle.BY_NAME[format.name]) for bits in patterns(quotient[kept])]
    assert_codes(encode(values[kept], format, scale), wanted, format, values[kept])


@every_element
def test_agrees_with_clipping_and_ml_dtypes_on_a_million_values(format):
    rng, largest = RNG(2), np.float32(float(format.max))
    values = np.concatenate(
        [f32(rng.integers(0, 1 << 32, 1 << 19, dtype=np.uint32)), 30 * rng.standard_normal(1 << 19, np.float32)]
    )
    values = values[~np.isnan(values)]
    if format.kind == "int":
        wanted = np.clip(np.rint(values), -largest - 1, largest).astype(np.int8).view(np.uint8) & (2**format.bits - 1)
    else:
        wanted = np.clip(values, -largest, largest).astype(ml_dtype(format)).view(np.uint8)
    assert np.array_equal(encode(values, format), wanted)


# --- scales, shapes, threads, memory ----------------------------------------------------------------------------------


def reference(values: np.ndarray, format: Format, scale) -> np.ndarray:
    """The plain whole-array way, on a C-contiguous copy."""
    largest = np.float32(float(format.max))
    quotient = np.array(values, np.float32, order="C") / np.float32(scale)
    if format.kind == "int":
        return np.asarray(np.clip(np.rint(quotient), -largest - 1, largest), np.int8).view(np.uint8)
    return np.asarray(np.clip(quotient, -largest, largest), ml_dtype(format)).view(np.uint8)


SHAPES = [
    (),
    (1,),
    (7,),
    (0,),
    (3, 0, 5),
    (300_001,),
    (2, 3, 140_000),
    (5, 70_001),
    (64, 130, 3, 3),
    (400_000, 1),
    (1, 1, 1),
]


@some_formats
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_is_cut_and_put_together_again(format, shape):
    values = np.asarray(RNG(3).standard_normal(shape, np.float32), np.float32)
    codes = encode(values, format, np.float32(0.01))
    assert (codes.shape, codes.dtype, codes.flags.c_contiguous) == (shape, np.uint8, True)
    assert np.array_equal(codes, reference(values, format, 0.01))
    assert isinstance(codes, np.ndarray)
    assert same_bits(fake_quantize(values, format, np.float32(0.01)), decode(codes, format, np.float32(0.01)))


@some_formats
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ">f4"], ids=str)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((64, 130, 3, 3), 0), ((64, 130, 3, 3), 1), ((300, 1000), -1), ((70_000, 5), 1), ((5, 70_000), 0)],
)
def test_scales_per_axis(format, dtype, shape, axis):
    rng, granularity = RNG(4), PerAxis(axis)
    values = (3 * rng.standard_normal(shape, np.float32)).astype(dtype)
    scale = rng.uniform(0.001, 0.1, granularity.broadcast_shape(shape)).astype(np.float32)
    codes = encode(values, format, scale)
    assert np.array_equal(codes, np.concatenate([
        np.expand_dims(reference(values.take(i, axis), format, scale.reshape(-1)[i]), axis) for i in range(shape[axis])
    ], axis))  # fmt: skip
    back = decode(codes, format, scale)
    assert same_bits(back, codes.view(ml_dtype(format)).astype(np.float32) * scale)
    assert same_bits(back, fake_quantize(values, format, scale))


@some_formats
def test_scales_that_vary_along_two_axes_broadcast(format):
    rng = RNG(5)
    values, scale = rng.standard_normal((40, 50, 90), np.float32), rng.uniform(0.01, 1, (40, 1, 90)).astype(np.float32)
    assert np.array_equal(encode(values, format, scale), reference(values, format, scale))


@some_formats
@pytest.mark.parametrize("axis", [None, 0, 2])
def test_any_number_of_threads_gives_the_same_bytes(format, axis):
    values = RNG(6).standard_normal((33, 61, 1000), np.float32)
    shape = () if axis is None else PerAxis(axis).broadcast_shape(values.shape)
    scale = np.asarray(RNG(7).uniform(0.001, 0.1, shape), np.float32)
    codes, pair = encode(values, format, scale), fake_quantize(values, format, scale)
    for threads in (2, 99):
        out = np.full_like(codes, 0xAA)
        assert np.array_equal(encode(values, format, scale, threads=threads, out=out), codes)
        assert same_bits(decode(codes, format, scale, threads=threads), pair)
        assert same_bits(fake_quantize(values, format, scale, threads=threads), pair)


VIEWS = {
    "transposed": lambda x: x.T,
    "every other row": lambda x: x[::2],
    "every other column": lambda x: x[:, ::2],
    "backwards": lambda x: x[::-1, ::-1],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "fortran": np.asfortranarray,
    "axes moved": lambda x: np.moveaxis(x.reshape(100, 20, 150), 0, 1),
}


@some_formats
@pytest.mark.parametrize("view", VIEWS)
def test_strides_do_not_matter(format, view):
    values = VIEWS[view](RNG(8).standard_normal((500, 600), np.float32))
    scale = np.full(values.shape[:1] + (1,) * (values.ndim - 1), 0.02, np.float32)
    codes = reference(values, format, scale)
    assert np.array_equal(encode(values, format, scale), codes)
    assert same_bits(fake_quantize(values, format, scale), decode(codes, format, scale))
    strided = VIEWS[view](RNG(9).integers(0, 2**format.bits, (500, 600), dtype=np.uint8))
    assert same_bits(decode(strided, format, scale), decode(np.ascontiguousarray(strided), format, scale))


def test_out_is_written_and_returned():
    values, out = RNG(10).standard_normal((300, 700), np.float32), np.full((300, 700), 0xAA, np.uint8)
    assert encode(values, E4M3FN, out=out) is out
    assert np.array_equal(out, encode(values, E4M3FN))
    for wrong in (out[:1], np.asfortranarray(out), np.empty((300, 1400), np.uint8)[:, ::2], out.view(np.int8)):
        with pytest.raises(ValueError, match="out must be"):
            encode(values, E4M3FN, out=wrong)


def test_codes_of_the_ml_dtypes_type_decode_too():
    for format in FORMATS:
        codes = np.arange(2**format.bits, dtype=np.uint8)
        assert same_bits(decode(codes.view(ml_dtype(format)), format), decode(codes, format))
    codes = np.arange(16, dtype=np.uint8)
    with pytest.raises(ValueError, match="codes must be"):
        decode(codes.view(ml_dtype(E4M3FN)), E2M1)
    with pytest.raises(ValueError, match="codes must be"):
        decode(codes.astype(np.int32), E2M1)


def test_codes_beyond_the_format_are_refused_and_signs_in_spare_bits_are_not():
    for name, code in (("e2m1", 16), ("e2m3", 64), ("e3m2", 0xFF), ("int4", 16)):
        with pytest.raises(ValueError, match=f"has no code {code}"):
            decode(np.array([0, code], np.uint8), formats.get(name))
    filled = np.array([-1, -8, 7], np.int8).view(ml_dtypes.int4)
    assert decode(filled, formats.get("int4")).tolist() == [-1, -8, 7]


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.int32, np.complex64, bool])
def test_other_types_are_refused(dtype):
    for function in (encode, fake_quantize):
        with pytest.raises(ValueError, match="must be float32"):
            function(np.ones(3, dtype), E4M3FN)
        with pytest.raises(ValueError, match="scale must be float32"):
            function(np.ones(3, np.float32), E4M3FN, np.ones((), dtype))


def test_scales_that_do_not_broadcast_are_refused():
    for shape in ((4,), (3, 1, 1), (2, 3)):
        with pytest.raises(ValueError, match="does not broadcast"):
            encode(np.ones((5, 3), np.float32), E4M3FN, np.ones(shape, np.float32))


def test_formats_of_more_than_8_bits_are_refused():
    half = Format("float16", "float", 16, 5, 10, 15, True, (), True, 10, 19)
    with pytest.raises(ValueError, match="not known"):
        encode(np.ones(3, np.float32), half)


def test_a_format_of_someones_own_is_rounded_by_its_description():
    own = Format("e1m6", "float", 8, 1, 6, 0, False, (0x7F, 0xFF), True, 0, 0)
    values = np.array([3 + 59 / 64, 1 / 64, 1 / 32, 3 / 64, 2, -1e9, np.nan], np.float32)
    numbers = np.array([0, 1 / 32, 2 / 32, 2, 3 + 30 / 32, -3 - 30 / 32], np.float32)
    assert np.array_equal(decode(encode(values, own), own)[:-1], numbers[[4, 0, 1, 2, 3, 5]])


def test_nothing_of_the_tensors_size_is_allocated_but_the_result():
    values = np.zeros((8, 1 << 20), np.float16)
    scale, limit = np.ones((8, 1), np.float32), 4 << 20
    for function, result in ((encode, values.size), (fake_quantize, 4 * values.size)):
        function(values[:, :4].T, E4M3FN)  # tables are made
        for view, scales in ((values, scale), (values.T, scale.T)):
            tracemalloc.start()
            function(view, E4M3FN, scales)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < result + limit


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(0, 9), min_size=1, max_size=5), limit=st.integers(1, 40))
def test_tiles_cover_an_array_once_in_order_and_fit(shape, limit):
    numbers = np.arange(np.prod(shape)).reshape(shape)
    blocks = [numbers[tile] for tile in tiles(shape, limit)]
    assert [block.ndim for block in blocks] == [len(shape)] * len(blocks)
    assert all(0 < block.size <= limit for block in blocks)
    assert np.array_equal(
        np.concatenate([np.zeros(0, int), *(block.reshape(-1) for block in blocks)]), numbers.reshape(-1)
    )


def test_tiles_are_few_and_even():
    for size in (1, 99, 100, 101, 199, 201, 1001):
        sizes = [block.stop - block.start for (block,) in tiles((size,), 100)]
        assert len(sizes) == -(-size // 100)
        assert len(set(sizes)) == 1


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match="threads"):
        encode(np.ones(3, np.float32), E4M3FN, threads=0)


def test_tests_reach_several_blocks():
    assert sum(1 for shape in SHAPES if shape and np.prod(shape) > cast.BLOCK) >= 4
