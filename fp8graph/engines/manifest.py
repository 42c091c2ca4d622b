"""The manifest beside an engine: what it was built from, how, and what the builder says is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8graph.base.errors import InputError
from fp8graph.base.files import sha256_of
from fp8graph.data.document import check_schema, load_json, malformed
from fp8graph.data.plan import Shapes, shapes_from_json, shapes_to_json
from fp8graph.engines.job import BuildJob
from fp8graph.engines.witness import EngineOp, texts

KIND, VERSION = "engine", 1


@dataclass(frozen=True)
class Manifest:
    """A manifest, read. `engine`, `model`, `plan` and the values of `data` (the model's data files) are sha256.

    `layers` is None where the builder listed none; `builder` is name and version. `keys` are those of the model's ops,
    by the names that layers give to their nodes; empty in a manifest of an earlier version.
    """

    engine: str
    model: str
    data: Mapping[str, str]
    plan: str
    builder: str
    chips: tuple[str, ...]
    profiles: tuple[Shapes, ...]
    layers: tuple[EngineOp, ...] | None
    keys: Mapping[str, tuple[str, ...]]

    @staticmethod
    def from_json(document: Any, where: str = "manifest") -> Manifest:
        """Reads a manifest document. Raises InputError FG111 for anything that is not one."""
        document = check_schema(document, KIND, VERSION, where)
        try:
            rows = document["layers"]
            layers = None if rows is None else tuple(EngineOp.from_json(row) for row in rows)
            profiles = tuple(shapes_from_json(item) for item in document["profiles"])
            if any(not 0 <= row.profile < max(1, len(profiles)) for row in layers or ()):
                raise ValueError("a layer belongs to no profile")
            return Manifest(
                engine=str(document["engine"]),
                model=str(document["model"]),
                data={str(name): str(digest) for name, digest in document["data"].items()},
                plan=str(document["plan"]),
                builder=f"{document['builder']['name']} {document['builder']['version']}",
                chips=tuple(str(chip) for chip in document["chips"]),
                profiles=profiles,
                layers=layers,
                keys={str(name): texts(some) for name, some in document.get("keys", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise malformed(KIND, where, error) from error


def beside(engine: Path) -> Path:
    """Where the manifest of an engine lies."""
    return engine.with_name(engine.name + ".json")


def make(
    job: BuildJob,
    engine: Path,
    plan: str,
    made: Mapping[str, Any],
    rows: Sequence[EngineOp] | None,
    data: Sequence[Path] = (),
    keys: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The manifest of an engine as a document; `data` are the model's data files, `keys` as in `Manifest`.

    Digests instead of paths: same inputs, same bytes. Files are named without their folders.
    """
    return {
        "schema": f"fp8graph.{KIND}/{VERSION}",
        "engine": sha256_of(engine),
        "model": sha256_of(Path(job.model)),
        "data": {path.name: sha256_of(path) for path in data},
        "plan": plan,
        "builder": {"name": job.builder, "version": made["version"]},
        "chips": list(made["chips"]),
        "profiles": [shapes_to_json(shapes) for shapes in job.profiles],
        "options": job.options,
        "keys": dict(keys or {}),
        "layers": None if rows is None else [row.to_json() for row in rows],
    }


def with_attestation(document: Mapping[str, Any], attested: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with an attestation document in short: its counts and shares, and who is not as planned."""
    short = {name: attested[name] for name in ("counts", "macs_fp8", "weight_bytes_fp8")}
    broken = [key for key, op in attested["verdicts"].items() if op["verdict"] != op["planned"]]
    rest = {name: value for name, value in document.items() if name != "layers"}  # the longest entry stays last
    return {**rest, "attestation": {**short, "not_as_planned": broken}, "layers": document["layers"]}


def spell(document: Mapping[str, Any]) -> str:
    """The manifest as text: a line for each entry and for each layer."""
    lines = []
    for name, value in document.items():
        if name == "layers" and value:
            rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f'  "layers": [\n{rows}\n  ]')
        else:
            lines.append(f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def find(engine: Path, sha256: str) -> tuple[dict[str, Any] | None, str, bool]:
    """The manifest beside an engine, or None, why it is not heard, and whether it speaks of another file.

    A manifest that speaks of other bytes than the engine's is whole, but no witness: one of the two was changed, or
    they never belonged together. That none lies beside an engine is no error: it may have been built elsewhere.

    Raises InputError FG111 where the file is there and is no manifest, damaged, or of a newer version.
    """
    path = beside(engine)
    if not path.is_file():
        return None, f"no {path.name} beside it", False
    try:
        document = load_json(path, "the engine's manifest")
        said = Manifest.from_json(document, str(path))
    except InputError as error:
        error.do = (
            f"build the engine anew, its manifest with it: python -m fp8graph build MODEL -o {engine} --force; "
            f"or move {path.name} away: the engine file then speaks alone"
        )
        raise
    if said.engine != sha256:
        why = f"{path.name} speaks of another file: sha256 {said.engine[:12]}, this engine has {sha256[:12]}"
        return None, why, True
    return dict(document), "", False
