"""Codes are unique, have pages, and every code that the product mentions is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fp8graph
from fp8graph.base import codes
from fp8graph.base.errors import UsageError

ROOT = Path(fp8graph.__file__).parent
SOURCES = [
    path
    for folder in (ROOT, ROOT.parent / "passes")
    for path in folder.rglob("*.py")
    if "pages" not in path.parts and "cli" not in path.parts
]


def test_codes_are_unique_and_never_reused():
    names = [code.code for code in codes.ALL]
    assert len(names) == len(set(names))
    assert not codes.RETIRED & set(names)


@pytest.mark.parametrize("code", codes.ALL, ids=lambda code: code.code)
def test_a_code_has_a_whole_page(code):
    assert re.fullmatch(r"FG[1-59]\d\d", code.code)
    assert not code.title.endswith(".")
    for text in (code.means, code.why, code.do):
        assert text.endswith((".", "?", '"', "'", "`")), text
        assert "  " not in text
    lines = code.page.splitlines()
    assert lines[0] == f"{code.code}  {code.title}"
    assert max(map(len, lines)) <= 100


def test_every_code_that_the_product_gives_has_a_page():
    given = {(path.name, code) for path in SOURCES for code in re.findall(r"\"(FG\d{3})\"", path.read_text("utf-8"))}
    assert {(name, code) for name, code in given if code not in codes.CODES} == set()


@pytest.mark.parametrize("typed", ["FG214", "fg214", " FG214 "])
def test_a_code_is_found_however_it_is_typed(typed):
    assert codes.find(typed).code == "FG214"


@pytest.mark.parametrize(
    ("typed", "said"), [("FG21", "FG2"), ("FG99", "FG9"), ("AC12", "third-party"), ("x", "lists them")]
)
def test_an_unknown_code_is_refused_with_advice(typed, said):
    with pytest.raises(UsageError) as caught:
        codes.find(typed)
    assert said in caught.value.do


def test_a_retired_code_is_said_to_be_one(monkeypatch):
    monkeypatch.setattr(codes, "RETIRED", frozenset({"FG299"}))
    with pytest.raises(UsageError, match="no longer given"):
        codes.find("FG299")
