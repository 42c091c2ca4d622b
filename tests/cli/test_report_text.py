"""Summaries, word for word: a change here is a change that users see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fp8graph.base.files import WrittenFile
from fp8graph.base.findings import Finding
from fp8graph.data.comparison import Comparison, OutputDifference
from fp8graph.report import attesting, tables, text

from .conftest import attestation, kept, quantized, verdict

FILES = (WrittenFile("m.fp8.onnx", "00", 120_000), WrittenFile("m.fp8.onnx.plan.json", "11", 2_000))

OPTIMIZED = """\
m.onnx -> m.fp8.onnx  for tensorrt-rtx:sm89, recipe fp8-default

  op type  FP8 (e4m3fn)  kept
  Conv                1     1
  Gemm                1     0
  all                 2     1
  2 other ops of types that are not quantized: Relu 2

kept in high precision
  1  FG208  Conv: it reads the 3 channels of an image (conv1)

formats    activations e4m3fn, one scale per tensor (2)
           weights e4m3fn, one scale per channel (2)
scales     2 computed from weights, 2 observed on 128 samples
size       391 KiB -> 117 KiB  (30%)
time       2.0 s  (calibrate 1.9, save 0.1)

outputs, 128 samples (original against result)
  output     SQNR    cosine  max. difference
  logits  31.2 dB  0.999612           0.0812

warning[FG122]: 3 samples were left over
  do:    give a multiple of 16

wrote      m.fp8.onnx  (117 KiB)
           m.fp8.onnx.plan.json  (1.95 KiB)
next       python -m fp8graph build m.fp8.onnx -o m.engine"""


def test_optimize_is_summed_up_in_the_user_s_words(plan, comparison):
    said = text.optimized(
        plan,
        source="m.onnx",
        output="m.fp8.onnx",
        files=FILES,
        findings=(
            Finding("FG122", "warning", "", "3 samples were left over", "give a multiple of 16"),
            Finding("FG220", "info", "conv2", "a scale was folded"),
        ),
        comparison=comparison,
        seconds={"calibrate": 1.9, "save": 0.1, "plan": 0.001},
        source_bytes=400_000,
        samples=128,
        next_command="python -m fp8graph build m.fp8.onnx -o m.engine",
    )
    assert said == OPTIMIZED


@pytest.mark.parametrize(
    ("data", "told"), [("random", True), ("random, seed 0, 8 samples", True), ("random.npz", False)]
)
def test_random_data_and_missing_numbers_are_told(plan, data, told):
    open_plan = replace(plan, ops={"y": quantized("Gemm", "y", None)}, data=data)
    said = text.optimized(open_plan, source="m", output="o", files=())
    assert ("the data was RANDOM" in said) is told
    assert "1 still without a number: give data" in said


def test_reasons_come_by_frequency_and_long_ones_are_wrapped(plan):
    long = "the kernel pads every channel to four, which quadruples the activation and with it the time that it takes"
    ops = {f"dw{i}": kept("Conv", f"dw{i}", "FG304", long) for i in range(12)}
    ops["first"] = kept("Conv", "first", "FG208", "first")
    assert text.kept_table(replace(plan, ops=ops)) == [
        "",
        "kept in high precision",
        "  12  FG304  Conv: the kernel pads every channel to four, which quadruples the activation and with",
        "             it the time that it takes (dw0, dw1 and 10 more)",
        "   1  FG208  Conv: first (first)",
    ]


def test_reasons_of_one_code_that_differ_are_told_apart_but_for_names(plan):
    reasons = ["'a' holds a NaN", "'b' holds a NaN", "the op lies in a function"]
    ops = {f"n{i}": kept("MatMul", f"n{i}", "FG212", reason) for i, reason in enumerate(reasons)}
    ops["c"] = quantized("MatMul", "c")
    assert text.kept_table(replace(plan, ops=ops))[2:] == [
        "  2  FG212  MatMul: 'a' holds a NaN (n0, n1)",
        "  1  FG212  MatMul: the op lies in a function (n2)",
    ]


def test_ops_of_another_type_than_asked_for_are_told(plan):
    findings = [
        *(Finding("FG214", "info", f"n{i}", f"stays fp32: 't{i}' reaches 7e+04, fp16 ends at 65504") for i in range(5)),
        Finding("FG222", "info", "up", "stays fp32: a transposed convolution has no kernel in bf16"),
    ]
    said = text.optimized(plan, source="m", output="o", files=(), findings=findings)
    assert "types      stays fp32: 't0' reaches 7e+04, fp16 ends at 65504 (FG214, 5 ops: n0, n1, n2 and 2 more)" in said
    assert "           stays fp32: a transposed convolution has no kernel in bf16 (FG222, 1 op: up)" in said


def test_a_plan_in_which_nothing_is_kept_says_nothing_about_it(plan):
    assert text.kept_table(replace(plan, ops={"y": quantized("Gemm", "y")})) == []


ATTESTED = """\
m.engine  tensorrt-rtx 1.7.1 for sm89, 1 profile; model m.fp8.onnx

  op type  planned  fp8  fell-back  unknown
  Conv           2    1          1        0
  Gemm           1    0          0        1
  all            3    1          1        1

not as planned
  fell-back  Conv  conv3  (name /conv3), planned fp8
             the kernel reads f32
  unknown    Gemm  logits  (name /logits), planned fp8
             no reason is known

MACs       in FP8: 33.3 % of those that can be or were planned so, 33.3 % of all products
weights    in FP8: 33.3 % of those that can be or were planned so, 33.3 % of all products
1 of 3 planned FP8 ops run in FP8 on sm89"""


def test_an_attestation_lists_what_is_not_as_planned_and_closes_with_one_line():
    found = attestation(
        conv2=verdict("Conv", "conv2"),
        conv3=verdict("Conv", "conv3", "fell-back", "the kernel reads f32"),
        logits=verdict("Gemm", "logits", "unknown"),
    )
    assert attesting.attested(found, engine="m.engine", model="m.fp8.onnx") == ATTESTED


def test_an_attestation_that_holds_is_short():
    said = attesting.attested(attestation(a=verdict("Conv", "a")), engine="e", model="m")
    assert said.endswith("1 of 1 planned FP8 ops run in FP8 on sm89")
    assert "not as planned" not in said


def test_many_broken_ops_are_cut_with_a_pointer():
    found = attestation(**{f"c{i}": verdict("Conv", f"c{i}", "absent") for i in range(30)})
    assert "  and 10 ops more; --json lists them all" in attesting.attested(found, engine="e", model="m")


def test_colour_changes_nothing_but_colour(plan, comparison):
    def paint(style: str, words: str) -> str:
        return f"<{style}>{words}</{style}>"

    found = attestation(a=verdict("Conv", "a", "absent"))
    plain = attesting.attested(found, engine="e", model="m")
    painted = attesting.attested(found, engine="e", model="m", paint=paint)
    for style in ("bold", "dim", "good", "warn", "bad"):
        painted = painted.replace(f"<{style}>", "").replace(f"</{style}>", "")
    assert painted == plain


def test_of_many_outputs_the_worst_are_shown():
    outputs = {f"y{i:02}": OutputDifference(float(i), 1.0, 0.0) for i in range(20)}
    outputs["nan"] = OutputDifference(None, None, None, new_nonfinite=7)
    lines = text.outputs_table(Comparison(outputs, 1))
    assert lines[1].split() == ["nan", "-", "-", "-", "7", "new", "NaN", "or", "Inf"]
    assert lines[2].split()[:2] == ["y00", "0.0"]
    assert lines[-1] == "  and 9 outputs that lie closer"


def test_equal_outputs_are_called_equal():
    (_, line) = text.outputs_table(Comparison({"y": OutputDifference(None, None, 0.0, equal=True)}, 1))
    assert line.split() == ["y", "equal", "-", "0"]


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1536, "1.5 KiB"), (5 << 20, "5 MiB"), (3 << 30, "3 GiB")],
)
def test_sizes_are_short(number, said):
    assert tables.size(number) == said


@pytest.mark.parametrize(("part", "said"), [(1.0, "100.0 %"), (0.99999, "99.9 %"), (0.333, "33.3 %"), (0.0, "0.0 %")])
def test_only_all_of_it_is_called_100_per_cent(part, said):
    assert tables.share(part) == said


def test_a_table_without_rows_is_its_header():
    assert tables.table(["a", "b"], []) == ["  a  b"]
    assert tables.table([], []) == []
