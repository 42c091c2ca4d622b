"""What `diff` prints, word for word: a change here is a change that users see."""

from __future__ import annotations

from fp8graph.data.contents import Contents, OpContent, ScaleContent
from fp8graph.data.difference import differ
from fp8graph.report.differences import differing


def conv(key: str, precision: str, detail: str, why: str, weight_bytes: int) -> OpContent:
    return OpContent(key, f"/{key}", "Conv", precision, detail, why, "", weight_bytes)


def relu(key: str, precision: str) -> OpContent:
    return OpContent(key, f"/{key}", "Relu", precision)


def scale(tensor: str, least: float, largest: float, per: str = "per tensor") -> ScaleContent:
    return ScaleContent(tensor, "c1", "e4m3fn", per, "observed amax", 1, least, largest)


A = Contents(
    "model",
    {"recipe": "fp8-default", "file": "a.onnx"},
    {"shapes": {"x": {"min": [1], "max": [8]}}},
    (
        relu("r1", "fp32"),
        relu("r2", "fp32"),
        conv("c1", "fp8", "e4m3fn x e4m3fn in fp16", "FG201 both operands in FP8", 64),
        conv("c2", "fp8", "", "", 64),
        OpContent("old", "", "Identity", "fp32"),
    ),
    (scale("t1", 0.5, 0.5), scale("t2", 1.0, 1.0), scale("t3", 0.25, 0.5), scale("t4", 1.0, 1.0)),
    {"fp8": 2048, "fp32": 100},
)
B = Contents(
    "model",
    {"recipe": "mine", "file": "b.onnx"},
    {"shapes": {"x": {"min": [1], "max": [16]}}},
    (
        relu("r1", "fp16"),
        relu("r2", "fp16"),
        conv("c1", "fp16", "", "FG210 the user asked for it", 128),
        conv("c2", "fp8", "", "", 64),
    ),
    (scale("t1", 1.0, 1.0), scale("t2", 1.0000001, 1.0000001), scale("t3", 0.25, 0.5, "per index of axis 0")),
    {"fp8": 1024, "fp16": 512, "fp32": 100},
)

SAID = """\
a  a.onnx
b  b.onnx

          a                   b
  recipe  fp8-default         mine
  shapes  x min [1], max [8]  x min [1], max [16]

ops that compute otherwise
    1  Conv: fp8 (e4m3fn x e4m3fn in fp16) -> fp16, weights 64 B -> 128 B
       FG210 the user asked for it
       c1
    2  Relu: fp32 -> fp16
       r1, r2

ops only in a
    1  Identity: fp32
       old

scales that moved, the farthest first
      a                       b                                b / a
  t3  0.25 .. 0.5 per tensor  0.25 .. 0.5 per index of axis 0      1
  t1  0.5                     1                                    2
  1 tensor by less than one part in 100,000
  1 tensor only in a

bytes of weights by type
            a      b
  fp16    0 B  512 B
  fp8   2 KiB  1 KiB  50%

3 ops changed (fp32 -> fp16 2, fp8 -> fp16 1), 1 op only in a, 3 tensors with other scales, 1 the same"""


def test_what_changed_is_told_from_the_weightiest_to_the_least():
    assert differing(differ(A, B), a="a.onnx", b="b.onnx") == SAID


def test_two_that_hold_the_same_are_one_line():
    assert differing(differ(A, A), a="a.onnx", b="a.onnx") == "a  a.onnx\nb  a.onnx\n\nthe same: 5 ops"
