"""What a user asks of the planner, beside the recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.names import OpPattern, did_you_mean
from fp8graph.data.recipe import GivenScales, HighChoice, Recipe


@dataclass(frozen=True)
class Options:
    """Selections by the names that people type; None means the recipe's default.

    op_types_to_quantize    only these op types
    op_types_to_exclude     these stay in high precision
    nodes_to_quantize       patterns of ops that are to be quantized: a wish that the target may refuse with status 2
    nodes_to_exclude        patterns of ops that stay
    fp8_everywhere          also where it does not pay
    attention               `off` keeps the products of attention; `must-fuse` makes each one operator that has to fuse
    kv_cache                `fp8` holds caches of keys and values in FP8: inputs and outputs change their type
    high_precision_dtype    type of the high-precision part
    direct_io_types         inputs and outputs take that type, too
    given_scales            `keep` those that activations came with, or `recalibrate`
    """

    op_types_to_quantize: tuple[str, ...] | None = None
    op_types_to_exclude: tuple[str, ...] | None = None
    nodes_to_quantize: tuple[str, ...] | None = None
    nodes_to_exclude: tuple[str, ...] | None = None
    fp8_everywhere: bool = False
    attention: Literal["auto", "off", "must-fuse"] = "auto"
    high_precision_dtype: HighChoice | None = None
    kv_cache: Literal["keep", "fp8"] = "keep"
    direct_io_types: bool = False
    given_scales: GivenScales | None = None

    def __post_init__(self) -> None:
        if self.kv_cache not in ("keep", "fp8"):
            what = f"--kv-cache takes keep or fp8, not '{self.kv_cache}'"
            raise UsageError(what, where="--kv-cache", do="choose keep or fp8", code="FG100")
        if self.attention not in ("auto", "off", "must-fuse"):
            what = f"--attention takes auto, off or must-fuse, not '{self.attention}'"
            raise UsageError(what, where="--attention", do="choose auto, off or must-fuse", code="FG100")
        if self.given_scales not in (None, "keep", "recalibrate"):
            what = f"--given-scales takes keep or recalibrate, not '{self.given_scales}'"
            raise UsageError(what, where="--given-scales", do="choose keep or recalibrate", code="FG100")
        if self.high_precision_dtype not in (None, "keep", "fp32", "fp16", "bf16"):
            raise UsageError(
                f"'{self.high_precision_dtype}' is no high-precision type",
                where="--high-precision-dtype",
                do="choose fp16, bf16, fp32 or keep",
                code="FG100",
            )

    def asked(self) -> dict[str, Any]:
        """Those options that the user gave, as a plain mapping for the plan."""
        out: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                out[item.name] = list(value) if isinstance(value, tuple) else value
        return out

    @staticmethod
    def again(asked: Mapping[str, Any]) -> Options:
        """The options that a plan was made with. Raises InputError FG111 where one is none."""
        known = {item.name for item in fields(Options)}
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in asked.items() if name in known}
        for name, value in given.items():
            texts = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
            if not texts if name.startswith(("op_types", "nodes")) else isinstance(value, tuple):
                raise InputError(
                    "the plan is damaged",
                    where=f"asked.{name}",
                    why=f"it is {value!r}",
                    do="make it anew",
                    code="FG111",
                )
        return Options(**given)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Way:
    """How an op is quantized: the recipe, or what one of its lines makes of it. `by` and `why` are for the reason."""

    recipe: Recipe
    by: str
    why: str = ""


class Selection:
    """The patterns of options and recipe, each held to match something in the model."""

    def __init__(self, options: Options, recipe: Recipe) -> None:
        self.exclude = _patterns(options.nodes_to_exclude, "--nodes-to-exclude")
        self.quantize = _patterns(options.nodes_to_quantize, "--nodes-to-quantize")
        self.keep = [
            (pattern, line)
            for line in recipe.keep
            for pattern in _patterns(line.ops, f"recipe {recipe.name}: keep.ops")
        ]
        self.recipe = recipe
        self.lines = [
            (pattern, line)
            for line in recipe.lines
            for pattern in _patterns(line.ops, f"recipe {recipe.name}: quantize.for")
        ]
        self.types = {
            "--op-types-to-quantize": options.op_types_to_quantize,
            "--op-types-to-exclude": options.op_types_to_exclude,
        }

    def way(self, key: str, name: str, op_type: str) -> Way:
        """How the first line that names an op quantizes it; as the recipe does all others where none names it."""
        by = f"recipe {self.recipe.name}"
        for pattern, line in self.lines:
            if pattern.matches(key, name, op_type):
                return Way(self.recipe.under(line), f"{by}: '{pattern.text}'", line.why)
        return Way(self.recipe, by)

    def check(self, ops: list[tuple[str, str, str]], able: Collection[str]) -> None:
        """Raises UsageError FG109 for the first pattern that matches none of `ops` (key, name, op type).

        A pattern that says how ops are quantized has to match one that can be: `able` are their types.
        """
        groups = (
            ("--nodes-to-exclude", self.exclude, ops),
            ("--nodes-to-quantize", self.quantize, ops),
            ("recipe", [p for p, _ in self.keep], ops),
            ("recipe: quantize.for", [p for p, _ in self.lines], [op for op in ops if op[2] in able]),
        )
        for where, patterns, held in groups:
            for pattern in patterns:
                if not any(pattern.matches(*op) for op in held):
                    typed = pattern.kind == "type"
                    known = {kind for *_, kind in held} if typed else {n for key, name, _ in held for n in (key, name)}
                    of = "" if held is ops else f" of {', '.join(able)}"
                    raise UsageError(
                        f"the pattern '{pattern.text}' matches no op",
                        where=where,
                        why=f"it is held against {'op types' if typed else 'op keys and node names'}{of}",
                        do=did_you_mean(pattern.body, known - {""}),
                        code="FG109",
                    )
        known_types = {op_type for _, _, op_type in ops}
        for where, types in self.types.items():
            for op_type in types or ():
                if op_type not in known_types:
                    raise UsageError(
                        f"the model has no op of type '{op_type}'",
                        where=where,
                        do=did_you_mean(op_type, known_types),
                        code="FG109",
                    )


def _patterns(texts: tuple[str, ...] | None, where: str) -> list[OpPattern]:
    try:
        return [OpPattern(text) for text in texts or ()]
    except ValueError as error:
        raise UsageError("a pattern cannot be read", where=where, why=str(error), code="FG109") from error
