"""What all documents share: the schema tag, and reading that refuses instead of guessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fp8graph.base import files
from fp8graph.base.canon import canonical
from fp8graph.base.errors import Fp8GraphError, InputError


def check_schema(document: Any, kind: str, version: int, where: str) -> dict[str, Any]:
    """The document, where it is of this kind and major version; else InputError FG111 with advice."""
    if not isinstance(document, dict) or not isinstance(document.get("schema"), str):
        raise InputError(
            f"this is no fp8graph {kind}",
            where=where,
            why="it holds no 'schema'",
            do=f"give a {kind} file",
            code="FG111",
        )
    name, _, number = document["schema"].partition("/")
    if name != f"fp8graph.{kind}":
        raise InputError(
            f"a {kind} was expected",
            where=where,
            why=f"its schema is '{document['schema']}'",
            do=f"give a {kind} file; python -m fp8graph inspect FILE says what this one is",
            code="FG111",
        )
    if number != str(version):
        newer = number.isdecimal() and int(number) > version
        raise InputError(
            f"this {kind} has version {number}, this fp8graph reads version {version}",
            where=where,
            why=f"its schema is '{document['schema']}'",
            do="pip install -U fp8graph" if newer else "write the document anew",
            code="FG111",
        )
    try:
        canonical(document)
    except ValueError as error:  # Python's JSON reader takes NaN and Infinity
        raise malformed(kind, where, error) from error
    return document


def kind_of(document: Any) -> str:
    """The kind that a document's schema names: `plan` of `fp8graph.plan/1`; empty where it names none."""
    said = document.get("schema", "") if isinstance(document, dict) else ""
    return str(said).removeprefix("fp8graph.").partition("/")[0]


def load_json(path: Path, what: str) -> Any:
    """The JSON value in a file. Raises InputError FG111 where it is missing or no JSON."""
    try:
        return json.loads(files.read_text(path, what))
    except (ValueError, RecursionError) as error:
        why = str(error) or type(error).__name__
        raise InputError(
            f"{what} is no JSON document", where=str(path), why=why, do="write it anew, or check the path", code="FG111"
        ) from error


def malformed(kind: str, where: str, error: Exception) -> InputError:
    """The error for a document whose inside is not what its schema says."""
    said = error.what if isinstance(error, Fp8GraphError) else str(error)
    why = f"missing entry {error}" if isinstance(error, KeyError) else said
    return InputError(f"the {kind} is damaged", where=where, why=why, do="write it anew", code="FG111")
