"""`recipes validate` and `optimize` refuse the same recipes, with the same words."""

from __future__ import annotations

import dataclasses
import json

import onnx
import pytest

from fp8graph.base.errors import UsageError
from fp8graph.cli.main import main
from fp8graph.core import policy
from fp8graph.data import recipe
from fp8graph.data import recipe as recipes
from tests.small import model, refused

CHANGES = {  # text of the default recipe, what it becomes, code, what is said
    "unknown pass": ('"fold-constants"', '"fold-nothing"', "FG113", "no pass 'fold-nothing'"),
    "unknown rule": ('"keep-router"', '"keep-nothing"', "FG113", "no pass 'keep-nothing'"),
    "rule among passes": ('"fold-constants"', '"keep-router"', "FG140", "'keep-router' is no pass or repair"),
    "pass among rules": ('"keep-router"', '"insert-qdq"', "FG140", "'insert-qdq' is no rule"),
    "unknown format": ('format = "e4m3fn"', 'format = "e4m3"', "FG140", "'e4m3' is none of"),
    "activations per channel": ('per = "tensor"', 'per = "channel"', "FG140", "'channel' is none of tensor"),
    "an op without operands": ('"Conv", "Gemm"', '"Relu"', "FG140", "quantizes Relu"),
    "a pattern of a line": (
        "[high]",
        '[[quantize.for]]\nops = ["re:("]\n[high]',
        "FG109",
        "a pattern cannot be read",
    ),
    "a key of a line": ("[high]", '[[quantize.for]]\nops = ["y"]\nfor = 1\n[high]', "FG140", "'quantize.for.for'"),
    "a pattern": ("[high]", '[[keep]]\nops = ["re:("]\nwhy = "x"\n[high]', "FG109", "a pattern cannot be read"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_both_refuse_a_recipe_alike(case, tmp_path, monkeypatch, capsys):
    old, new, code, says = CHANGES[case]
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "show", "fp8-default"]) == 0
    text = capsys.readouterr().out
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1))
    onnx.save(model("(float[2,8] x, float[8,4] w) => (float[2,4] y) { y = MatMul(x, w) }"), "m.onnx")
    told = []
    for words in (
        ["recipes", "validate", "mine.toml"],
        ["optimize", "m.onnx", "-o", "o.onnx", "--recipe", "mine.toml"],
    ):
        assert main([*words, "--json"]) == 2
        told.append(json.loads(capsys.readouterr().out)["error"])
    assert told[0] == told[1] and told[0]["code"] == code and says in told[0]["what"]


def test_every_packaged_recipe_is_valid(capsys):
    for name in recipe.names():
        assert main(["recipes", "validate", name]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("passes", "code"),
    [([], "FG141"), (["fold-constants", "cast-high-precision"], "FG141"), (["insert-qdq", "insert-qdq"], "FG113")],
)
def test_a_recipe_whose_passes_cannot_carry_a_plan_out_is_refused_when_it_is_validated(passes, code):
    bare = dataclasses.replace(recipes.load("fp8-default"), passes=tuple(passes))
    with refused(UsageError, code):
        policy.whole(bare, policy.steps(bare)[1])
    policy.whole(dataclasses.replace(bare, passes=("insert-qdq",)), policy.steps(recipes.load("fp8-default"))[1])
