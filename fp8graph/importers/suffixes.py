"""How the ecosystem names what belongs to a weight, as one table.

A name is an owner and an ending. `of` makes the name of the weight from the owner: `{}.weight` of `a.q_proj` is
`a.q_proj.weight`. The first row whose ending fits and whose weight is in the checkpoint says what the tensor is; a name
that no row knows is a parameter's. A real value is code times scale in every row, also where the name says `_inv`.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

Role = Literal["scale", "amax", "input-scale", "input-amax", "zero", "cache", "refused"]


@dataclass(frozen=True)
class Ending:
    """One row: what a tensor with this ending is of the weight `of`, which is empty for a cache's scale."""

    ending: str
    role: Role
    of: str
    writer: str


_DEEPSEEK = "DeepSeek-V3, Qwen3-FP8, transformers finegrained_fp8"
_CT, _MO, _TE = "compressed-tensors", "ModelOpt", "samples/transformer_engine_scales.py"
_VLLM = "vLLM maybe_remap_kv_scale_name"
# From the longest to the shortest where one ends like another.
ENDINGS: tuple[Ending, ...] = (
    # what means a second level of scales, or codes packed below a byte
    Ending(".weight_scale_2", "refused", "{}.weight", f"{_MO} NVFP4"),
    Ending(".weight_global_scale", "refused", "{}.weight", f"{_CT} NVFP4"),
    Ending(".input_global_scale", "refused", "{}.weight", f"{_CT} NVFP4"),
    Ending(".weight_packed", "refused", "", f"{_CT} INT4, NVFP4"),
    Ending(".pre_quant_scale", "refused", "{}.weight", f"{_MO} AWQ, SmoothQuant"),
    Ending(".qweight", "refused", "", "GPTQ, AWQ"),
    # weights
    Ending(".weight_scale_inv", "scale", "{}.weight", _DEEPSEEK),
    Ending(".weight_scale", "scale", "{}.weight", f"{_CT}, {_MO}, fbgemm"),
    Ending(".qscale_weight", "scale", "{}.weight", "Mistral"),
    Ending(".weight_quantizer._amax", "amax", "{}.weight", f"{_MO} state_dict"),
    Ending(".weight_quantizer._scale", "scale", "{}.weight", f"{_MO} state_dict"),
    # their inputs
    Ending(".activation_scale", "input-scale", "{}.weight", "transformers FP8Linear, static"),
    Ending(".input_scale", "input-scale", "{}.weight", f"{_CT}, {_MO}, static"),
    Ending(".qscale_act", "input-scale", "{}.weight", "Mistral"),
    Ending(".input_quantizer._amax", "input-amax", "{}.weight", f"{_MO} state_dict"),
    # zero points, which are zero in FP8
    Ending(".weight_zero_point", "zero", "{}.weight", f"{_CT}, force_zero_point"),
    Ending(".input_zero_point", "zero", "{}.weight", f"{_CT}, force_zero_point"),
    # caches of keys and values, and attention
    Ending(".k_proj.output_scale", "cache", "", f"{_CT}, older; {_VLLM}"),
    Ending(".v_proj.output_scale", "cache", "", f"{_CT}, older; {_VLLM}"),
    Ending(".k_scale", "cache", "", f"{_MO} .k_proj.k_scale; {_CT} .self_attn.k_scale; {_VLLM}"),
    Ending(".v_scale", "cache", "", f"{_MO} .v_proj.v_scale; {_CT} .self_attn.v_scale; {_VLLM}"),
    Ending(".kv_scale", "cache", "", f"one for both, older; {_VLLM}"),
    Ending(".q_scale", "cache", "", f"{_CT} query; {_VLLM}"),
    Ending(".prob_scale", "cache", "", _VLLM),
    # on any parameter: stacked experts, and what the sample writes of Transformer Engine
    Ending("_activation_amax_history", "input-amax", "{}", _TE),
    Ending("_amax_history", "amax", "{}", _TE),
    Ending("_activation_scale", "input-scale", "{}", "transformers, stacked experts"),
    Ending("_scale_inv", "scale", "{}", "transformers, stacked experts"),
    Ending("_scale", "scale", "{}", "vLLM, stacked experts"),
    Ending(".scale", "scale", "{}.weight", "DeepSeek-V4, Mistral"),
)


def part_of(name: str, names: Container[str]) -> tuple[Ending, str] | None:
    """What a tensor is by its name, and the name of its weight ("" for a cache); None for a parameter.

    `names` are those of the checkpoint: an ending says something only where its weight is there, too.
    """
    for row in ENDINGS:
        if not name.endswith(row.ending):
            continue
        of = row.of.format(name.removesuffix(row.ending))
        if not row.of or (of in names and of != name):
            return row, of
    return None


def orphan(name: str) -> bool:
    """Whether a name that is no weight's part looks like one: its weight is missing."""
    return any(row.of == "{}.weight" and row.ending != ".scale" and name.endswith(row.ending) for row in ENDINGS)
