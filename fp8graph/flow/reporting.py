"""Documents joined to one report. Needs neither numpy nor onnx."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.files import WrittenFile, check_writable, describe, sha256_of, write_text
from fp8graph.base.names import did_you_mean
from fp8graph.data.attestation import Attestation
from fp8graph.data.comparison import Comparison, OutputDifference
from fp8graph.data.document import kind_of, load_json, malformed
from fp8graph.data.plan import Plan
from fp8graph.flow import asked
from fp8graph.report.joined import Report, join
from fp8graph.report.pages import FORMATS

_WANTED = "a plan, and what attest, compare, build --attest or optimize printed by --json"


@dataclass(frozen=True)
class Reported:
    """A report, its text in the format asked for, and the file it was written to."""

    report: Report
    text: str
    files: tuple[WrittenFile, ...] = ()


def report(
    files: str | Path | Sequence[str | Path],
    *,
    format: str = "text",
    output: str | Path | None = None,
    force: bool = False,
) -> Reported:
    """Joins plan, comparison and attestation by op key. Recomputes nothing.

    files    a plan, an attestation, a comparison, each at most once; also results of `attest`, `compare`, `build` and
             `optimize` as --json prints them
    format   text, md, html or json
    output   None: nothing is written

    Raises UsageError (FG101 an unknown format, FG100 two documents of one kind, what is no path, an output that exists,
    FG114 an attestation and a plan that do not belong together), InputError FG111 for a file that holds none of these.
    """
    asked.files(files, "files")
    paths = [Path(files)] if isinstance(files, str | os.PathLike) else [Path(path) for path in files or () if path]
    output = asked.path(output, "output")
    if asked.text(format, "format") not in FORMATS:
        raise UsageError(
            f"there is no format '{format}'", where="--format", do=did_you_mean(format, FORMATS), code="FG101"
        )
    if output is not None:
        check_writable(output, force=force, inputs=paths)
    found: dict[type, tuple[Path, Any]] = {}
    for path in paths:
        for document in _documents(load_json(path, "the document"), path):
            other = found.setdefault(type(document), (path, document))
            if other[1] is not document:
                raise UsageError(
                    f"two files hold {'an' if isinstance(document, Attestation) else 'a'} {_name(document)}",
                    where=f"{other[0]}, {path}",
                    why="a report is of one model",
                    do=f"python -m fp8graph diff {other[0]} {path}",
                    code="FG100",
                )
    joined = join(*(found.get(kind, (None, None))[1] for kind in (Plan, Attestation, Comparison)), notes=_notes(found))
    text = FORMATS[format](joined)
    if output is None:
        return Reported(joined, text)
    write_text(output, text if text.endswith("\n") else text + "\n")
    return Reported(joined, text, (describe(output),))


def _name(document: Any) -> str:
    return str(type(document).__name__).lower()


def _documents(document: Any, path: Path) -> list[Plan | Attestation | Comparison]:
    """What a file holds. Raises InputError FG111 where that is nothing that a report joins."""
    said = document if isinstance(document, dict) else {}
    kind = kind_of(said)
    if kind == "plan":
        return [Plan.from_json(document, str(path))]
    if kind == "attestation":
        return [Attestation.from_json(document, str(path))]
    if kind == "comparison":
        return [Comparison.from_json(document, str(path))]
    inner = said.get("result") if kind == "result" else None
    if isinstance(inner, dict) and "schema" in inner:
        return _documents(inner, path)
    found: list[Plan | Attestation | Comparison] = []
    if isinstance(inner, dict) and isinstance(inner.get("attestation"), dict):
        found.append(Attestation.from_json(inner["attestation"], str(path)))
    if isinstance(inner, dict) and isinstance(inner.get("comparison"), dict):
        found.append(_comparison(inner["comparison"], path))
    if found:
        return found
    why = f"its schema is '{said.get('schema')}'" if "schema" in said else "it holds no 'schema'"
    if kind == "result":
        why = f"it is a result of '{said.get('command')}' with neither an attestation nor a comparison"
    raise InputError(
        "this is no document that a report joins", where=str(path), why=why, do=f"give {_WANTED}", code="FG111"
    )


def _comparison(outputs: Any, path: Path) -> Comparison:
    """The comparison in a result of `optimize`, which names the outputs alone."""
    try:
        return Comparison({str(name): OutputDifference.from_json(item) for name, item in outputs.items()}, 0)
    except (KeyError, TypeError, ValueError) as error:
        raise malformed("comparison", str(path), error) from error


def _notes(found: dict[type, tuple[Path, Any]]) -> tuple[str, ...]:
    """What the reader is to know of a plan and an attestation side by side. Raises UsageError FG114 where they do not
    belong together: a table that joins two models by chance of names would be believed."""
    if Plan not in found or Attestation not in found:
        return ()
    (path, plan), (other, said) = found[Plan], found[Attestation]
    digest = sha256_of(path)
    if said.plan == digest:
        return ()
    attested = {**said.verdicts, **said.others}
    if not said.plan and (not attested or attested.keys() & plan.ops.keys()):
        return (f"the attestation names no plan: it is joined to {path.name} by the names of the operators alone",)
    why = f"the attestation was made with the plan of sha256 {said.plan}"
    if not said.plan:
        why = f"the attestation names no plan, and none of its {len(attested)} operators is in this one"
    raise UsageError(
        "the attestation is of another plan",
        where=f"{other}, {path}",
        why=f"{why}; {path.name} has sha256 {digest}",
        do=f"give the plan that it was made with, or attest anew: python -m fp8graph attest ENGINE --model MODEL "
        f"--plan {path} --json",
        code="FG114",
    )
