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
    source: str,
    output: str,
    files: Sequence[WrittenFile],
    findings: Sequence[Finding] = (),
    paint: Paint = plain,
) -> str:
    """The summary: weights by format and granularity, how they were found, and what is left over."""
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
    told = grouped(findings, paint=paint, least="warning")
    lines += ["", *told] if told else []
    lines += ["", *facts([("wrote", ", ".join(file.path for file in files))])]
    return "\n".join(lines)
