"""Recipes: one policy each, as TOML. A recipe never names code, outside paths or the network."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from fp8graph import formats
from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.data.method import SPELLINGS, parse
from fp8graph.formats.spec import FP32_SCALES, ScaleFormat

HighChoice = Literal["keep", "fp32", "fp16", "bf16"]
Blocks = Literal["auto", "split", "channel"]
GivenScales = Literal["keep", "recalibrate"]
_SCHEMA = "fp8graph.recipe/1"
_POLICY = {"format", "per", "scale", "block", "scale_format", "scale_rule", "outer"}
# Those that say more about what `per` says: another `per` drops them.
_OF_PER = ("block", "scale_format", "scale_rule", "outer")
_TABLES = {
    "": {"schema", "name", "summary", "extends", "quantize", "high", "rules", "passes", "repairs", "learn", "keep"},
    "quantize": {"ops", "activations", "weights", "costly", "concat", "blocks", "given", "instead", "for"},
    "quantize.activations": _POLICY,
    "quantize.weights": _POLICY,
    "quantize.for": {"ops", "format", "activations", "weights", "why"},
    "quantize.for.activations": _POLICY,
    "quantize.for.weights": _POLICY,
    "high": {"dtype"},
    "keep": {"ops", "why"},
}


@dataclass(frozen=True)
class TensorPolicy:
    """How one kind of tensor is quantized.

    format  name of a format; `none` for activations that stay as they are
    per     `tensor`; `channel` (weights: each output channel), `token` (activations: each row), `block`
    scale   how it is found (`data.method`): `amax` from the largest value seen, or of the weight; `mse` with the least
            error; for activations `percentile:99.9`, `entropy`, `pow2`, and `dynamic`: that of each run, in the graph
    block   sizes of a block: one along the axis that products sum over, or two: along the other axis and along it
    stored  how scales are stored: TOML keys `scale_format`, `scale_rule` and `outer`

    An activation has no scale per channel: it would lie along the axis that products sum over, where no kernel takes
    it.
    """

    format: str
    per: Literal["tensor", "channel", "token", "block"]
    scale: str
    block: tuple[int, ...] = ()
    stored: ScaleFormat = FP32_SCALES

    def to_json(self) -> dict[str, Any]:
        """The table of a recipe that says this; defaults are left out."""
        said: dict[str, Any] = {"format": self.format, "per": self.per, "scale": self.scale}
        if self.block:
            said["block"] = list(self.block)
        if self.stored.format is not None:
            said |= {"scale_format": self.stored.format, "scale_rule": self.stored.rule, "outer": self.stored.outer}
        return said


@dataclass(frozen=True)
class KeepLine:
    """Patterns of ops that stay in high precision, and why the user says so."""

    ops: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class ForLine:
    """Patterns of ops that are quantized in another way than the recipe's, and why, where somebody says so.

    It says how, never whether: options, [[keep]] lines and rules are asked before. Of several lines the first counts.
    """

    ops: tuple[str, ...]
    activations: TensorPolicy
    weights: TensorPolicy
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """The line as resolved: both operands in full."""
        said: dict[str, Any] = {"ops": list(self.ops), **({"why": self.why} if self.why else {})}
        return said | {"activations": self.activations.to_json(), "weights": self.weights.to_json()}


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe.

    ops          op types that are quantized unless something speaks against it
    concat       whether the operands of a quantized Concat get one scale, so that FP8 passes it
    costly       whether ops that run in FP8 but do not pay are quantized, too
    high         type of the high-precision part; `keep` leaves the model's own
    rules        plan rules in the order in which they are asked
    passes       rewriting passes in the order in which they run
    repairs      in the order in which they are asked
    learn        how much repairs may take to learn from data: `light`, some seconds; `full`, as much as is of use
    keep         pattern lines
    blocks       what becomes of a weight that came with block scales, where the target runs none: `split`, a product
                 for each block; `channel`, one scale per output channel; `auto` weighs what either loses and costs
    given        what becomes of scales that activations came with: `keep`; `recalibrate`, found anew
    lines        ops that are quantized in other ways: TOML [[quantize.for]]
    instead      formats that ops may have instead of the recipe's: each op has the one that costs the output the least
                 on the data, or none of them
    """

    name: str
    summary: str
    ops: tuple[str, ...]
    activations: TensorPolicy
    weights: TensorPolicy
    costly: bool
    high: HighChoice
    rules: tuple[str, ...]
    passes: tuple[str, ...]
    keep: tuple[KeepLine, ...] = field(default=())
    concat: bool = False
    blocks: Blocks = "auto"
    given: GivenScales = "keep"
    lines: tuple[ForLine, ...] = field(default=())
    instead: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    learn: Literal["light", "full"] = "full"

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats that a result may hold: of operands, and of scales that are stored in one."""
        both = [policy for one in self.ways for policy in (one.activations, one.weights)]
        named = [policy.format for policy in both] + [policy.stored.format for policy in both] + [*self.instead]
        return tuple(dict.fromkeys(name for name in named if name not in (None, "none")))

    @property
    def quantizes(self) -> bool:
        """Whether any op is to be quantized."""
        return bool(self.ops or self.lines)

    @property
    def ways(self) -> tuple[Recipe, ...]:
        """The recipe as it is for ops that no line names, then as each line has it."""
        return (self, *(self.under(line) for line in self.lines))

    def under(self, line: ForLine) -> Recipe:
        """The recipe for the ops that a line names."""
        return replace(self, activations=line.activations, weights=line.weights, lines=())

    def others(self) -> tuple[Recipe, ...]:
        """The recipe in each of the formats that ops may have instead."""

        def of(name: str) -> Recipe:
            both = replace(self.activations, format=name), replace(self.weights, format=name)
            return replace(self, activations=both[0], weights=both[1], instead=())

        return tuple(map(of, self.instead))

    def measured(self, method: str) -> Recipe:
        """The recipe with all scales that are observed found by another method. Raises UsageError FG100 for none."""
        if all(one.activations.scale == "dynamic" or one.activations.format == "none" for one in self.ways):
            raise UsageError(
                "no scale of this recipe is observed",
                where=f"--calibration-method, recipe {self.name}",
                why="its activations stay as they are, or have their scales found in each run",
                do="leave --calibration-method out, or choose another --recipe",
                code="FG100",
            )

        def moved(policy: TensorPolicy) -> TensorPolicy:
            return policy if policy.scale == "dynamic" else replace(policy, scale=method)

        lines = tuple(replace(line, activations=moved(line.activations)) for line in self.lines)
        return replace(self, activations=moved(self.activations), lines=lines)

    def to_json(self) -> dict[str, Any]:
        """The resolved recipe as a plain mapping; `Recipe.from_mapping` reads it back."""
        return {
            "schema": _SCHEMA,
            "name": self.name,
            "summary": self.summary,
            "quantize": {
                "ops": list(self.ops),
                "costly": self.costly,
                "concat": self.concat,
                **({"blocks": self.blocks} if self.blocks != "auto" else {}),
                **({"given": self.given} if self.given != "keep" else {}),
                **({"instead": list(self.instead)} if self.instead else {}),
                "activations": self.activations.to_json(),
                "weights": self.weights.to_json(),
                **({"for": [line.to_json() for line in self.lines]} if self.lines else {}),
            },
            "high": {"dtype": self.high},
            "rules": list(self.rules),
            "passes": list(self.passes),
            **({"repairs": list(self.repairs)} if self.repairs else {}),
            **({"learn": self.learn} if self.learn != "full" else {}),
            "keep": [{"ops": list(line.ops), "why": line.why} for line in self.keep],
        }

    @staticmethod
    def from_mapping(table: Mapping[str, Any], where: str) -> Recipe:
        """Reads a resolved table. Raises UsageError FG140 naming the path of the key that is wrong."""
        _known_keys(table, where)
        if table.get("schema", _SCHEMA) != _SCHEMA:
            raise _wrong(f"the recipe's schema is '{table['schema']}', this fp8graph reads '{_SCHEMA}'", where)
        try:
            quantize = table["quantize"]
            return Recipe(
                name=_text(table, "name", where),
                summary=_text(table, "summary", where),
                ops=_texts(quantize, "ops", f"{where}: quantize"),
                activations=_policy(quantize["activations"], "activations", f"{where}: quantize.activations"),
                weights=_policy(quantize["weights"], "weights", f"{where}: quantize.weights"),
                costly=_truth(quantize.get("costly", False), "costly", where),
                high=_one_of(table.get("high", {}).get("dtype", "keep"), ("keep", "fp32", "fp16", "bf16"), where),
                rules=_texts(table, "rules", where),
                passes=_texts(table, "passes", where),
                repairs=_texts(table, "repairs", where) if "repairs" in table else (),
                learn=_one_of(table.get("learn", "full"), ("light", "full"), f"{where}: learn"),
                keep=tuple(
                    KeepLine(_texts(line, "ops", where), _text(line, "why", where)) for line in table.get("keep", [])
                ),
                concat=_truth(quantize.get("concat", False), "concat", where),
                blocks=_one_of(quantize.get("blocks", "auto"), get_args(Blocks), f"{where}: quantize.blocks"),
                given=_one_of(quantize.get("given", "keep"), get_args(GivenScales), f"{where}: quantize.given"),
                instead=_instead(quantize, f"{where}: quantize.instead"),
                lines=tuple(
                    _for_line(line, quantize, f"{where}: quantize.for, line {count}")
                    for count, line in enumerate(_lines(quantize, where, "for"), 1)
                ),
            )
        except KeyError as error:
            raise _wrong(f"the recipe lacks {error}", where) from error
        except (TypeError, AttributeError) as error:
            raise _wrong(f"a table of the recipe has the wrong shape: {error}", where) from error


def names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in resources.files("fp8graph.recipes").iterdir()
        if entry.name.endswith(".toml")
    )


def load(name_or_path: str) -> Recipe:
    """A packaged recipe by its name, or a TOML file. Raises UsageError (unknown name, unknown key, wrong value).

    One that `extends` another takes over what it does not name, table by table. Lists are replaced as a whole, but for
    [[keep]] lines, which are added, and [[quantize.for]] lines, which come before the other's. Its name is its file's
    where it gives none: never that of the other.
    """
    table, where = _table(name_or_path)
    if "extends" in table:
        name = table["extends"]
        if not isinstance(name, str) or "/" in name or "\\" in name:
            raise _wrong("'extends' names a packaged recipe, or a .toml file beside this one", where)
        base, _ = _table(str(Path(name_or_path).with_name(name)) if name.endswith(".toml") else name)
        if "extends" in base and not name.endswith(".toml"):
            base = _merged(_table(base["extends"])[0], {k: v for k, v in base.items() if k != "extends"})
        if "extends" in base:
            raise _wrong(f"'{table['extends']}' extends another recipe; one step is allowed", where)
        own = {"name": Path(name_or_path).stem, "summary": f"{base.get('name')}, changed"} | table
        own["keep"] = _lines(base, where) + _lines(table, where)
        del own["extends"]
        lines = [line for one in (table, base) for line in _lines(one.get("quantize", {}), where, "for")]
        table = _merged(base, own)
        if lines:
            table["quantize"]["for"] = lines
    return Recipe.from_mapping(table, where)


def _table(name_or_path: str) -> tuple[dict[str, Any], str]:
    packaged = names()
    if name_or_path in packaged:
        text = resources.files("fp8graph.recipes").joinpath(f"{name_or_path}.toml").read_text(encoding="utf-8")
        where = f"recipe {name_or_path}"
    elif name_or_path.endswith(".toml") or "/" in name_or_path:
        where = name_or_path
        try:
            text = Path(name_or_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            do = "check the path; python -m fp8graph recipes lists those that come along"
            raise UsageError(
                "the recipe file cannot be read", where=where, why=str(error), do=do, code="FG140"
            ) from error
    else:
        raise UsageError(
            f"there is no recipe '{name_or_path}'",
            where="--recipe",
            do=did_you_mean(name_or_path, packaged) + "; or give a .toml file",
            code="FG101",
        )
    try:
        return tomllib.loads(text), where
    except tomllib.TOMLDecodeError as error:
        raise UsageError("the recipe is no TOML", where=where, why=str(error), code="FG140") from error


def _lines(table: Any, where: str, name: str = "keep") -> list[Any]:
    """The lines of a table: those of a recipe and its base add up."""
    lines = table.get(name, []) if isinstance(table, Mapping) else []
    if not isinstance(lines, list):
        whole = "quantize.for" if name == "for" else name
        raise _wrong(f"'{whole}' is a list of tables: [[{whole}]]", where)
    return lines


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        out[key] = _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def _known_keys(table: Mapping[str, Any], where: str, path: str = "") -> None:
    known = _TABLES.get(path)
    if known is None:
        return
    for key, value in table.items():
        here = f"{path}.{key}" if path else key
        if key not in known:
            raise UsageError(
                f"the recipe has an unknown key '{here}'", where=where, do=did_you_mean(key, known), code="FG140"
            )
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                _known_keys(item, where, here)


def _for_line(line: Mapping[str, Any], quantize: Mapping[str, Any], here: str) -> ForLine:
    """A line of [[quantize.for]]. What it does not name is the recipe's; `format` is for both operands."""
    both = {"format": line["format"]} if "format" in line else {}
    tables: dict[str, dict[str, Any]] = {}
    for which in ("activations", "weights"):
        own = {**both, **line.get(which, {})}
        dropped = _OF_PER if "per" in own else ()
        tables[which] = {key: value for key, value in quantize[which].items() if key not in dropped} | own
    return ForLine(
        ops=_texts(line, "ops", here),
        activations=_policy(tables["activations"], "activations", f"{here}: activations"),
        weights=_policy(tables["weights"], "weights", f"{here}: weights"),
        why=_text(line, "why", here) if "why" in line else "",
    )


def _instead(quantize: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Formats beside the recipe's own, each for both operands."""
    listed = _texts(quantize, "instead", where) if "instead" in quantize else ()
    for name in listed:
        _one_of(name, formats.names(), where)
        policies = [quantize["activations"], quantize["weights"]]
        if any(item.get("per") == "block" or item.get("format") == name for item in policies):
            raise _wrong(f"'{name}' is the recipe's own format, or its scales lie in blocks", where)
    return listed


def _policy(table: Mapping[str, Any], which: str, here: str) -> TensorPolicy:
    moving = which == "activations"
    known = formats.names() + (("none",) if moving else ())
    policy = TensorPolicy(
        _one_of(_text(table, "format", here), known, here),
        _one_of(table["per"], ("tensor", "token" if moving else "channel", "block"), f"{here}.per"),
        _scale(table["scale"], f"{here}.scale", moving=moving),
        _sizes(table.get("block", []), here),
        _stored(table, here),
    )
    if (policy.per == "block") != bool(policy.block):
        raise _wrong(f"per is '{policy.per}' and block is {list(policy.block)}", f"{here}.block")
    if policy.scale == "mse" and policy.stored.format is not None:
        raise _wrong("scales that are stored themselves follow from the largest values: 'amax'", f"{here}.scale")
    if moving and (len(policy.block) > 1 or (policy.per != "tensor" and policy.scale != "dynamic")):
        raise _wrong("an activation's scales per token or block (of one size) are dynamic", f"{here}.scale")
    return policy


def _scale(value: Any, where: str, *, moving: bool) -> str:
    """How a scale is found: a method; for a weight `amax` or `mse`, for an activation `dynamic`, too."""
    if moving and value == "dynamic":
        return "dynamic"
    try:
        method = parse(str(value))
    except ValueError as error:
        raise _wrong(str(error) + (", or dynamic" if moving else ""), where) from error
    if method.headroom != 1 or not (moving or method.name in ("amax", "mse")):
        raise _wrong(f"'{value}' is none of {SPELLINGS + ', dynamic' if moving else 'amax, mse'}", where)
    return method.text


def _sizes(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 2 or any(type(size) is not int or size < 1 for size in value):
        raise _wrong(f"{value!r} is no list of one or two sizes", f"{where}.block")
    return tuple(value)


def _stored(table: Mapping[str, Any], where: str) -> ScaleFormat:
    try:
        return ScaleFormat(table.get("scale_format"), table.get("scale_rule", "max"), table.get("outer", False))
    except ValueError as error:
        raise _wrong(str(error), f"{where}.scale_format") from error


def _one_of(value: Any, allowed: tuple[str, ...], where: str) -> Any:
    if value not in allowed:
        raise _wrong(f"'{value}' is none of {', '.join(allowed)}", where)
    return value


def _truth(value: Any, key: str, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(f"'{key}' is true or false", where)
    return value


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(table[key], str):
        raise _wrong(f"'{key}' is no text", where)
    return str(table[key])


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(f"'{key}' is no list of texts", where)
    return tuple(value)


def _wrong(what: str, where: str) -> UsageError:
    return UsageError(
        what, where=where, do="python -m fp8graph recipes show fp8-default prints one that works", code="FG140"
    )
