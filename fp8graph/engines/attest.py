"""Attesting: what an engine really does with every op that was to be quantized.

Three witnesses are heard: the builder's own layer listing, kept in the manifest beside the engine; the program text in
the engine file; and, where a GPU is, what the maker's inspector reads from that file. A verdict rests on one that has
read the file, and all that are heard have to agree. A disagreement, an op that no layer names, a file in an unknown
form and an engine of another model are `unknown`, which is no success.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from fp8graph.base.errors import UsageError
from fp8graph.base.files import sha256_of
from fp8graph.base.findings import Finding
from fp8graph.data import target as targets
from fp8graph.data.attestation import HIGH, SILENT, Attestation, OpVerdict, Verdict, WeightBytes
from fp8graph.data.plan import Decision, Plan, Shapes
from fp8graph.engines import carried, inspector, rows, sizes
from fp8graph.engines import manifest as manifests
from fp8graph.engines.causes import caution, likely_cause
from fp8graph.engines.manifest import Manifest
from fp8graph.engines.program import EngineFile
from fp8graph.engines.promises import Promise, of_model, of_plan, operands
from fp8graph.engines.reading import attribute, read_engine
from fp8graph.engines.sites import Site, constants, sites
from fp8graph.engines.witness import NodeName, Testimony, Witness
from fp8graph.formats import family
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types

# From best to worst: an op that stands for several nodes, or runs in several profiles, has the worst of its verdicts.
_ORDER: tuple[Verdict, ...] = (
    *("fp8", "int8", "fp4", "storage", "emulated", "folded", "high", "fell-back", "unknown", "absent"),
)
_SAID: Mapping[str, Verdict] = {
    "fp8": "fp8",
    "int8": "int8",
    "fp4": "fp4",
    "emulated": "emulated",
    "high": "fell-back",
    "generated": "fell-back",
}
_NOT_SMALL = ("storage", "high", "generated")  # the product runs in high precision, whatever it reads
_READ_THE_FILE = ("file", "inspector")
_SHOWN = 12  # characters of a digest that a sentence shows


def attest_engine(engine: Path, model: Path, plan: Plan | None, *, plan_sha256: str = "") -> Attestation:
    """The verdict on every op that `plan` quantizes; without a plan, on every op whose Q/DQ in `model` promise it.

    model   the model that the engine was built from; one that is not what the plan wrote is told by the findings

    Raises InputError (status 3): FG508 for a file that is no engine, FG106 for one that is no model, FG111 for a
    manifest that is damaged.
    """
    case = _Case.open(engine, model, plan, plan_sha256)
    court = _Court.of(case)
    promises = of_plan(plan, case.found) if plan is not None else of_model(case.model, case.found, case.known)
    verdicts = {promise.key: court.verdict(promise) for promise in promises}
    file, said = case.file, case.manifest
    return Attestation(
        engine=file.sha256,
        model=case.model_sha256,
        plan=plan_sha256,
        builder=said.builder if said is not None and file.unknown else file.builder,
        chips=file.chips or (said.chips if said is not None else ()),
        profiles=court.profiles,
        verdicts=verdicts,
        others={promise.key: court.verdict(promise) for promise in _unplanned(promises, case)},
        notes=(*case.notes, *_plan_notes(case, plan, promises)),
        weights=WeightBytes(file.constant_bytes, _forecast_bytes(case, promises)),
    )


@dataclass
class _Case:
    """What there is to read: an engine, its manifest, the model, and how they belong together.

    stranger    why nothing in the engine speaks of this model; empty where it does, or nobody can say
    silent      why a witness is not heard
    shapes      of all inputs, as built
    """

    path: Path
    file: EngineFile
    manifest: Manifest | None
    model: ir.Model
    model_sha256: str
    decisions: Mapping[str, Decision]
    found: Sequence[Site]
    known: set[int]
    shapes: Shapes
    stranger: str
    silent: Mapping[str, str]
    notes: Sequence[Finding]

    @staticmethod
    def open(engine: Path, model_path: Path, plan: Plan | None, plan_sha256: str) -> _Case:
        """Reads all of it. Raises as `attest_engine` does."""
        file = read_engine(engine)
        document, missing, changed = manifests.find(engine, file.sha256)
        manifest = Manifest.from_json(document, str(manifests.beside(engine))) if document is not None else None
        if manifest is not None and file.chips and (lacking := [c for c in manifest.chips if c not in file.chips]):
            file = replace(file, ops=(), unknown=f"its programs do not serve {', '.join(lacking)}")
        source = load(model_path)
        model = source.model
        with contextlib.suppress(Exception):  # onnx raises many types; causes and sizes then say less
            infer_types(model)
        shapes = dict(plan.shapes) if plan is not None else {}
        if manifest is not None and manifest.profiles:
            shapes = dict(manifest.profiles[0]) | shapes
        digest = sha256_of(model_path)
        silent = {"builder": missing or "its manifest holds no layers", "file": file.unknown}
        case = _Case(
            *(engine, file, manifest, model, digest, carried.decisions(plan)),
            *(sites(model), constants(model), shapes, "", silent, []),
        )
        case.stranger = _stranger(manifest, digest, source.external)
        case.notes = list(_notes(case, missing, planned=plan is not None, changed=changed, plan_sha256=plan_sha256))
        return case


def _stranger(manifest: Manifest | None, model_sha256: str, data: Sequence[Path]) -> str:
    if manifest is None:
        return ""
    if manifest.model == model_sha256:
        other = [path.name for path in data if manifest.data.get(path.name, "") != sha256_of(path)]
        return f"the engine was built when the model had other data in {', '.join(other)}" if other else ""
    these = f"sha256 {manifest.model[:_SHOWN]}, this one has {model_sha256[:_SHOWN]}"
    return f"the engine was built from another model: {these}"


def _notes(case: _Case, missing: str, *, planned: bool, changed: bool, plan_sha256: str) -> list[Finding]:
    """What concerns the engine as a whole."""
    notes, manifest = [], case.manifest
    if case.stranger:
        do = "give --model the file that it was built from, or build it anew from this one"
        notes.append(Finding("FG509", "error", "", f"{case.stranger}; nothing in it speaks of this model", do))
    if manifest is not None and manifest.plan and plan_sha256 and manifest.plan != plan_sha256:
        why = f"sha256 {manifest.plan[:_SHOWN]}, this one has {plan_sha256[:_SHOWN]}"
        do = "give --plan the one that `build` was given, or build anew with this one"
        notes.append(Finding("FG509", "error", "", f"the engine was built with another plan: {why}", do))
    if manifest is not None and manifest.plan and not planned:
        text = "the engine was built with a plan, which was not given: the model's own Q/DQ are the promise"
        notes.append(Finding("FG511", "info", "", text, "give it with --plan"))
    if changed:
        text = f"the engine was changed after it was built, or its manifest is another's ({missing})"
        do = f"build it anew, or move {manifests.beside(case.path).name} away where the engine was built elsewhere"
        notes.append(Finding("FG510", "error", "", f"{text}: the engine file is the only witness", do))
    elif manifest is None or manifest.layers is None:
        text = f"the engine file is the only witness ({case.silent['builder']})"
        if manifest is None:
            text += ": nothing says from which model it was built, ops are found by their names alone"
        notes.append(Finding("FG511", "info", "", text, "python -m fp8graph build writes a manifest beside the engine"))
    if case.file.unknown:
        text = f"the engine file cannot be read: {case.file.unknown}"
        notes.append(Finding("FG508", "error", "", text, "python -m fp8graph explain FG508"))
    return notes


def _plan_notes(case: _Case, plan: Plan | None, promises: Sequence[Promise]) -> list[Finding]:
    """Where the model is not what the plan wrote, although every operand is quantized as planned."""
    if plan is None:
        return []
    do = "python -m fp8graph optimize SOURCE -o MODEL --plan PLAN writes what a plan says"
    texts = list(carried.strangers(plan, case.found, case.model, case.known))
    for promise in promises:
        text = carried.differing(promise, case.decisions[promise.key], case.model, case.known)
        texts += [(promise.key, text)] if text else []
    return [Finding("FG512", "error", key, text, do) for key, text in texts]


def _unplanned(promises: Sequence[Promise], case: _Case) -> list[Promise]:
    """The products that nobody wanted quantized, as promises of high precision."""
    taken = {id(site.node) for promise in promises for site in promise.sites}
    return [
        Promise(site.place.key, site.node.op_type, site.node.name or "", HIGH, (site,))
        for site in case.found
        if site.node.op_type in rows.SIZED and site.place.key and id(site.node) not in taken
    ]


def _forecast_bytes(case: _Case, promises: Sequence[Promise]) -> int | None:
    planned: dict[int, float] = {}
    for promise in promises:
        decision = case.decisions.get(promise.key)
        if decision is None or len(promise.sites) != 1:
            continue
        given = promise.sites[0].node.inputs
        for slot, quant in decision.inputs.items():
            value = given[slot] if slot < len(given) else None
            if value is not None and value.const_value is not None:
                planned[id(value)] = {"fp4": 0.5, "int4": 0.5}.get(family(quant.format), 1.0)
    fp8 = {id(site.node) for promise in promises if promise.planned == "fp8" for site in promise.sites}
    try:
        held = sizes.constant_bytes(case.model, planned)
        return None if held is None else held + sizes.added_bytes(case.model, case.shapes, fp8)
    except Exception:  # external data that is gone, types that onnx_ir does not know: a size is no reason to fail
        return None


@dataclass
class _Court:
    """The witnesses, and what is known of every op beside them. A witness that is None is silent.

    forecasts, heads, names   by id() of the node
    """

    case: _Case
    witnesses: Mapping[str, Witness | None]
    silent: Mapping[str, str]
    sizes: Mapping[str, tuple[int | None, int | None]]
    rows: Mapping[str, str]
    forecasts: Mapping[int, str]
    heads: set[int]
    profiles: int
    names: Mapping[int, NodeName]

    @staticmethod
    def of(case: _Case) -> _Court:
        """Calls the witnesses."""
        file, manifest = case.file, case.manifest
        names = [site.name for site in case.found]
        builder = (manifest.builder if manifest is not None else file.builder).partition(" ")[0]
        listed = manifest.layers if manifest is not None else None
        inspected, mute = inspector.inspect(case.path, builder)
        profiles = max(file.profiles, *(op.profile + 1 for op in (*(listed or ()), *(inspected or ()))), 1)
        witnesses = {
            "builder": Witness(attribute(builder, listed, case.found), names, profiles) if listed is not None else None,
            "file": Witness(attribute(builder, file.ops, case.found), names, profiles) if not file.unknown else None,
        }
        if inspected is not None or mute:  # expected only where a GPU is
            witnesses["inspector"] = Witness(inspected, names, profiles) if inspected is not None else None
        chips = file.chips or (manifest.chips if manifest is not None else ())
        return _Court(
            case,
            witnesses,
            {**case.silent, "inspector": mute},
            sizes.op_sizes(case.model, case.shapes),
            *_table(case, builder, chips),
            rows.heads(case.model),
            max([1, *(witness.profiles for witness in witnesses.values() if witness is not None)]),
            {id(site.node): site.name for site in case.found},
        )

    def verdict(self, promise: Promise) -> OpVerdict:
        """The verdict on one op: the worst of the nodes that stand for it."""
        if not promise.sites:
            why = "the model holds no node with its key or name"
            return OpVerdict(promise.op_type, promise.name, promise.planned, "absent", why, code="FG502")
        said = [self._of_site(site, promise) for site in promise.sites]
        worst = max(said, key=lambda one: _ORDER.index(one.verdict))
        keys = [site.place.key for site in promise.sites]
        measures = [self.sizes.get(key, (None, None)) for key in keys]
        return replace(
            worst,
            op_type=promise.op_type,
            name=promise.name or promise.sites[0].node.name or "",
            macs=_sum([size[0] for size in measures]),
            weight_bytes=_sum([size[1] for size in measures]),
            row=next((self.rows[key] for key in keys if key in self.rows), ""),
            forecast=self._forecast(promise.sites),
            head=all(id(site.node) in self.heads for site in promise.sites),
        )

    def _of_site(self, site: Site, promise: Promise) -> OpVerdict:
        node, planned = site.node, promise.planned
        if self.case.stranger:
            why = self.case.stranger.partition(":")[0]
            silent = dict.fromkeys(self.witnesses, SILENT + why)
            return OpVerdict(node.op_type, node.name or "", planned, "unknown", why, silent, code="FG509")
        each = {name: self._heard(site, planned, one) for name, one in self.witnesses.items() if one is not None}
        said = [
            self._weigh(site, planned, {name: words[profile] for name, words in each.items()})
            for profile in range(self.profiles)
        ]
        worst = max(said, key=lambda one: _ORDER.index(one.verdict))
        differ = len({one.verdict for one in said}) > 1
        why = worst.why
        if differ:
            why = "; ".join(
                f"profile {p}: {one.verdict}" + (f", {one.why}" if one.why else "") for p, one in enumerate(said)
            )
        if worst.verdict == planned and (lacking := self._lacking(promise, site)):
            worst, why = _Word("unknown", "", "FG512"), f"{lacking}; the engine runs a node of its name in {planned}"
        return OpVerdict(
            *(node.op_type, node.name or "", planned, worst.verdict, why, self._words(site)),
            code=worst.code,
            profiles=tuple(one.verdict for one in said) if differ else (),
        )

    def _heard(self, site: Site, planned: str, witness: Witness) -> list[Testimony]:
        """What a witness says of a node in each profile; where a weight is to be stored small, of its dequantization,
        too: a kernel of its own may do that before a product that then reads half precision."""
        said = list(witness.in_profiles(site.name))
        if planned != "storage":
            return said
        nodes = {id(each.dequantize) for each in operands(site, self.case.model, self.case.known) if each.constant}
        held = [witness.in_profiles(self.names[node]) for node in nodes if node in self.names]
        apart = "; its weight is dequantized by a kernel of its own"
        return [
            Testimony("storage", word.text + apart)
            if word.word in ("high", "generated") and any(each[profile].word == "storage" for each in held)
            else word
            for profile, word in enumerate(said)
        ]

    def _forecast(self, found: Sequence[Site]) -> str:
        """What was expected of an op: where several nodes stand for it and differ, all of it."""
        return ", ".join(dict.fromkeys(self.forecasts.get(id(site.node), "") for site in found if self.forecasts))

    def _lacking(self, promise: Promise, site: Site) -> str:
        decision = self.case.decisions.get(promise.key)
        return carried.lacking(decision, site, self.case.model, self.case.known) if decision is not None else ""

    def _words(self, site: Site) -> dict[str, str]:
        """What each witness says of a node, over all profiles."""
        words = {}
        for name, witness in self.witnesses.items():
            said = witness.says(site.name) if witness is not None else None
            words[name] = f"{said.word}: {said.text}" if said is not None else SILENT + self.silent[name]
        return words

    def _weigh(self, site: Site, planned: str, heard: Mapping[str, Testimony]) -> _Word:
        """The verdict in one profile."""
        first = next((name for name in _READ_THE_FILE if name in heard), None)
        if first is None:
            listed = heard.get("builder")
            also = f"; the builder's listing alone says {listed.word} ({listed.text})" if listed else ""
            return _Word("unknown", f"the engine file cannot be read: {self.silent['file']}{also}", "FG508")
        verdicts = {name: self._verdict(site, planned, testimony) for name, testimony in heard.items()}
        if len(set(verdicts.values())) > 1:
            each = ", ".join(f"the {name} says {one.word} ({one.text})" for name, one in heard.items())
            return _Word("unknown", f"the witnesses disagree: {each}", "FG503")
        verdict, testimony = verdicts[first], heard[first]
        alone = f"on the word of the engine file alone: {self.silent['builder']}" if len(heard) == 1 else ""
        if verdict == planned:
            pair = operands(site, self.case.model, self.case.known) if verdict == "fp8" else ()
            return _Word(verdict, "; ".join(part for part in (caution(pair), alone) if part))
        code = "FG502" if verdict == "unknown" else "FG501"
        return _Word(
            verdict, "; ".join(part for part in (self._why(site, planned, verdict, testimony), alone) if part), code
        )

    def _verdict(self, site: Site, planned: str, testimony: Testimony) -> Verdict:
        if testimony.word in _NOT_SMALL and self._is_simulated(site):
            return "emulated"
        if testimony.word == "storage":
            # A small weight is what was asked for only where nothing more was.
            return "storage" if planned in ("storage", HIGH) else "fell-back"
        if testimony.word == "missing" and self._is_constant(site):
            return "folded"
        said = _SAID.get(testimony.word, "unknown")
        return HIGH if planned == HIGH and said == "fell-back" else said

    def _is_simulated(self, site: Site) -> bool:
        """Whether both operands are in MXFP8: where no kernel multiplies it, one rounds and another one multiplies."""
        pair = operands(site, self.case.model, self.case.known)
        kinds = {each.dequantize.op_type if each.dequantize is not None else "" for each in pair}
        return kinds == {"TRT_MXFP8DequantizeLinear"}

    def _is_constant(self, site: Site) -> bool:
        return all(value is None or id(value) in self.case.known for value in site.node.inputs)

    def _why(self, site: Site, planned: str, verdict: Verdict, testimony: Testimony) -> str:
        if verdict == "folded":
            return "all its inputs are constant: it was computed at build time"
        if verdict == "unknown" and testimony.word == "missing":
            return "no layer of the engine names it"
        cause = ""
        if verdict == "fell-back":
            pair = operands(site, self.case.model, self.case.known)
            cause = likely_cause(site, pair, self.case.known, planned, testimony.word)
        return f"{cause} ({testimony.text})" if cause else testimony.text


@dataclass(frozen=True)
class _Word:
    """A verdict before it is one of an op."""

    verdict: Verdict
    why: str = ""
    code: str = ""


def _table(case: _Case, builder: str, chips: Sequence[str]) -> tuple[dict[str, str], dict[int, str]]:
    """Row and forecast of every product, for the target that the engine was built for; none where it is not known."""
    if builder not in targets.names():
        return {}, {}
    try:
        aim = targets.load(builder + (f":{'+'.join(chips)}" if chips else ""))
    except UsageError:  # chips of a version that our tables do not know
        aim = targets.load(builder)
    facts = rows.facts_under(case.model, case.shapes)
    return rows.statuses(case.model, aim, facts), rows.forecasts(case.model, aim, facts)


def _sum(numbers: Sequence[int | None]) -> int | None:
    return None if any(size is None for size in numbers) else sum(size or 0 for size in numbers)
