"""Attesting: what an engine really does with every op that was to be quantized.

Two witnesses are heard: the builder's own layer listing, kept in the manifest beside the engine, and the program text
in the engine file. They have to agree. A disagreement, an op that no layer names and a file in an unknown form are
`unknown`, which is no success.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fp8graph.base.files import sha256_of
from fp8graph.data.attestation import Attestation, OpVerdict, Verdict
from fp8graph.data.plan import Plan
from fp8graph.engines import manifest as manifests
from fp8graph.engines.causes import caution, likely_cause
from fp8graph.engines.manifest import Manifest
from fp8graph.engines.program import EngineFile, read_engine
from fp8graph.engines.promises import Promise, of_model, of_plan, operands
from fp8graph.engines.sites import Site, constants, sites
from fp8graph.engines.sizes import op_sizes
from fp8graph.engines.witness import Testimony, Witness
from fp8graph.graph.load import load
from fp8graph.graph.protos import infer_types

# From best to worst: an op that stands for several nodes has the worst of their verdicts.
_ORDER: tuple[Verdict, ...] = ("fp8", "int8", "fp4", "storage", "emulated", "folded", "fell-back", "unknown", "absent")
_SAID: Mapping[str, Verdict] = {
    "fp8": "fp8",
    "int8": "int8",
    "fp4": "fp4",
    "high": "fell-back",
    "generated": "fell-back",
}


def attest_engine(
    engine: Path,
    model: Path,
    plan: Plan | None,
    *,
    plan_sha256: str = "",
    manifest: dict[str, Any] | None = None,
) -> Attestation:
    """The verdict on every op that `plan` quantizes; without a plan, on every op whose Q/DQ in `model` promise it.

    model      the model that the engine was built from; one that is not what the plan wrote is told by the verdicts
    manifest   None: `engine`.json, where it is there and speaks of this very file

    Raises InputError (status 3): FG508 for a file that is no engine, FG106 for one that is no model, FG111 for a
    manifest of ours that is damaged.
    """
    court = _Court.open(engine, model, plan, manifest)
    verdicts = {promise.key: court.verdict(promise) for promise in court.promises(plan)}
    file, said = court.file, court.manifest
    return Attestation(
        engine=file.sha256,
        model=sha256_of(model),
        plan=plan_sha256,
        builder=said.builder if said is not None and file.unknown else file.builder,
        chips=file.chips or (said.chips if said is not None else ()),
        profiles=court.profiles,
        verdicts=verdicts,
    )


@dataclass
class _Court:
    """An engine, the model it was built from, and the witnesses. A witness that is None has `silent` say why."""

    file: EngineFile
    manifest: Manifest | None
    model: ir.Model
    found: Sequence[Site]
    known: set[int]
    sizes: Mapping[str, tuple[int | None, int | None]]
    witnesses: Mapping[str, Witness | None]
    silent: Mapping[str, str]
    note: str

    @staticmethod
    def open(engine: Path, model_path: Path, plan: Plan | None, given: dict[str, Any] | None) -> _Court:
        """Reads all there is to read."""
        file = read_engine(engine)
        document, missing = (given, "") if given is not None else manifests.find(engine, file.sha256)
        manifest = Manifest.from_json(document, str(manifests.beside(engine))) if document is not None else None
        if manifest is not None and manifest.engine != file.sha256:
            manifest, missing = None, "the manifest given speaks of another file"
        if manifest is not None and file.chips and (lacking := [c for c in manifest.chips if c not in file.chips]):
            file = replace(file, ops=(), unknown=f"its programs do not serve {', '.join(lacking)}")
        model = load(model_path).model
        with contextlib.suppress(Exception):  # onnx raises many types; causes and sizes then say less
            infer_types(model)
        found = sites(model)
        names = [site.name for site in found]
        layers = manifest.layers if manifest is not None else None
        profiles = max(file.profiles, *(op.profile + 1 for op in layers or ()), 1)
        shapes = dict(plan.shapes) if plan is not None else {}
        if manifest is not None and manifest.profiles:
            shapes = dict(manifest.profiles[0]) | shapes
        note = ""
        if manifest is not None and manifest.model != sha256_of(model_path):
            note = "its manifest says that the engine was built from another model"
        return _Court(
            file,
            manifest,
            model,
            found,
            constants(model),
            op_sizes(model, shapes),
            {
                "builder": Witness(layers, names, profiles) if layers is not None else None,
                "file": Witness(file.ops, names, profiles) if not file.unknown else None,
            },
            {"builder": missing or "its manifest holds no layers", "file": file.unknown},
            note,
        )

    @property
    def profiles(self) -> int:
        """Optimisation profiles of the engine."""
        return max([1, *(witness.profiles for witness in self.witnesses.values() if witness is not None)])

    def promises(self, plan: Plan | None) -> list[Promise]:
        """What the engine owes."""
        return of_plan(plan, self.found) if plan is not None else of_model(self.model, self.found, self.known)

    def verdict(self, promise: Promise) -> OpVerdict:
        """The verdict on one op: the worst of the nodes that stand for it."""
        if not promise.sites:
            why = "the model holds no node with its key or name"
            return OpVerdict(promise.op_type, promise.name, promise.planned, "absent", why)
        said = [self._of_site(site, promise.planned) for site in promise.sites]
        worst = max(said, key=lambda one: _ORDER.index(one.verdict))
        sizes = [self.sizes.get(site.place.key, (None, None)) for site in promise.sites]
        macs, weights = [size[0] for size in sizes], [size[1] for size in sizes]
        name = promise.name or promise.sites[0].node.name or ""
        return replace(worst, op_type=promise.op_type, name=name, macs=_sum(macs), weight_bytes=_sum(weights))

    def _of_site(self, site: Site, planned: str) -> OpVerdict:
        node = site.node
        heard = {name: witness.says(site.name) for name, witness in self.witnesses.items() if witness is not None}
        words = {
            name: f"{heard[name].word}: {heard[name].text}" if name in heard else f"silent: {self.silent[name]}"
            for name in self.witnesses
        }
        verdict, why = self._weigh(site, planned, heard)
        if verdict != planned and self.note:
            why = f"{why}; {self.note}"
        return OpVerdict(node.op_type, node.name or "", planned, verdict, why, words)

    def _weigh(self, site: Site, planned: str, heard: Mapping[str, Testimony]) -> tuple[Verdict, str]:
        if "file" not in heard:
            listed = heard.get("builder")
            also = f"; the builder's listing alone says {listed.word} ({listed.text})" if listed else ""
            return "unknown", f"the engine file cannot be read: {self.silent['file']}{also}"
        verdicts = {name: self._verdict(site, planned, testimony) for name, testimony in heard.items()}
        if len(set(verdicts.values())) > 1:
            each = ", ".join(f"the {name} says {one.word} ({one.text})" for name, one in heard.items())
            return "unknown", f"the witnesses disagree: {each}"
        verdict, testimony = verdicts["file"], heard["file"]
        alone = "" if "builder" in heard else f"on the word of the engine file alone: {self.silent['builder']}"
        if verdict == planned:
            wrong = caution(operands(site, self.model, self.known)) if verdict == "fp8" else ""
            return verdict, "; ".join(part for part in (wrong, alone) if part)
        why = self._why(site, planned, verdict, testimony)
        return verdict, f"{why}; {alone}" if alone else why

    def _verdict(self, site: Site, planned: str, testimony: Testimony) -> Verdict:
        if testimony.word == "storage":
            # A small weight is what was asked for only where nothing more was.
            return "storage" if planned == "storage" else "fell-back"
        if testimony.word == "missing" and self._is_constant(site):
            return "folded"
        return _SAID.get(testimony.word, "unknown")

    def _is_constant(self, site: Site) -> bool:
        return all(value is None or id(value) in self.known for value in site.node.inputs)

    def _why(self, site: Site, planned: str, verdict: Verdict, testimony: Testimony) -> str:
        if verdict == "folded":
            return "all its inputs are constant: it was computed at build time"
        if verdict == "unknown" and testimony.word == "missing":
            return "no layer of the engine names it"
        cause = ""
        if verdict == "fell-back":
            pair = operands(site, self.model, self.known)
            cause = likely_cause(site, pair, self.known, planned, testimony.word)
        return f"{cause} ({testimony.text})" if cause else testimony.text


def _sum(sizes: Sequence[int | None]) -> int | None:
    return None if any(size is None for size in sizes) else sum(size or 0 for size in sizes)
