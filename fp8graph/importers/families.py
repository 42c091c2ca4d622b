"""What the layers of well-known architectures consist of: a config that names another one is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fp8graph.base.errors import InputError

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.rotary_emb")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_LLAMA = (*_ATTENTION, *_NORMS, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
# model_type -> modules of a layer. Source: transformers 5.23.0, modeling_<model_type>.py.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": (*_LLAMA, *_HEAD_NORMS),
    "qwen3_moe": (*_LLAMA, *_HEAD_NORMS, "mlp.gate", "mlp.experts"),
    "mixtral": (*_ATTENTION, *_NORMS, "block_sparse_moe.gate", "block_sparse_moe.experts"),
}
_LAYER = re.compile(r"(?:^|\.)layers\.\d+\.(.+)\.[^.]+$")


def check_family(config: Mapping[str, Any], parameters: Iterable[str], where: str) -> None:
    """Raises InputError FG117 where a layer has a module that the architecture of config.json does not have.

    An architecture that is not in the table is believed.
    """
    family = config.get("model_type")
    modules = FAMILIES.get(family) if isinstance(family, str) else None
    for name in parameters if modules else ():
        found = _LAYER.search(name)
        if found and not any(f"{found[1]}.".startswith(f"{module}.") for module in modules or ()):
            raise InputError(
                "the checkpoint is not of the architecture that its config names",
                where=f"{where}, tensor '{name}'",
                why=f"config.json says model_type '{family}', whose layers have no '{found[1]}'",
                do="put the config.json that belongs to the weights beside them",
                code="FG117",
            )
