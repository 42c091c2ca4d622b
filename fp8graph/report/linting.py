"""Findings for machines: SARIF 2.1.0, and the workflow commands of GitHub Actions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from fp8graph.base.codes import CODES
from fp8graph.base.findings import Finding

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}
_COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}


def sarif(findings: Sequence[Finding], *, model: str, version: str) -> str:
    """One SARIF log with one run. A finding's location is the model's file, and the op by its key."""
    codes = list(dict.fromkeys(item.code for item in findings))
    rules = [_rule(code) for code in codes]
    results = [_result(item, codes.index(item.code), model) for item in findings]
    driver = {"name": "fp8graph", "version": version, "rules": rules}
    run: dict[str, Any] = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


def _rule(code: str) -> dict[str, Any]:
    page = CODES.get(code)
    if page is None:
        return {"id": code}
    return {
        "id": code,
        "shortDescription": {"text": page.title},
        "fullDescription": {"text": f"{page.means} {page.why}"},
        "help": {"text": page.do},
    }


def _result(item: Finding, index: int, model: str) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": PurePath(model).as_posix().replace(" ", "%20")}}
    }
    if item.op:
        location["logicalLocations"] = [{"fullyQualifiedName": item.op, "kind": "element"}]
    text = item.text + (f"; {item.do}" if item.do else "")
    return {
        "ruleId": item.code,
        "ruleIndex": index,
        "level": _LEVELS[item.severity],
        "message": {"text": text},
        "locations": [location],
    }


def github(findings: Sequence[Finding], *, model: str) -> str:
    """One workflow command a line; without a finding, nothing."""
    return "\n".join(
        f"::{_COMMANDS[item.severity]} file={_property(model)},title={_property(item.code)}::"
        + _data((f"{item.op}: " if item.op else "") + item.text + (f"; {item.do}" if item.do else ""))
        for item in findings
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
