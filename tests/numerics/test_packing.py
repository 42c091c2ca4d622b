"""Packed codes are those of onnx and of onnx_ir, byte for byte, whatever the shape."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8graph import formats
from fp8graph.formats.spec import Format
from fp8graph.numerics import packing
from fp8graph.numerics.cast import ml_dtype
from fp8graph.numerics.packing import pack, packed_size, unpack

FORMATS = [formats.get(name) for name in formats.names()]
every_format = pytest.mark.parametrize("format", FORMATS, ids=str)
SHAPES = [(), (0,), (1,), (2,), (3,), (4,), (5,), (3, 5), (7, 3, 2), (2, 0, 3), (64, 33), (packing._CHUNK + 3,)]


def codes_of(shape: tuple[int, ...], format: Format) -> np.ndarray:
    return np.asarray(np.random.default_rng(1).integers(0, 2**format.bits, shape), np.uint8)


def test_bytes_are_filled_from_their_lowest_bit_on():
    assert pack(np.array([1, 2, 3], np.uint8), formats.get("e2m1")).tolist() == [0x21, 0x03]
    bits = "".join(f"{code:06b}"[::-1] for code in (0b000001, 0b100010, 0b111100, 0b010101, 0b110011))
    wanted = [int(bits[i : i + 8][::-1], 2) for i in range(0, 30, 8)]
    assert (
        pack(np.array([0b000001, 0b100010, 0b111100, 0b010101, 0b110011], np.uint8), formats.get("e2m3")).tolist()
        == wanted
    )


@every_format
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packing_is_that_of_onnx_and_comes_back(format, shape):
    codes = codes_of(shape, format)
    packed = pack(codes, format)
    assert packed.dtype == np.uint8
    assert packed.shape == (packed_size(codes.size, format),) == (-(-codes.size * format.bits // 8),)
    proto = onnx.numpy_helper.from_array(codes.view(ml_dtype(format)))
    assert proto.data_type == format.onnx_type
    assert proto.raw_data == packed.tobytes()
    back = unpack(np.frombuffer(proto.raw_data, np.uint8), format, shape)
    assert back.shape == shape
    assert np.array_equal(back, codes)
    onnx_back = np.asarray(onnx.numpy_helper.to_array(proto)).view(np.uint8)
    assert np.array_equal(onnx_back & (2**format.bits - 1), back)


@every_format
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (64, 33)], ids=str)
def test_onnx_ir_holds_the_same_tensor_packed_unpacked_and_lazy(format, shape):
    codes, dtype = codes_of(shape, format), ir.DataType(format.onnx_type)
    unpacked = ir.Tensor(codes.view(ml_dtype(format)), dtype=dtype)
    tensors = [unpacked, ir.LazyTensor(lambda: unpacked, dtype=dtype, shape=ir.Shape(shape))]
    if format.bits < 8:
        tensors.append(ir.PackedTensor(pack(codes, format), dtype, shape=shape))
    for tensor in tensors:
        assert tensor.tobytes() == pack(codes, format).tobytes()
        assert tensor.nbytes == packed_size(codes.size, format)
        assert ir.to_proto(tensor).raw_data == tensor.tobytes()
        assert np.array_equal(tensor.numpy().view(np.uint8), codes)


@every_format
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_codes_come_back(format, data):
    shape = tuple(data.draw(st.lists(st.integers(0, 7), max_size=3)))
    size = int(np.prod(shape))
    codes = np.array(data.draw(st.lists(st.sampled_from(format.codes), min_size=size, max_size=size)), np.uint8)
    assert np.array_equal(unpack(pack(codes, format), format, shape), codes.reshape(shape))


@every_format
def test_strides_do_not_matter_and_arguments_are_left_alone(format):
    codes = codes_of((40, 30), format)
    before = codes.copy()
    for view in (codes.T, codes[::3, ::-2], codes[:, :1]):
        assert np.array_equal(unpack(pack(view, format), format, view.shape), view)
    assert np.array_equal(codes, before)
    packed = pack(codes, format)
    packed[0] ^= 1
    assert np.array_equal(codes, before)


def test_bits_that_fill_up_the_last_byte_are_written_as_zero_and_not_read():
    for name, shape, mask in (("int4", (1,), 0x0F), ("e2m3", (1,), 0x3F), ("e3m2", (2,), 0x0F), ("e3m2", (3,), 0x03)):
        format = formats.get(name)
        codes = np.full(shape, 2**format.bits - 1, np.uint8)
        packed = pack(codes, format)
        assert packed[-1] == mask
        packed[-1] = 0xFF
        assert np.array_equal(unpack(packed, format, shape), codes)


def test_what_does_not_fit_is_refused():
    e2m1, e3m2 = formats.get("e2m1"), formats.get("e3m2")
    with pytest.raises(ValueError, match="has no code 16"):
        pack(np.array([1, 16], np.uint8), e2m1)
    with pytest.raises(ValueError, match="must be uint8"):
        pack(np.array([1, 2]), e2m1)  # type: ignore[arg-type]
    for size in (0, 2, 4):
        with pytest.raises(ValueError, match="4 codes of e3m2 are 3 bytes"):
            unpack(np.zeros(size, np.uint8), e3m2, (2, 2))
    with pytest.raises(ValueError, match="must be uint8"):
        unpack(np.zeros(3, np.int8), e3m2, (4,))  # type: ignore[arg-type]
    five = Format("e2m2", "float", 5, 2, 2, 1, False, (), True, 0, 0)
    for work in (lambda: pack(np.zeros(3, np.uint8), five), lambda: unpack(np.zeros(3, np.uint8), five, (4,))):
        with pytest.raises(ValueError, match="5 bits"):
            work()
