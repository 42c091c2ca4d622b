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
from fp8graph.formats.spec import Format, Granularity, PerAxis, PerTensor

# name: max, smallest normal, smallest subnormal, finite codes, NaN codes, infinite codes, what a NaN is written as
LIMITS = {
    "e4m3fn": (448, Fraction(1, 2**6), Fraction(1, 2**9), 254, {0x7F, 0xFF}, set(), 0x7F),
    "e5m2": (
        57344,
        Fraction(1, 2**14),
        Fraction(1, 2**16),
        248,
        {0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF},
        {0x7C, 0xFC},
        0x7F,
    ),
}
FORMATS = [formats.get(name) for name in formats.names()]

INT8 = Format("int8", "int", 8, 0, 7, 0, False, (), False, onnx.TensorProto.INT8, 10)
E8M0 = Format("e8m0", "exponent", 8, 8, 0, 127, False, (0xFF,), False, onnx.TensorProto.FLOAT8E8M0, 24)
E4M3FNUZ = Format("e4m3fnuz", "float", 8, 4, 3, 8, False, (0x80,), False, onnx.TensorProto.FLOAT8E4M3FNUZ, 19)


def test_every_format_has_a_row_in_the_table_of_limits():
    assert set(formats.names()) == set(LIMITS)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_limits_are_those_of_the_table(format):
    largest, normal, subnormal, finite, nans, infinities, nan = LIMITS[format.name]
    assert (format.max, format.smallest_normal, format.smallest_subnormal) == (largest, normal, subnormal)
    assert sum(format.value(code) is not None for code in format.codes) == finite
    assert {code for code in format.codes if format.is_nan(code)} == nans
    assert {code for code in format.codes if format.is_infinite(code)} == infinities
    assert format.nan == nan


@pytest.mark.parametrize("format", [*FORMATS, E4M3FNUZ], ids=str)
def test_every_code_is_the_exact_rational_that_ml_dtypes_decodes(format):
    dtype = getattr(ml_dtypes, f"float8_{format.name}")
    for code, number in enumerate(np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64)):
        assert format.is_nan(code) == np.isnan(number), hex(code)
        assert format.is_infinite(code) == np.isinf(number), hex(code)
        expected = Fraction(float(number)) if np.isfinite(number) else None
        assert format.value(code) == expected, hex(code)


@pytest.mark.parametrize("format", [*FORMATS, E4M3FNUZ], ids=str)
def test_finite_values_fall_into_normal_and_subnormal_steps(format):
    """From the definition, not from another library: 2^(e-bias) (1 + m / 2^M), or 2^(1-bias) m / 2^M where e = 0."""
    scale = 2**format.mantissa
    for code in format.codes:
        if (value := format.value(code)) is None:
            continue
        sign, exponent, mantissa = code >> 7, (code & 0x7F) >> format.mantissa, code % scale
        magnitude = (
            Fraction(scale + mantissa, scale) * Fraction(2) ** (exponent - format.bias)
            if exponent
            else Fraction(mantissa, scale) * Fraction(2) ** (1 - format.bias)
        )
        assert value == (-magnitude if sign else magnitude)


@pytest.mark.parametrize("format", [*FORMATS, E8M0, E4M3FNUZ], ids=str)
def test_onnx_knows_the_type_by_that_number(format):
    assert onnx.TensorProto.DataType.Name(format.onnx_type) == f"FLOAT8{format.name.upper()}"


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_quantize_linear_produces_the_format_from_min_opset_on(format):
    def allowed(opset: int) -> bool:
        schema = onnx.defs.get_schema("QuantizeLinear", opset)
        wanted = f"tensor({onnx.TensorProto.DataType.Name(format.onnx_type).lower()})"
        return any(wanted in constraint.allowed_type_strs for constraint in schema.type_constraints)

    assert allowed(format.min_opset)
    assert not allowed(format.min_opset - 1)


def test_integer_and_exponent_formats_read_as_such():
    assert [INT8.value(code) for code in (0, 1, 127, 128, 255)] == [0, 1, 127, -128, -1]
    assert (INT8.max, INT8.smallest_normal, INT8.smallest_subnormal, INT8.nan) == (127, 1, 1, None)
    assert [E8M0.value(code) for code in (0, 127, 254, 255)] == [Fraction(1, 2**127), 1, 2**127, None]
    assert (E8M0.max, E8M0.smallest_normal, E8M0.nan) == (2**127, Fraction(1, 2**127), 0xFF)
    assert E4M3FNUZ.nan == 0x80


def test_a_code_outside_the_format_is_refused():
    for code in (-1, 256):
        for ask in (FORMATS[0].value, FORMATS[0].is_nan, FORMATS[1].is_infinite):
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


def test_scale_shapes_that_are_not_known_are_refused():
    for granularity in (Granularity(((0, 32),)), Granularity(((0, 1), (1, 1))), PerAxis(2), PerAxis(-3)):
        with pytest.raises(ValueError):
            granularity.scale_shape((64, 64))
        with pytest.raises(ValueError):
            granularity.broadcast_shape((64, 64))


@pytest.mark.parametrize("blocks", [((1, 1), (0, 1)), ((0, 1), (0, 2)), ((0, 0),), ((0, -1),)], ids=str)
def test_blocks_that_make_no_sense_are_refused(blocks):
    with pytest.raises(ValueError):
        Granularity(blocks)


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerAxis(0), PerAxis(-1), Granularity(((0, 128), (1, 128)))], ids=str
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
