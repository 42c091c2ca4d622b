"""What a checkpoint's config says about its quantization is carried, or refused where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fp8graph
from fp8graph.base.errors import InputError
from fp8graph.importers.declared import Declared
from tests.importers.making import codes, config, linear, renamed, write
from tests.small import contents, model, refused, why

ONE = ("F32", np.float32(1))
FP8 = {"quant_method": "fp8"}
BODY, HEAD = "model.layers.0.mlp.up_proj", "lm_head"


def graph() -> onnx.ModelProto:
    """One product in FP8, and a head."""
    text = """(float[n,32] x, float[32,32] w_a, float[16,32] w_b) => (float[n,16] y) {
        h = Gemm<transB=1>(x, w_a)
        y = Gemm<transB=1>(h, w_b)
    }"""
    return renamed(model(text), w_a=f"{BODY}.weight", w_b=f"{HEAD}.weight")


def checkpoint(folder: Path, **section: Any) -> Path:
    config(folder, **(FP8 | section))
    body = {f"{BODY}.weight": ("F8_E4M3", codes((32, 32))), f"{BODY}.weight_scale": ONE}
    write(folder / "m.safetensors", body | {f"{HEAD}.weight": ("BF16", codes((16, 32), "BF16"))})
    return folder


KEYS = ["modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules"]


@pytest.mark.parametrize("key", KEYS)
def test_what_the_checkpoint_left_in_high_precision_stays_so_unless_the_user_asks(key: str, tmp_path: Path):
    made = fp8graph.import_plan(checkpoint(tmp_path, **{key: [HEAD]}), model=graph()).model
    asked: dict[str, Any] = {"plan_only": True, "target": "tensorrt-rtx:sm89"}
    plan = fp8graph.optimize(made, **asked).plan
    assert why(plan, "h") == ("quantize", "FG201") and why(plan, "y") == ("keep", "FG237")
    assert (plan.ops["y"].why.by, plan.ops["y"].why.text) == ("keep-named", f"the checkpoint's {key} names {HEAD}")
    everywhere = fp8graph.optimize(made, fp8_everywhere=True, **asked).plan
    assert why(everywhere, "y") == ("keep", "FG237")
    assert why(fp8graph.optimize(made, nodes_to_quantize=["y"], **asked).plan, "y") == ("quantize", "FG204")


def test_modelopts_own_file_is_read_and_a_weight_in_fp8_is_planned_whatever_a_list_says(tmp_path: Path):
    checkpoint(tmp_path, ignore=["nothing", BODY])
    made = fp8graph.import_plan(tmp_path, model=graph()).model
    plan = fp8graph.optimize(made, plan_only=True).plan
    assert [key for key, _ in plan.quantized()] == ["h", "y"]
    (tmp_path / "config.json").unlink()
    own = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_*"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(own))
    made = fp8graph.import_plan(tmp_path, model=graph()).model
    assert why(fp8graph.optimize(made, plan_only=True).plan, "y") == ("keep", "FG237")


def test_a_head_that_is_tied_to_the_embedding_is_known_by_its_module(tmp_path: Path):
    """The checkpoint holds the table once, under the embedding's name; the exporter says whose product it is."""
    text = """(int64[2] i, float[32,32] w_a, float[16,32] w_e) => (float[2,16] y) {
        e = Gather(w_e, i)
        h = Gemm<transB=1>(e, w_a)
        t = Transpose<perm=[1,0]>(w_e)
        y = MatMul(h, t)
    }"""
    proto = renamed(model(text), w_a=f"{BODY}.weight", w_e="model.embed.weight")
    proto.graph.node[3].name = "/lm_head/MatMul"
    checkpoint(tmp_path, ignore=[HEAD])
    body = {f"{BODY}.weight": ("F8_E4M3", codes((32, 32))), f"{BODY}.weight_scale": ONE}
    write(tmp_path / "m.safetensors", body | {"model.embed.weight": ("BF16", codes((16, 32), "BF16"))})
    made = fp8graph.import_plan(tmp_path, model=proto).model
    assert why(fp8graph.optimize(made, plan_only=True).plan, "y") == ("keep", "FG237")


@pytest.mark.parametrize(
    ("text", "module", "named"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", True),
        ("lm_head", "lm_head_2", False),
        ("head", "lm_head", False),
        ("model.layers.0", "model.layers.0.mlp.up_proj", True),
        ("model.layers.1", "model.layers.10.mlp.up_proj", False),
        ("gate", "model.layers.3.mlp.gate", True),
        ("*.gate", "model.layers.3.mlp.gate", True),
        ("*.gate", "model.layers.3.mlp.gate_proj", False),
        ("re:.*mlp\\.gate$", "model.layers.3.mlp.gate", True),
        ("re:mlp", "model.layers.3.mlp.gate", False),
        ("", "lm_head", False),
    ],
)
def test_names_speak_for_what_lies_below_them_and_patterns_for_what_they_match(text: str, module: str, named: bool):
    assert Declared(kept={"ignore": ("something", text)}).keeper(module) == ("ignore" if named else "")


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"quant_method": 5}, "quant_method", "it is 5"),
    ({"quant_method": ["fp8"]}, "quant_method", "['fp8']"),
    ({"quant_method": "fp9"}, "quant_method", "did you mean 'fp8'?"),
    ({"quant_method": "compressed_tensors"}, "quant_method", "did you mean 'compressed-tensors'?"),
    ({"quant_method": "gptq"}, "quant_method", "import reads fp8"),
    ({"weight_block_size": [128]}, "weight_block_size", "two sizes"),
    ({"weight_block_size": [128, 0]}, "weight_block_size", "two sizes"),
    ({"weight_block_size": [128, -128]}, "weight_block_size", "two sizes"),
    ({"weight_block_size": [128, 128, 128]}, "weight_block_size", "two sizes"),
    ({"weight_block_size": [128, 1.5]}, "weight_block_size", "two sizes"),
    ({"weight_block_size": [True, True]}, "weight_block_size", "two sizes"),
    ({"weight_block_size": 128}, "weight_block_size", "it is 128"),
    ({"weight_block_size": "128 by 128"}, "weight_block_size", "two sizes"),
    ({"config_groups": [1]}, "config_groups", "a table is read"),
    ({"config_groups": {"g": "Linear"}}, "config_groups.g", "a table is read"),
    ({"config_groups": {"g": {"weights": 8}}}, "config_groups.g.weights", "a table is read"),
    ({"config_groups": {"g": {"weights": {"block_structure": [0, 128]}}}}, "g.weights.block_structure", "[0, 128]"),
    ({"config_groups": {"g": {"weights": {"group_size": "x"}}}}, "g.weights.group_size", "[1, 'x']"),
    ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert", "a list of names"),
    ({"ignore": [1]}, "ignore", "a list of names"),
    ({"ignore": ["re:("]}, "ignore", "no regular expression"),
]


@pytest.mark.parametrize(("section", "key", "says"), BAD, ids=[f"{key} {n}" for n, (_, key, _) in enumerate(BAD)])
def test_a_value_that_cannot_be_is_refused_with_its_file_and_key(
    section: dict[str, Any], key: str, says: str, tmp_path: Path
):
    checkpoint(tmp_path, **section)
    before = contents(tmp_path)
    with refused(InputError, "FG115", "config.json: quantization_config.", key, says):
        fp8graph.import_plan(tmp_path, model=graph(), output=tmp_path / "o.onnx")
    assert contents(tmp_path) == before


def test_a_section_that_is_no_table_is_refused_and_empty_values_say_nothing(tmp_path: Path):
    checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"quantization_config": "fp8"}')
    with refused(InputError, "FG115", "config.json: quantization_config", "'fp8'"):
        fp8graph.import_plan(tmp_path, model=graph())
    nothing = {"weight_block_size": None, "modules_to_not_convert": None, "config_groups": None}
    config(tmp_path, **nothing, ignore=[])
    assert fp8graph.import_plan(tmp_path, model=graph()).weights


def test_a_model_that_holds_fp8_weights_already_is_told_so(tmp_path: Path):
    first = tmp_path / "first.onnx"
    fp8graph.import_plan(checkpoint(tmp_path), model=graph(), output=first)
    with refused(InputError, "FG117", "FP8 already", "first.onnx", f"{BODY}.weight_fp8", "fp8graph optimize"):
        fp8graph.import_plan(tmp_path, model=first, output=tmp_path / "second.onnx")
    assert not (tmp_path / "second.onnx").exists()


@pytest.mark.parametrize("name", ["p.pt", "p.bin"])
def test_a_pickle_is_sent_to_what_takes_its_scales_out(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"PK\3\4 _extra_state")
    for source in (tmp_path / name, tmp_path):
        with refused(InputError, "FG115", "python samples/transformer_engine_scales.py", name, "save_file"):
            fp8graph.import_plan(source, model=linear((4, 4)))
