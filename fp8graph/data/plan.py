"""The plan: for every op of the normalized graph what is done, why, and every number that data has found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from fp8graph import formats
from fp8graph.base import canon
from fp8graph.base.canon import nearest_float32, shortest_float32
from fp8graph.base.errors import UsageError
from fp8graph.data.arrayref import ArrayRef
from fp8graph.data.document import check_schema, malformed
from fp8graph.formats.spec import FP32_SCALES, Granularity, ScaleFormat

OpKey = str
# The rules of scales that a weight came with, and of a Q/DQ pair that an activation came with.
CAME, PAIR = "model", "pair"
Origin = Literal["computed", "observed", "given", "dynamic"]
Do = Literal["quantize", "keep"]
AdjustKind = Literal["channels", "split", "terms", "codes", "bias"]
High = Literal["fp32", "fp16", "bf16"]
KIND, VERSION = "plan", 1
# A plan lies beside the model that it was carried out on, its arrays beside the plan.
PLAN_SUFFIX, ARRAYS_SUFFIX = ".plan.json", ".plan.safetensors"
_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


@dataclass(frozen=True)
class Reason:
    """Why an op is treated as it is. `by`: the rule, recipe line, user option or target row that decided."""

    code: str
    by: str
    text: str

    def __post_init__(self) -> None:
        if not (self.code and self.by and self.text):
            raise ValueError("a reason has a code, a source and a text")


@dataclass(frozen=True)
class Scale:
    """Where a scale comes from, and its number where it has one.

    origin    computed: derived from the weight anew at each rewriting; observed: from calibration data, `value` is
              None until the plan is settled; given: came with the model or follows from the op (softmax); dynamic:
              computed in the graph.
    rule      how the number is found (`data.method`), such as `amax`; `amax*2` leaves twice the range as headroom; of
              a weight that is computed `amax` or `mse`; `model`: a weight came as codes, and stays what it is
              (computed: came in another format, and keeps its scales times a power of two); `pair`: an activation came
              with Q/DQ, which stays.
    value     float32, > 0; None for `computed` and `dynamic`, and for weights that came as codes, whose scales the
              model holds. With `stored.outer` it is the scale above the others.
    stored    how scales are stored, where not as float32
    over      other tensors (scope and name) whose ranges count, too, where several tensors have one scale
    """

    origin: Origin
    rule: str
    value: float | None = None
    over: tuple[str, ...] = ()
    stored: ScaleFormat = FP32_SCALES

    def __post_init__(self) -> None:
        if self.origin not in get_args(Origin):
            raise ValueError(f"unknown origin '{self.origin}'")
        if self.value is not None and not _SMALLEST <= self.value <= _LARGEST:
            raise ValueError(f"a scale is a positive, normal float32, not {self.value}")
        if self.origin in ("computed", "dynamic") and self.value is not None:
            raise ValueError(f"a {self.origin} scale holds no number")
        if self.origin == "given" and self.value is None and self.rule != CAME:
            raise ValueError("a given scale holds its number")

    @property
    def of_weight(self) -> bool:
        """Whether it is a stored weight's: the model holds the numbers."""
        return self.origin == "computed" or (self.origin == "given" and self.rule == CAME)


@dataclass(frozen=True)
class Quant:
    """One quantized tensor: format x granularity x scale. Equal Quants share one Q/DQ pair.

    `value` is the tensor's name in the normalized graph, with its scope where it lies in a body.
    """

    value: str
    format: str
    granularity: Granularity
    scale: Scale

    def __post_init__(self) -> None:
        if self.format not in formats.names():
            raise ValueError(f"unknown format '{self.format}'")

    @property
    def settled(self) -> bool:
        """Whether no number is missing."""
        return self.scale.origin != "observed" or self.scale.value is not None


@dataclass(frozen=True)
class Adjust:
    """What a repair has found for one operand, as an array of the plan's sidecar.

    kind    `codes`: the rounded weight itself; `channels`: powers of two that the channels of the operand are divided
            by, and its weight is multiplied by; `terms`: channels that are in two FP8 terms; `bias`: float32, what is
            added to the bias. `split` (outlier channels) is reserved.
    slot    input slot of the operand
    rule    the repair that found it
    weight  digest of the weight it was solved for: on another weight it is refused
    quant   digest of how that weight was quantized then, `quant_digest`; planning fills it in
    """

    kind: AdjustKind
    slot: int
    rule: str
    value: ArrayRef
    weight: str
    quant: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(AdjustKind):
            raise ValueError(f"unknown adjustment '{self.kind}'")


def quant_digest(quant: Quant | None) -> str:
    """Digest of all that says how one operand is rounded; empty for one that is not."""
    return "" if quant is None else canon.digest(_quant_to_json(quant)).removeprefix("sha256:")[:16]


@dataclass(frozen=True)
class Decision:
    """What is done with one op. `inputs` maps input slots to what is quantized there (empty where `do` is keep);
    `high` is the type of its high-precision part; `group` names the ops it was decided with, or is empty; `adjust` is
    what repairs have found for it."""

    op_type: str
    name: str
    do: Do
    why: Reason
    high: High = "fp32"
    inputs: Mapping[int, Quant] = field(default_factory=dict)
    group: str = ""
    adjust: tuple[Adjust, ...] = ()

    def __post_init__(self) -> None:
        if self.do not in get_args(Do) or self.high not in get_args(High):
            raise ValueError(f"unknown decision '{self.do}' or type '{self.high}'")
        if (self.do == "quantize") != bool(self.inputs):
            raise ValueError("an op is quantized exactly when some input is")

    @property
    def precision(self) -> str:
        """What it is to compute in: the family of both operands (fp8, int8, fp4), of two families the weight's (int4);
        `storage` where only one operand is quantized; its high precision where it is kept."""
        both = [self.inputs[slot] for slot in (0, 1) if slot in self.inputs]
        if len(both) < 2:
            return "storage" if self.inputs else self.high
        weight = next((quant for quant in both if quant.scale.of_weight), both[0])
        return formats.family(weight.format)

    def kept(self, why: Reason) -> Decision:
        """The same op in high precision."""
        return replace(self, do="keep", why=why, inputs={}, adjust=())


class ProfileError(UsageError, ValueError):
    """Three shapes that make no profile: whoever makes one catches what suits them."""

    def __init__(self, what: str, given: Profile) -> None:
        why = f"min {given.min}, opt {given.opt}, max {given.max}"
        super().__init__(what, where="Profile", why=why, do="give min <= opt <= max, axis by axis", code="FG100")


@dataclass(frozen=True)
class Cache:
    """Keys or values of earlier steps, held in FP8 from step to step: a graph input, named by the plan, and `output`,
    which is that input in the next step (empty where the model returns none). `quant` is the scale of both."""

    output: str
    quant: Quant


@dataclass(frozen=True)
class Profile:
    """The shapes of one graph input: least, most usual, largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ProfileError("the three shapes of a profile have one rank", self)
        if any(not 0 <= low <= mid <= high for low, mid, high in zip(self.min, self.opt, self.max, strict=True)):
            raise ProfileError(f"min <= opt <= max does not hold for {self.min}, {self.opt}, {self.max}", self)


Shapes = Mapping[str, Profile]


def shapes_to_json(shapes: Shapes) -> dict[str, Any]:
    """The shapes of one optimisation profile as plain data."""
    return {name: {"min": list(p.min), "opt": list(p.opt), "max": list(p.max)} for name, p in shapes.items()}


def shapes_from_json(item: Any) -> Shapes:
    """The shapes that `shapes_to_json` wrote. Raises KeyError, TypeError, ValueError or AttributeError otherwise."""
    return {
        str(name): Profile(*(tuple(int(size) for size in shape[which]) for which in ("min", "opt", "max")))
        for name, shape in item.items()
    }


@dataclass(frozen=True)
class Plan:
    """All decisions about one model structure for one target.

    structure   digest of ops, shapes and attributes of the normalized graph, weights left out: a plan survives
                fine-tuning
    target      as asked, such as `tensorrt-rtx:sm89`
    recipe      the recipe as resolved, a plain mapping (`Recipe.to_json`)
    asked       what the user asked for, beside it: options by their names
    shapes      the profiles that the plan was made for
    caches      inputs that are held in FP8 (`--kv-cache fp8`)
    ops         every op of the normalized graph exactly once, in graph order
    data        where the observed numbers come from: `random` is stamped here; `none` where there were none to observe,
                empty until the plan is settled
    search      what a search for an accuracy has done: its goal, what was reached on which samples, each step
    arrays      the arrays that decisions refer to, by name; they lie in a sidecar and are no part of the document
    """

    structure: str
    target: str
    recipe: Mapping[str, Any]
    ops: Mapping[OpKey, Decision]
    shapes: Shapes = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    arrays: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    caches: Mapping[str, Cache] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)

    def quantized(self) -> Iterator[tuple[OpKey, Decision]]:
        """Ops that are quantized, in graph order."""
        return ((key, op) for key, op in self.ops.items() if op.do == "quantize")

    def kept(self) -> Iterator[tuple[OpKey, Decision]]:
        """Ops that stay in high precision, in graph order."""
        return ((key, op) for key, op in self.ops.items() if op.do == "keep")

    def quants(self) -> Iterator[Quant]:
        """Every distinct Quant once, in graph order."""
        own = (quant for _, op in self.quantized() for quant in op.inputs.values())
        return iter(dict.fromkeys([*own, *(cache.quant for cache in self.caches.values())]))

    @property
    def settled(self) -> bool:
        """Whether no number is missing, so that the plan can be carried out without data."""
        return all(quant.settled for quant in self.quants())

    def to_json(self, sidecar: str = "") -> dict[str, Any]:
        """The plan as a document; `sidecar` is the sha256 of the file that holds its arrays."""
        return {
            "schema": f"fp8graph.{KIND}/{VERSION}",
            "structure": self.structure,
            "sidecar": sidecar,
            "target": self.target,
            "data": self.data,
            "asked": dict(self.asked),
            "recipe": dict(self.recipe),
            "shapes": shapes_to_json(self.shapes),
            **({"caches": {n: _cache_to_json(c) for n, c in self.caches.items()}} if self.caches else {}),
            **({"search": dict(self.search)} if self.search else {}),
            "ops": {key: _decision_to_json(op) for key, op in self.ops.items()},
        }

    @staticmethod
    def from_json(document: Any, where: str = "plan") -> Plan:
        """Reads a plan document. Raises InputError FG111 for anything that is not one."""
        document = check_schema(document, KIND, VERSION, where)
        try:
            return Plan(
                structure=str(document["structure"]),
                target=str(document["target"]),
                recipe=dict(document["recipe"]),
                asked=dict(document["asked"]),
                data=str(document["data"]),
                shapes=shapes_from_json(document["shapes"]),
                caches={str(name): _cache_from_json(item) for name, item in document.get("caches", {}).items()},
                search=dict(document.get("search", {})),
                ops={str(key): _decision_from_json(item) for key, item in document["ops"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise malformed(KIND, where, error) from error


def _decision_to_json(op: Decision) -> dict[str, Any]:
    item: dict[str, Any] = {
        "op_type": op.op_type,
        "name": op.name,
        "do": op.do,
        "high": op.high,
        "why": {"code": op.why.code, "by": op.why.by, "text": op.why.text},
    }
    if op.group:
        item["group"] = op.group
    if op.adjust:
        item["adjust"] = [_adjust_to_json(adjust) for adjust in op.adjust]
    if op.inputs:
        item["inputs"] = {str(slot): _quant_to_json(quant) for slot, quant in sorted(op.inputs.items())}
    return item


def _cache_to_json(cache: Cache) -> dict[str, Any]:
    return {"output": cache.output, "quant": _quant_to_json(cache.quant)}


def _cache_from_json(item: Mapping[str, Any]) -> Cache:
    return Cache(str(item["output"]), _quant_from_json(item["quant"]))


def _adjust_to_json(adjust: Adjust) -> dict[str, Any]:
    item = {"kind": adjust.kind, "slot": adjust.slot, "rule": adjust.rule, "weight": adjust.weight}
    return {**item, **({"quant": adjust.quant} if adjust.quant else {}), "value": adjust.value.to_json()}


def _adjust_from_json(item: Mapping[str, Any]) -> Adjust:
    value = ArrayRef.from_json(item["value"])
    return Adjust(
        item["kind"], int(item["slot"]), str(item["rule"]), value, str(item["weight"]), str(item.get("quant", ""))
    )


def _quant_to_json(quant: Quant) -> dict[str, Any]:
    scale: dict[str, Any] = {"origin": quant.scale.origin, "rule": quant.scale.rule}
    if quant.scale.value is not None:
        scale["value"] = shortest_float32(quant.scale.value)
    if quant.scale.over:
        scale["over"] = list(quant.scale.over)
    if quant.scale.stored.format is not None:
        scale["stored"] = quant.scale.stored.to_json()
    return {
        "value": quant.value,
        "format": quant.format,
        "granularity": quant.granularity.to_json(),
        "scale": scale,
    }


def _decision_from_json(item: Mapping[str, Any]) -> Decision:
    why = item["why"]
    return Decision(
        op_type=str(item["op_type"]),
        name=str(item["name"]),
        do=item["do"],
        high=item["high"],
        why=Reason(str(why["code"]), str(why["by"]), str(why["text"])),
        group=str(item.get("group", "")),
        inputs={int(slot): _quant_from_json(quant) for slot, quant in item.get("inputs", {}).items()},
        adjust=tuple(_adjust_from_json(adjust) for adjust in item.get("adjust", [])),
    )


def _quant_from_json(item: Mapping[str, Any]) -> Quant:
    scale = item["scale"]
    value = scale.get("value")
    return Quant(
        value=str(item["value"]),
        format=str(item["format"]),
        granularity=Granularity.from_json(item["granularity"]),
        scale=Scale(
            scale["origin"],
            str(scale["rule"]),
            None if value is None else nearest_float32(float(value)),
            tuple(str(name) for name in scale.get("over", ())),
            ScaleFormat.from_json(scale["stored"]) if "stored" in scale else FP32_SCALES,
        ),
    )
