"""The engine file: programs that are read, files that are refused, and files of which nothing is said."""

import struct
import time
from pathlib import Path

import engine_bytes as bytes_
import pytest

from fp8graph.base.errors import InputError
from fp8graph.engines.program import EngineFile, read_engine


@pytest.fixture
def read(tmp_path: Path):
    """Reads an engine from its bytes."""

    def do(data: bytes) -> EngineFile:
        (tmp_path / "m.engine").write_bytes(data)
        return read_engine(tmp_path / "m.engine")

    return do


def summary(file: EngineFile) -> list[tuple[object, ...]]:
    assert file.unknown == ""
    return [(op.profile, op.kind, op.names, op.operands, op.stored) for op in file.ops if op.kind != "other"]


def test_a_product_with_its_names_and_types(read):
    file = read(bytes_.engine(bytes_.program(bytes_.FP8)))
    assert summary(file) == [(0, "product", ("mm", "x_DQ", "w_DQ"), ("fp8", "fp8"), ("fp8",))]
    assert (file.builder, file.chips, file.profiles) == ("tensorrt-rtx 1.7.1.116", ("sm89",), 1)
    assert [op.names for op in file.ops] == [("x_Q",), ("mm", "x_DQ", "w_DQ")]


def test_a_weight_is_followed_through_kernels_and_views(read):
    assert summary(read(bytes_.engine(bytes_.program(bytes_.HIGH)))) == [
        (0, "product", ("mm",), ("fp16", "fp16"), ("fp8",))
    ]


def test_a_fusion_stays_one_whatever_its_body_says(read):
    file = read(bytes_.engine(bytes_.program(bytes_.FUSION), bytes_.program(bytes_.BODY, 4, "*")))
    assert summary(file) == [(0, "fusion", ("mm",), ("fp8", "fp8", "fp8"), ("fp8",))]
    assert file.chips == ("sm89",)


def test_a_fused_attention_without_its_mask(read):
    file = read(bytes_.engine(bytes_.program(bytes_.ATTENTION)))
    assert summary(file) == [(0, "attention", ("mixed", "softmax", "scores"), ("fp8", "fp8", "fp8"), ())]


def test_each_profile_has_its_programs(read):
    second = bytes_.program(bytes_.HIGH, inputs='"x [profile 1].1"')
    file = read(bytes_.engine(bytes_.program(bytes_.FP8), second))
    assert [(row[0], row[3]) for row in summary(file)] == [(0, ("fp8", "fp8")), (1, ("fp16", "fp16"))]
    assert file.profiles == 2


def test_chips_are_those_that_every_program_serves(read):
    both, one = bytes_.program(bytes_.FP8, chips="sm89 sm120"), bytes_.program(bytes_.FP8, chips="sm120")
    assert read(bytes_.engine(both)).chips == ("sm89", "sm120")
    assert read(bytes_.engine(both, one)).chips == ("sm120",)


@pytest.mark.parametrize("name", ["a b", 'a"b', "a\\b", "a]b", "a{b}", "a}b", "a=b", "é中", "a\nb", "[ONNX Layer: B]"])
def test_names_come_back_as_they_are(read, name: str):
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    file = read(bytes_.engine(bytes_.program(bytes_.FP8.replace("ONNX Layer: mm]", f"ONNX Layer: {quoted}]"))))
    assert summary(file)[0][2] == (name, "x_DQ", "w_DQ")


def test_a_program_among_the_weights_is_not_heard(read):
    forged = bytes_.program(bytes_.FP8).encode()
    weights = b"NLYM" + struct.pack("<IQ", 0, len(forged)) + forged
    file = read(bytes_.engine(bytes_.program(bytes_.HIGH), weights=weights))
    assert [row[3] for row in summary(file)] == [("fp16", "fp16")]


@pytest.mark.parametrize(
    "data",
    [b"", b"vtrt", b"onnx" * 100, b"\0" * 4096, bytes_.engine(bytes_.program(bytes_.FP8))[:-1]],
    ids=["empty", "magic alone", "foreign", "zeros", "one byte short"],
)
def test_what_is_no_engine_or_not_whole_is_refused(read, data: bytes):
    with pytest.raises(InputError) as caught:
        read(data)
    assert (caught.value.status, caught.value.code) == (3, "FG508")


def huge(length: int) -> bytes:
    return b"NLYM" + struct.pack("<IQ", 0, length) + b"header { version = 5 }"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bytes_.engine(bytes_.program(bytes_.FP8), version=(1, 8, 0, 1)), "engines of tensorrt-rtx 1.8.0.1"),
        (b"ftrt" + bytes(4096), "only that of TensorRT-RTX"),
        (bytes_.engine(), "no program"),
        (bytes_.engine(bytes_.program(bytes_.FP8, 6)), "version 6"),
        (bytes_.engine(bytes_.program("")), "parts missing"),
        (bytes_.engine(bytes_.program(bytes_.FP8)[:-4]), "no end"),
        (bytes_.engine(bytes_.program(bytes_.FP8 + ' "')), "cannot be read"),
        (bytes_.engine(bytes_.program(bytes_.FP8 + "main { a={ b= } }")), "no value"),
        (bytes_.engine(bytes_.program(bytes_.FP8 + "x {" + "a={" * 100 + "}" * 101)), "too deep"),
        (bytes_.engine(huge(1 << 60)), "longer than the file"),
        (bytes_.engine(bytes_.program(bytes_.FP8, inputs='"x [profile 7]"')), "more profiles"),
        (bytes_.engine(bytes_.program(bytes_.FP8)).replace(b"NGNE", b"XXXX"), "no part ENGN"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_of_another_form_nothing_is_said(read, data: bytes, said: str):
    file = read(data)
    assert file.ops == ()
    assert said in file.unknown


def test_random_damage_is_never_a_crash(read):
    import random

    whole = bytes_.engine(bytes_.program(bytes_.FP8), bytes_.program(bytes_.FUSION), bytes_.program(bytes_.BODY, 4))
    dice = random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(dice.randrange(1, 6)):
            data[dice.randrange(64, len(data))] = dice.randrange(256)
        file = read(bytes(data))
        assert file.ops or file.unknown


@pytest.mark.parametrize("filler", [b"NLYM", b"NLYM" + b"\0" * 12 + b"header {", b'"', b"\0"])
def test_reading_takes_time_in_proportion_to_the_file(read, filler: bytes):
    data = bytes_.engine(filler * (20_000_000 // len(filler)))
    start = time.perf_counter()
    read(data)
    assert time.perf_counter() - start < 5
