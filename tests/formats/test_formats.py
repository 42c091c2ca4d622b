"""Formats as tables: every code, every limit. A new format is one more row of LIMITS."""

from __future__ import annotations

import dataclasses
import pkgutil
import subprocess
import sys
from fractions import Fraction

import ml_dtypes
import numpy as np
import onnx
import pytest

from fp8graph import formats
from fp8graph.formats.spec import Blocks2D, Granularity, PerAxis, PerBlock, PerTensor, PerToken, ScaleFormat


def _2(power: int) -> Fraction:
    return Fraction(2) ** power


E5M2_NANS = {0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF}


# name: max, emax, smallest normal, smallest subnormal, finite codes, NaN codes, infinite codes, what a NaN is written
# as, the name in ONNX, the name in ml_dtypes
LIMITS = {
    "e4m3fn": (448, 8, _2(-6), _2(-9), 254, {0x7F, 0xFF}, set(), 0x7F, "FLOAT8E4M3FN", "float8_e4m3fn"),
    "e4m3fnuz": (240, 7, _2(-7), _2(-10), 255, {0x80}, set(), 0x80, "FLOAT8E4M3FNUZ", "float8_e4m3fnuz"),
    "e5m2": (57344, 15, _2(-14), _2(-16), 248, E5M2_NANS, {0x7C, 0xFC}, 0x7F, "FLOAT8E5M2", "float8_e5m2"),
    "e5m2fnuz": (57344, 15, _2(-15), _2(-17), 255, {0x80}, set(), 0x80, "FLOAT8E5M2FNUZ", "float8_e5m2fnuz"),
    "e8m0": (_2(127), 127, _2(-127), _2(-127), 255, {0xFF}, set(), 0xFF, "FLOAT8E8M0", "float8_e8m0fnu"),
    "e2m1": (6, 2, 1, _2(-1), 16, set(), set(), None, "FLOAT4E2M1", "float4_e2m1fn"),
    "e2m3": (Fraction(15, 2), 2, 1, _2(-3), 64, set(), set(), None, "FLOAT6E2M3", "float6_e2m3fn"),
    "e3m2": (28, 4, _2(-2), _2(-4), 64, set(), set(), None, "FLOAT6E3M2", "float6_e3m2fn"),
    "int8": (127, 6, 1, 1, 256, set(), set(), None, "INT8", "int8"),
    "int4": (7, 2, 1, 1, 16, set(), set(), None, "INT4", "int4"),
}
FORMATS = [formats.get(name) for name in formats.names()]
FLOATS = [format for format in FORMATS if format.kind == "float"]


def test_every_format_has_a_row_in_the_table_of_limits():
    assert set(formats.names()) == set(LIMITS)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_limits_are_those_of_the_table(format):
    largest, emax, normal, subnormal, finite, nans, infinities, nan, _, _ = LIMITS[format.name]
    assert (format.max, format.smallest_normal, format.smallest_subnormal) == (largest, normal, subnormal)
    assert format.emax == emax
    assert _2(emax) <= format.max < _2(emax + 1)
    assert sum(format.value(code) is not None for code in format.codes) == finite
    assert {code for code in format.codes if format.is_nan(code)} == nans
    assert {code for code in format.codes if format.is_infinite(code)} == infinities
    assert format.nan == nan


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_every_code_is_the_exact_rational_that_ml_dtypes_decodes(format):
    name = LIMITS[format.name][-1]
    codes = np.arange(2**format.bits, dtype=np.uint8)
    numbers = codes.view(getattr(ml_dtypes, name, np.int8)).astype(np.float64)
    assert len(numbers) == len(format.codes)
    for code, number in enumerate(numbers):
        assert format.is_nan(code) == np.isnan(number), hex(code)
        assert format.is_infinite(code) == np.isinf(number), hex(code)
        expected = Fraction(float(number)) if np.isfinite(number) else None
        assert format.value(code) == expected, hex(code)


@pytest.mark.parametrize("format", FLOATS, ids=str)
def test_finite_values_fall_into_normal_and_subnormal_steps(format):
    """From the definition, not from another library: 2^(e-bias) (1 + m / 2^M), or 2^(1-bias) m / 2^M where e = 0."""
    scale, signs = 2**format.mantissa, 2 ** (format.bits - 1)
    for code in format.codes:
        if (value := format.value(code)) is None:
            continue
        exponent, mantissa = (code % signs) >> format.mantissa, code % scale
        magnitude = (
            Fraction(scale + mantissa, scale) * _2(exponent - format.bias)
            if exponent
            else Fraction(mantissa, scale) * _2(1 - format.bias)
        )
        assert value == (-magnitude if code >= signs else magnitude)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_onnx_knows_the_type_by_that_number(format):
    assert onnx.TensorProto.DataType.Name(format.onnx_type) == LIMITS[format.name][-2]


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_quantize_linear_or_cast_produces_the_format_from_min_opset_on(format):
    def allowed(opset: int) -> bool:
        try:
            schema = onnx.defs.get_schema("Cast" if format.kind == "exponent" else "QuantizeLinear", opset)
        except onnx.defs.SchemaError:
            return False  # QuantizeLinear begins with opset 10
        wanted = f"tensor({onnx.TensorProto.DataType.Name(format.onnx_type).lower()})"
        return any(wanted in constraint.allowed_type_strs for constraint in schema.type_constraints)

    assert allowed(format.min_opset)
    assert not allowed(format.min_opset - 1)


# From the list of versions in onnx.proto: what each added.
FIRST_IR = {1: "int8", 9: "e4m3fn e4m3fnuz e5m2 e5m2fnuz", 10: "int4", 11: "e2m1", 12: "e8m0", 14: "e2m3 e3m2"}


def test_each_format_knows_the_first_ir_version_that_has_its_type():
    listed = {name: version for version, row in FIRST_IR.items() for name in row.split()}
    assert {format.name: format.min_ir for format in FORMATS} == listed


def test_integer_and_exponent_formats_read_as_such():
    int8, int4, e8m0 = (formats.get(name) for name in ("int8", "int4", "e8m0"))
    assert [int8.value(code) for code in (0, 1, 127, 128, 255)] == [0, 1, 127, -128, -1]
    assert [int4.value(code) for code in (0, 7, 8, 15)] == [0, 7, -8, -1]
    assert [e8m0.value(code) for code in (0, 127, 254, 255)] == [_2(-127), 1, _2(127), None]


def test_a_code_outside_the_format_is_refused():
    for format in FORMATS:
        for code in (-1, 2**format.bits):
            for ask in (format.value, format.is_nan, format.is_infinite):
                with pytest.raises(ValueError):
                    ask(code)


def test_fields_that_do_not_add_up_are_refused():
    for wrong in ({"exponent": 5}, {"nans": (256,)}, {"nans": (0xFF, 0x7F)}):
        with pytest.raises(ValueError):
            dataclasses.replace(formats.get("e4m3fn"), **wrong)


def test_formats_are_found_by_file_and_loaded_at_the_first_call():
    files = {module.name for module in pkgutil.iter_modules(formats.__path__)} - {"spec"}
    assert list(formats.names()) == sorted(files)
    assert all(formats.get(name).name == name for name in files)
    assert formats.get("e5m2") is formats.get("e5m2")
    program = (
        "import sys; from fp8graph import formats; formats.names();"
        "print('fp8graph.formats.e5m2' in sys.modules, 'numpy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", ["e4m3", "E4M3FN", "spec", "", "../e5m2", "e5m2.FORMAT"])
def test_an_unknown_name_is_a_key_error(name):
    with pytest.raises(KeyError):
        formats.get(name)


@pytest.mark.parametrize(
    ("granularity", "shape", "scale", "broadcast"),
    [
        (PerTensor(), (64, 3, 7, 7), (), ()),
        (PerTensor(), (), (), ()),
        (PerAxis(0), (64, 3, 7, 7), (64,), (64, 1, 1, 1)),
        (PerAxis(1), (64, 3, 7, 7), (3,), (1, 3, 1, 1)),
        (PerAxis(-1), (768, 3072), (3072,), (1, 3072)),
        (PerAxis(-2), (768, 3072), (768,), (768, 1)),
        (PerAxis(0), (5,), (5,), (5,)),
        (PerAxis(1), (4, 0, 2), (0,), (1, 0, 1)),
    ],
    ids=str,
)
def test_scale_shapes(granularity, shape, scale, broadcast):
    assert granularity.scale_shape(shape) == scale
    assert granularity.broadcast_shape(shape) == broadcast
    assert np.broadcast_shapes(granularity.broadcast_shape(shape), shape) == shape


BLOCKS = [
    # granularity, tensor, size of blocks, scale
    (PerToken(3), (2, 77, 768), (1, 1, 768), (2, 77, 1)),
    (PerToken(2), (77, 768), (1, 768), (77,)),
    (PerToken(1), (768,), (768,), ()),
    (PerBlock(0, 32, 2), (784, 10), (32, 1), (25, 10)),
    (PerBlock(-1, 16, 2), (64, 40), (1, 16), (64, 3)),
    (PerBlock(0, 32, 1), (33,), (32,), (2,)),
    (PerBlock(1, 32, 3), (8, 31, 5), (1, 32, 1), (8, 1, 5)),
    (PerBlock(0, 1, 1), (5,), (1,), (5,)),
    (Blocks2D(128, 128), (576, 7168), (128, 128), (5, 56)),
    (Blocks2D(128, 128), (1, 129), (128, 128), (1, 2)),
    (Blocks2D(64, 128, 3), (4, 100, 300), (1, 64, 128), (4, 2, 3)),
    (Granularity(((0, 32),)), (64, 64), (32, 64), (2, 1)),
    (Granularity(((1, 2),)), (3, 0), (3, 2), (1, 0)),
]


@pytest.mark.parametrize(("granularity", "shape", "sizes", "scale"), BLOCKS, ids=str)
def test_scale_shapes_of_blocks_are_rounded_up(granularity, shape, sizes, scale):
    assert granularity.scale_shape(shape) == scale
    assert granularity.sizes(shape) == sizes
    counts = granularity.counts(shape)
    assert len(counts) == len(shape)
    assert np.prod(counts) == np.prod(scale)


def test_only_scales_per_tensor_and_per_axis_broadcast():
    for granularity in (Granularity(((0, 32),)), Granularity(((0, 1), (1, 1))), Blocks2D(8, 8)):
        with pytest.raises(ValueError, match="does not broadcast"):
            granularity.broadcast_shape((64, 64))


def test_axes_that_are_not_there_or_meet_are_refused():
    for granularity in (PerAxis(2), PerAxis(-3), Blocks2D(8, 8, 3), Granularity(((-1, 1), (1, 8)))):
        for ask in (granularity.scale_shape, granularity.sizes, granularity.counts, granularity.broadcast_shape):
            with pytest.raises(ValueError, match="granularity"):
                ask((64, 64))
    for axis in (2, -3):
        with pytest.raises(ValueError, match="not an axis"):
            PerBlock(axis, 32, 2)


@pytest.mark.parametrize("blocks", [((1, 1), (0, 1)), ((0, 1), (0, 2)), ((0, 0),), ((0, -1),)], ids=str)
def test_blocks_that_make_no_sense_are_refused(blocks):
    with pytest.raises(ValueError):
        Granularity(blocks)


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerAxis(0), PerAxis(-1), PerToken(3), PerBlock(0, 32, 2), Blocks2D(128, 128)], ids=str
)
def test_granularity_survives_json(granularity):
    assert Granularity.from_json(granularity.to_json()) == granularity


def test_json_of_granularity_is_plain_data():
    assert PerTensor().to_json() == {"blocks": []}
    assert PerAxis(-1).to_json() == {"blocks": [[-1, 1]]}


@pytest.mark.parametrize(
    "data",
    [
        *(None, [], {}, {"blocks": None}, {"blocks": [], "axis": 0}),
        *({"blocks": [pair]} for pair in (0, [0], [0, 1, 2], [True, 1], [0, 1.0], ["0", 1], [0, 0])),
    ],
    ids=str,
)
def test_json_of_another_form_is_refused(data):
    with pytest.raises(ValueError):
        Granularity.from_json(data)


SCALES = [ScaleFormat(), ScaleFormat("e8m0", "ocp"), ScaleFormat("e8m0"), ScaleFormat("e4m3fn", outer=True)]


@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_formats_of_scales_survive_json_as_plain_data(scales):
    data = scales.to_json()
    assert set(map(type, data.values())) <= {str, bool, type(None)}
    assert ScaleFormat.from_json(data) == scales


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "e4m3"},
        {"format": "spec"},
        {"rule": "floor", "format": "e8m0"},
        {"rule": "ocp"},
        {"rule": "ocp", "format": "e4m3fn"},
        {"outer": True},
        {"outer": True, "format": "e8m0"},
    ],
    ids=str,
)
def test_formats_of_scales_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="scale: "):
        ScaleFormat(**wrong)
    with pytest.raises(ValueError, match="scale: "):
        ScaleFormat.from_json(ScaleFormat().to_json() | wrong)


@pytest.mark.parametrize(
    "data", [None, {}, {"format": None, "rule": "max"}, {"format": 1, "rule": "max", "outer": False},
             {"format": None, "rule": "max", "outer": 0}, {"format": None, "rule": None, "outer": False}], ids=str
)  # fmt: skip
def test_json_of_scales_of_another_form_is_refused(data):
    with pytest.raises(ValueError, match="scale: "):
        ScaleFormat.from_json(data)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("e4m3fn", "fp8"),
        ("e5m2", "fp8"),
        ("e4m3fnuz", "fp8"),
        ("e2m1", "fp4"),
        ("e3m2", "fp6"),
        ("int8", "int8"),
        ("uint8", "int8"),
        ("int16", "int16"),
        ("e8m0", "e8m0"),
        ("", ""),
    ],
)
def test_the_family_of_a_format_counts_its_bits(name: str, word: str):
    assert formats.family(name) == word
