"""What a checkpoint's config says about its quantization: sizes of blocks, and what was left in high precision.

Names are those of config.json's `quantization_config` (older files of compressed-tensors: `compression_config`), or of
the `quantization` in ModelOpt's hf_quant_config.json. What is there has to be what it can be: a number that is passed
over would be one that was meant.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fp8graph.base.errors import InputError
from fp8graph.base.names import did_you_mean

# transformers and vLLM; the weights of each are codes in FP8 with scales beside them.
METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "quark")
# DeepSeek and Qwen3 under two names, compressed-tensors and newer ModelOpt, older ModelOpt, Quark.
_KEPT = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules", "exclude")
_RE = "re:"  # compressed-tensors: a regular expression, which has to match from the beginning


@dataclass(frozen=True)
class Declared:
    """A section on quantization, read.

    blocks   block shapes, along the last axes, each once
    kept     names or patterns of modules that were not quantized, by the key that lists them
    """

    blocks: tuple[tuple[int, ...], ...] = ()
    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def keeper(self, module: str) -> str:
        """The key that lists a module, or one that it lies in; empty where none does.

        A name speaks for what lies below it, with or without what stands in front: `lm_head` is `model.lm_head`, too.
        """
        return next((key for key, texts in self.kept.items() if any(_names(text, module) for text in texts)), "")


def declared(section: Mapping[str, Any], where: str) -> Declared:
    """Reads a section; empty ones say nothing. Raises InputError FG115 naming the key whose value is none."""
    method = section.get("quant_method")
    if method is not None and method not in METHODS:
        why = f"it is {method!r:.60}, and import reads {', '.join(METHODS)}"
        near = did_you_mean(method, METHODS) if isinstance(method, str) else "write one of these"
        do = f"{near}; where weights are codes in FP8 with scales beside them, take the key out"
        _refuse(f"{where}.quant_method", why, do)
    found: dict[tuple[int, ...], None] = {}
    for shape, key in _shapes(section, where):
        if isinstance(shape, str):  # "128x128" in older files
            shape = [int(part) if part.isdecimal() else part for part in shape.split("x")]
        if not isinstance(shape, list) or len(shape) != 2 or any(type(size) is not int or size < 1 for size in shape):
            _refuse(key, f"it is {shape!r:.60}, and blocks have two sizes of at least 1, such as [128, 128]")
        found[tuple(shape)] = None
    kept = {key: _texts(section[key], f"{where}.{key}") for key in _KEPT if section.get(key) is not None}
    return Declared(tuple(found), kept)


def _shapes(section: Mapping[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    """weight_block_size (DeepSeek, Qwen3); block_structure and group_size of weights (compressed-tensors)."""
    if section.get("weight_block_size") is not None:
        yield section["weight_block_size"], f"{where}.weight_block_size"
    groups = _table(section.get("config_groups"), f"{where}.config_groups")
    for name, group in groups.items():
        here = f"{where}.config_groups.{name}"
        weights = _table(_table(group, here).get("weights"), f"{here}.weights")
        if weights.get("block_structure") is not None:
            yield weights["block_structure"], f"{here}.weights.block_structure"
        size = weights.get("group_size")
        if size is not None and size != -1:  # -1: a channel
            yield [1, size], f"{here}.weights.group_size"


def _table(value: Any, key: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        _refuse(key, f"it is {value!r:.60}, and a table is read")
    return value


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        _refuse(key, f"it is {value!r:.60}, and a list of names is read")
    for text in value:
        try:
            re.compile(text.removeprefix(_RE) if text.startswith(_RE) else "")
        except re.error as error:
            _refuse(key, f"'{text}' is no regular expression: {error}")
    return tuple(value)


def _names(text: str, module: str) -> bool:
    if text.startswith(_RE):
        return re.match(text.removeprefix(_RE), module) is not None
    if "*" in text:
        return fnmatch.fnmatchcase(module, text)
    return bool(text) and f".{text}." in f".{module}."


def _refuse(where: str, why: str, do: str = "put the config.json that belongs to the weights beside them") -> NoReturn:
    raise InputError("the checkpoint's config says what cannot be", where=where, why=why, do=do, code="FG115")
