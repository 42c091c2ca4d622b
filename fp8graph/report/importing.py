"""What `import` prints for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fp8graph.base.files import WrittenFile
from fp8graph.base.findings import Finding
from fp8graph.report.tables import Cell, Paint, count, facts, plain, table
from fp8graph.report.text import grouped

_BY = {"name": "name", "folded_from": "exporter's metadata", "scope": "exporter's metadata", "value": "value"}


def imported(
    result: Mapping[str, Any],
    *,
    plan: bool = False,
    source: str,
    output: str,
    files: Sequence[WrittenFile],
    findings: Sequence[Finding] = (),
    paint: Paint = plain,
) -> str:
    """The summary: weights by format and granularity, how they were found, and what is left over."""
    if plan:
        return _scales(result, source, output, files, findings, paint)
    weights = result["weights"].values()
    kinds = Counter((item["format"], item["granularity"]) for item in weights)
    rows: list[list[Cell]] = [[form, scale, str(number)] for (form, scale), number in sorted(kinds.items())]
    ways = Counter(_BY.get(item["by"], item["by"]) for item in weights)
    lines = [f"{paint('bold', source)} -> {paint('bold', output)}", ""]
    lines += table(["weights", "one scale for each", "number"], rows, right=(2,), paint=paint)
    lines += [
        "",
        *facts(
            [
                ("found by", ", ".join(f"{way} {number}" for way, number in ways.most_common())),
                ("others", f"{count(result['floats'], 'tensor')} taken over as they are" if result["floats"] else ""),
                ("rounded", count(len(result["rounded"]), "activation") if result["rounded"] else "no activation"),
                ("caches", f"{count(len(result['caches']), 'scale')} in the metadata" if result["caches"] else ""),
            ]
        ),
    ]
    return "\n".join([*lines, *_end(files, findings, "", paint)])


def _scales(
    result: Mapping[str, Any],
    source: str,
    output: str,
    files: Sequence[WrittenFile],
    findings: Sequence[Finding],
    paint: Paint,
) -> str:
    """Of a plan with another tool's scales."""
    given = f"scales of {count(len(result['rounded']), 'activation')} are given"
    left = [item for item in findings if item.op in result["unmatched"]["model"]]
    lines = [f"{paint('bold', source)} -> {paint('bold', output)}", "", given]
    then = f"python -m fp8graph optimize MODEL -o OUT --plan {output}" + (" --data FILE" if left else "")
    return "\n".join([*lines, *_end(files, findings, then, paint)])


def _end(files: Sequence[WrittenFile], findings: Sequence[Finding], then: str, paint: Paint) -> list[str]:
    told = grouped(findings, paint=paint, least="warning")
    wrote = ("wrote", ", ".join(file.path for file in files))
    return [*(["", *told] if told else []), "", *facts([wrote, ("next", then)])]
