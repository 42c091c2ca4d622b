"""What each command calls, prints, puts into its document and ends with."""

from __future__ import annotations

import json

import pytest

from fp8graph.base.errors import UsageError
from fp8graph.base.findings import Finding
from fp8graph.data import recipe as recipes
from fp8graph.data import target as targets
from fp8graph.data.difference import Difference
from fp8graph.flow.checking import Checked

from .conftest import attestation, verdict

OPTIMIZE = ("optimize", "m.onnx", "-o", "o.onnx")


def test_optimize_puts_what_acceptance_reads_into_its_document(cli, flow):
    done = cli(*OPTIMIZE, "--data", "c.npz", "--json")
    assert done.status == 0
    assert done.err == ""
    result = done.json["result"]
    assert (result["planned"], result["kept"], result["plan"]) == (2, 3, "o.onnx.plan.json")
    assert result["planned_by"] == {"fp8": 2, "int8": 0, "fp4": 0, "storage": 0}
    assert {name: result["comparison"]["logits"][name] for name in ("sqnr_db", "cosine", "max_abs")} == {
        "sqnr_db": 31.24,
        "cosine": 0.999612,
        "max_abs": 0.0812,
    }
    assert done.json["files"][0] == {"path": "o.onnx", "sha256": "00", "bytes": 400_000}
    assert done.json["findings"][0]["code"] == "FG121"


def test_optimize_without_a_comparison_says_null(cli, flow):
    usual = flow.answers["optimize"]

    def answer(asked):
        done = usual(asked)
        done.comparison = None
        return done

    flow.answers["optimize"] = answer
    assert cli(*OPTIMIZE, "--no-compare", "--json").json["result"]["comparison"] is None
    assert flow.calls["optimize"]["compare"] is False


def test_optimize_hints_at_the_next_command(cli, flow):
    assert "build o.onnx -o o.engine --target tensorrt-rtx:sm89 --attest" in cli(*OPTIMIZE).out
    assert "optimize m.onnx -o o.onnx --plan o.onnx.plan.json" in cli(*OPTIMIZE, "--plan-only").out


def test_calibrate_says_what_it_observed(cli, flow):
    done = cli("calibrate", "m.onnx", "-o", "r.json", "--data", "c.npz")
    assert done.status == 0
    assert "observed 2 tensors of m.onnx on 128 samples" in done.out
    assert "optimize m.onnx -o OUT --ranges r.json" in done.out
    done = cli("calibrate", "m.onnx", "-o", "r.json", "--data", "c.npz", "--json")
    assert done.json["result"] == {"ranges": "r.json", "tensors": 2, "samples": 128}


def test_build_names_engine_chips_and_warnings(cli, flow):
    done = cli("build", "o.onnx", "-o", "o.engine")
    assert done.status == 0
    assert "o.engine  for sm89 by tensorrt-rtx 1.7.1, from o.onnx" in done.out
    assert "warning: the timing cache is left out" in done.out
    assert "attest o.engine --model o.onnx" in done.out
    result = cli("build", "o.onnx", "-o", "o.engine", "--json").json["result"]
    assert (result["engine"], result["chips"]) == ("o.engine", ["sm89"])


def test_build_attests_at_once_where_asked(cli, flow):
    done = cli("build", "o.onnx", "-o", "o.engine", "--attest")
    assert done.status == 0
    assert "1 of 1 planned FP8 ops run in FP8 on sm89" in done.out
    usual = flow.answers["build"]

    def broken(asked):
        made = usual(asked)
        made.attestation = attestation(conv2=verdict("Conv", "conv2", "fell-back"))
        return made

    flow.answers["build"] = broken
    assert cli("build", "o.onnx", "-o", "o.engine", "--attest").status == 1


@pytest.mark.parametrize(
    ("verdicts", "words", "status"),
    [
        (["fp8", "fp8"], [], 0),
        (["fp8", "fell-back"], [], 1),
        (["fp8", "unknown"], [], 1),
        (["fp8", "absent"], ["--require", "fp8>=0.5"], 0),
        (["fp8", "absent"], ["--require", "fp8>=0.51"], 1),
        (["fp8", "absent"], ["--require", "fp8>=50%", "macs_fp8>=0.9"], 1),
        (["fp8", "fp8"], ["--require", "fp8>=1", "weight_bytes_fp8>=1"], 0),
        (["fp8"], ["--require", "storage>=0.1"], 1),
        ([], [], 0),
        ([], ["--require", "fp8>=0.1"], 1),
    ],
)
def test_attest_is_0_only_where_the_engine_does_what_was_promised(cli, flow, verdicts, words, status):
    ops = {f"op{i}": verdict("Conv", f"op{i}", what) for i, what in enumerate(verdicts)}
    flow.answers["attest"] = attestation(**ops)
    done = cli("attest", "e.engine", "--model", "m.onnx", *words)
    assert done.status == status
    assert cli("attest", "e.engine", "--model", "m.onnx", "--json", *words).status == status


def test_attest_of_a_model_that_promises_nothing_is_no_success(cli, flow):
    nothing = attestation()
    object.__setattr__(nothing, "plan", "")
    flow.answers["attest"] = nothing
    done = cli("attest", "e.engine", "--model", "m.onnx")
    assert done.status == 1
    assert "the model's Q/DQ promise nothing" in done.out


def test_attest_puts_verdicts_counts_and_shares_into_its_document(cli, flow):
    result = cli("attest", "e.engine", "--model", "m.onnx", "--json").json["result"]
    assert result["counts"] == {"fp8": 2}
    assert (result["macs_fp8"], result["weight_bytes_fp8"]) == (1.0, 1.0)
    assert result["verdicts"]["conv2"]["planned"] == "fp8"


def test_attest_refuses_a_requirement_that_does_not_exist(cli, flow):
    done = cli("attest", "e.engine", "--model", "m.onnx", "--require", "fp9>=0.5")
    assert done.status == 2
    assert "did you mean 'fp8'?" in done.err
    assert flow.calls == {}


FOUND = (
    Finding("FG305", "error", "conv1", "only one operand is quantized", "quantize the weight"),
    Finding("FG301", "info", "fc1", "the kernel has more than 32 elements"),
    Finding("FG311", "warning", "", "opset 13 is below 21"),
)


@pytest.mark.parametrize(
    ("words", "codes", "status"),
    [
        ([], ["FG305", "FG301", "FG311"], 1),
        (["--select", "FG301"], ["FG301"], 0),
        (["--select", "fg30,FG311", "--ignore", "FG305", "FG311"], ["FG301"], 0),
        (["--ignore", "FG3"], [], 0),
        (["--exit-zero"], ["FG305", "FG301", "FG311"], 0),
    ],
)
def test_check_is_one_line_for_each_finding_code_first(cli, flow, words, codes, status):
    flow.answers["check"] = Checked(FOUND)
    done = cli("check", "m.onnx", *words)
    assert done.status == status
    assert [line.split()[0] for line in done.out.splitlines()[:-1]] == codes
    document = json.loads(cli("check", "m.onnx", "--output-format", "json", *words).out)
    assert [item["code"] for item in document["findings"]] == codes


INSIDE = {
    "kind": "plan",
    "target": "tensorrt-rtx",
    "ops": {"Conv": {"fp8": 2, "kept": 1}},
    "rows": [
        {"key": "layers.0/conv", "name": "/conv", "op_type": "Conv", "do": "quantize"},
        {"key": "layers.1/relu", "name": "/relu", "op_type": "Relu", "do": "keep"},
    ],
}


def test_inspect_prints_values_then_sections(cli, flow):
    flow.answers["inspect"] = INSIDE
    assert cli("inspect", "p.json").out == (
        "kind    plan\n"
        "target  tensorrt-rtx\n"
        "\n"
        "ops\n"
        "        fp8  kept\n"
        "  Conv    2     1\n"
        "\n"
        "rows\n"
        "  key            name   op_type  do\n"
        "  layers.0/conv  /conv  Conv     quantize\n"
        "  layers.1/relu  /relu  Relu     keep\n"
    )
    assert cli("inspect", "p.json", "--json").json["result"] == INSIDE
    assert cli("inspect", "p.json", "--show", "io").out == "this plan has no io\n"


def test_inspect_shows_a_plan_as_decisions_with_their_operands(cli, flow):
    rows = [
        {"key": "relu1", "op_type": "Relu", "do": "keep", "code": "FG202", "why": "not in the recipe", "inputs": []},
        {
            "key": "c",
            "op_type": "Conv",
            "do": "quantize",
            "code": "FG201",
            "why": "fine",
            "inputs": ["0: e4m3fn", "1: x"],
        },
    ]
    flow.answers["inspect"] = {"kind": "plan", "rows": rows}
    assert cli("inspect", "p.json").out == (
        "kind  plan\n"
        "\n"
        "rows\n"
        "  relu1  Relu  keep      FG202  not in the recipe\n"
        "  c      Conv  quantize  FG201  fine\n"
        "         0: e4m3fn\n"
        "         1: x\n"
    )


def test_inspect_shows_shapes_and_opsets_as_people_write_them(cli, flow):
    flow.answers["inspect"] = {
        "kind": "model",
        "inputs": [{"name": "x", "shape": ["N", 3, None]}],
        "scales": [],
        "opset": {"": 17},
        "weight_bytes": 2048,
    }
    assert cli("inspect", "m.onnx").out == (
        "kind          model\nweight bytes  2 KiB\n\ninputs\n  name  shape\n  x     [N, 3, ?]\n\nopset\n  ai.onnx 17\n"
    )


def test_inspect_hands_sections_and_patterns_on(cli, flow):
    flow.answers["inspect"] = INSIDE
    assert cli("inspect", "p.json", "--show", "ops", "io", "--op", "layers.0/*", "type:Conv").status == 0
    asked = flow.calls["inspect"]
    assert (asked["file"], asked["show"], asked["op"]) == ("p.json", ["ops", "io"], ["layers.0/*", "type:Conv"])


def test_inspect_shows_an_engine_s_layers_and_every_cell_of_its_manifest(cli, flow):
    flow.answers["inspect"] = {
        "kind": "engine",
        "profiles": 1,
        "shapes": [{"profile": 0, "input": "x", "min": [1, 8], "opt": [4, 8], "max": [8, 8]}],
        "ops": {"product": {"fp8": 1, "high": 1}},
        "rows": [{"key": "mm", "op_type": "product", "name": "mm", "precision": "fp8"}],
        "weights": {"fp8": 8192, "fp32": 4},
        "options": {"timeout": 3, "flags": ["A", "B"], "cache": None},
        "layers": [
            {
                "kind": "product",
                "layer": "gemm",
                "operands": ["fp8", "fp8"],
                "profile": 0,
                "name": "mm + q + dq",
                "names": ["mm", "q", "dq"],
            },
            {"kind": "product", "layer": "gemm", "operands": ["fp16"], "profile": 0, "name": "n", "names": ["n"]},
        ],
    }
    assert cli("inspect", "m.engine").out == (
        "kind      engine\n"
        "profiles  1\n"
        "\n"
        "shapes\n"
        "  input  min     opt     max\n"
        "  x      [1, 8]  [4, 8]  [8, 8]\n"
        "\n"
        "ops\n"
        "           fp8  high\n"
        "  product    1     1\n"
        "\n"
        "weights\n"
        "  fp8   8 KiB\n"
        "  fp32  4 B\n"
        "\n"
        "layers\n"
        "  kind     layer  operands  name\n"
        "  product  gemm   fp8, fp8  mm, q and 1 more\n"
        "  product  gemm   fp16      n\n"
        "\n"
        "options\n"
        "  timeout  3\n"
        "  flags    A, B\n"
    )


def test_diff_is_0_where_nothing_that_counts_differs_and_1_else(cli, flow):
    done = cli("diff", "a.json", "b.json")
    assert (done.status, done.out) == (
        0,
        "a  a.json\nb  b.json\n\n          a  b\n  recipe  a  b\n\nthe same: 3 ops\n",
    )
    assert cli("diff", "a.json", "b.json", "--op", "x*", "--json").json["result"]["equal"] is True
    assert [flow.calls["diff"][name] for name in ("a", "b", "op")] == ["a.json", "b.json", ["x*"]]
    flow.answers["diff"] = Difference("plan", {}, io={"chips": (["sm89"], ["sm120"])})
    assert cli("diff", "a.json", "b.json").status == 1
    flow.answers["diff"] = Difference("engine", {}, unknown={"b": "engines of 9.9 were not checked"})
    done = cli("diff", "a.engine", "b.engine")
    assert done.status == 1
    assert "b cannot be read: engines of 9.9 were not checked" in done.out
    assert cli("diff", "a.json").status == 2


def test_report_prints_or_writes(cli, flow):
    done = cli("report", "p.json", "a.json")
    assert done.status == 0
    assert "conv2" in done.out and "SQNR 31.2 dB" in done.out
    assert cli("report", "p.json", "--format", "md").out == "the text\n"
    asked = flow.calls["report"]
    assert (asked["files"], asked["format"], asked["output"], asked["force"]) == (["p.json"], "md", None, False)
    assert cli("report", "p.json", "--json").json["result"]["totals"]["planned"] == {"fp32": 3, "fp8": 2}
    assert cli("report").status == 2
    assert cli("report", "p.json", "--format", "pdf").status == 2


def test_doctor_says_what_is_usable_and_how_to_get_the_rest(cli, flow):
    done = cli("doctor", "--require", "tensorrt-rtx")
    assert done.status == 0
    assert "tensorrt-rtx    usable: build, attest" in done.out
    assert "tensorrt        not usable\n                  tensorrt is not installed\n" in done.out
    assert "install: pip install 'fp8graph[tensorrt]'" in done.out
    done = cli("doctor", "--require", "tensorrt")
    assert done.status == 1
    assert "required and not usable: tensorrt" in done.out
    assert cli("doctor", "--require", "tensort").status == 2
    assert cli("doctor", "--json").json["result"]["python"] == "3.11.7"


def test_recipes_are_listed_shown_and_validated(cli, tmp_path):
    rows = cli("recipes", "--json").json["result"]["recipes"]
    assert [row["name"] for row in rows] == recipes.names()
    assert all(row["summary"] for row in rows)
    shown = cli("recipes", "show", "fp8-default").out
    mine = tmp_path / "mine.toml"
    mine.write_text(shown, encoding="utf-8")
    assert recipes.load(str(mine)).to_json() == recipes.load("fp8-default").to_json()
    assert cli("recipes", "show", mine).out == shown
    assert cli("recipes", "show", "fp8-defalt").status == 2

    done = cli("recipes", "validate", mine)
    assert done.status == 0, done.err
    for name in (*recipes.load("fp8-default").rules, *recipes.load("fp8-default").passes):
        assert f'"{name}"' in shown
        other = tmp_path / "other.toml"
        other.write_text(shown.replace(f'"{name}"', '"no-such-pass"'), encoding="utf-8")
        assert cli("recipes", "validate", other).status == 2, name


def test_a_recipe_with_a_typo_is_status_2_and_names_the_key(cli, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "fp8-default"\n[quantise]\nops = ["Conv"]\n', encoding="utf-8")
    done = cli("recipes", "validate", mine)
    assert done.status == 2
    assert "error[FG140]" in done.err
    assert "'quantise'" in done.err


def test_a_recipe_with_an_unknown_rule_is_status_2(cli, tmp_path, monkeypatch):
    from fp8graph.core import registry

    def unknown(name: str) -> None:
        raise UsageError(f"there is no pass '{name}'", code="FG113")

    monkeypatch.setattr(registry, "entry", unknown)
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "fp8-default"\nrules = ["keep-sensitve"]\n', encoding="utf-8")
    done = cli("recipes", "validate", mine)
    assert done.status == 2
    assert "there is no pass 'keep-sensitve'" in done.err


def test_targets_are_listed_and_every_page_has_its_sources(cli):
    rows = cli("targets", "--json").json["result"]["targets"]
    assert [row["name"] for row in rows] == targets.names()
    for name in targets.names():
        page = cli("targets", "show", name)
        assert page.status == 0
        result = cli("targets", "show", name, "--json").json["result"]
        told = [*result["rows"], *result["types"], *result["epilogues"], *result["not_imported"]]
        assert all(row["source"] for row in told)
        assert page.out.count("source: ") == len(told)


def test_a_target_s_page_narrows_to_an_op_and_a_chip(cli):
    result = cli("targets", "show", "tensorrt-rtx:sm89", "--op", "MatMul", "--json").json["result"]
    assert result["rows"]
    assert all("MatMul" in row["ops"] for row in result["rows"])
    done = cli("targets", "show", "tensorrt-rtx", "--op", "MatMull")
    assert done.status == 2
    assert "did you mean 'MatMul'?" in done.err
    assert cli("targets", "show", "tensorrt-rtx:sm86").status == 2


PASS = '''"""Folds it."""
class FoldIt(RewritePass):
    """Folds.

    limit          most elements
    output_limit   most elements that come out,
                   all of them
    """
    stage: ClassVar[Stage] = Stage.FOLD
    limit: int = 16
    output_limit: int | None
'''


def test_every_option_of_a_built_in_pass_has_a_meaning():
    from fp8graph.core import registry

    options = [(item.name, option) for item in registry.catalog() for option in item.options]
    assert {name for name, _ in options} >= {"fold-constants", "keep-router"}
    assert [name for name, option in options if not option.means] == []


def test_passes_are_listed_with_their_owners(cli, monkeypatch, tmp_path):
    from fp8graph.core import registry

    path = tmp_path / "fold_it.py"
    path.write_text('"""Folds it.\n\nThe page.\n"""\n', encoding="utf-8")
    entry = registry.PassEntry("fold-it", "acme", "acme_passes.fold_it", path)
    monkeypatch.setattr(registry, "catalog", lambda: (entry,))
    assert cli("passes").out == "fold-it  acme  Folds it.\n"
    assert cli("passes", "--json").json["result"] == {
        "passes": [{"name": "fold-it", "owner": "acme", "summary": "Folds it."}]
    }
    assert cli("passes", "show", "fold-it").out == "fold-it  of acme\n\nFolds it.\n\nThe page.\n\nIt has no options.\n"
    path.write_text(PASS, encoding="utf-8")
    said = cli("passes", "show", "fold-it").out
    assert "  limit         int, default 16: most elements\n" in said
    assert "  output-limit  int | None, must be given: most elements that come out, all of them\n" in said
    assert "--passes 'fold-it{limit=16}'" in said
    assert cli("passes", "show", "fold-it", "--json").json["result"]["options"][0] == {
        "name": "limit", "type": "int", "default": "16", "means": "most elements",
    }  # fmt: skip
    assert cli("passes", "show", "fold-that").status == 2


def test_explain_prints_pages_and_lists_codes(cli):
    done = cli("explain", "fg214", "FG302")
    assert done.status == 0
    assert done.out.startswith("FG214  kept in fp32")
    assert "FG302  the target refuses" in done.out
    assert cli("explain", "FG214", "--json").json["result"]["codes"][0]["code"] == "FG214"
    assert "FG900" in cli("explain").out
    assert cli("explain", "FG215x").status == 2
    assert "third-party" in cli("explain", "ACME12").err
