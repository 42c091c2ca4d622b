"""The registry: passes found by their file, named by their class, owned by their package."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

import fp8graph
from fp8graph.base.errors import InternalError, UsageError
from fp8graph.core import registry
from fp8graph.core.passes import PlanRule, RewritePass, pass_name
from tests.small import feeds, model, refused

RULE = '''"""Keep whatever is called head.

Codes          ACME1 kept: the head
"""

from dataclasses import dataclass

from fp8graph.core.passes import Opinion, PlanRule


@dataclass(frozen=True)
class KeepHead(PlanRule):
    """Heads stay."""

    name_part: str = "head"
    least: int = 0

    def decide(self, op, ctx):
        """By name."""
        return Opinion("keep", "ACME1", "it is a head") if self.name_part in op.key else None
'''


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """A wheel of somebody else's, with a rule of its own and one whose name is taken."""
    package = tmp_path / "acme_passes"
    package.mkdir()
    (package / "__init__.py").write_text('"""Acme."""\n')
    (package / "keep_head.py").write_text(RULE)
    (package / "keep_router.py").write_text(RULE.replace("KeepHead", "KeepRouter"))
    (package / "keep_nothing.py").write_text(RULE)  # holds no class of its name
    (package / "keep_torn.py").write_text("import not_there\n")
    (package / "_private.py").write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        *importlib.metadata.entry_points(group=registry.GROUP),
        importlib.metadata.EntryPoint("acme", "acme_passes", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    registry.catalog.cache_clear()
    yield package
    registry.catalog.cache_clear()
    for name in [name for name in sys.modules if name.startswith("acme_passes")]:
        del sys.modules[name]


def test_every_built_in_pass_is_listed_with_a_page_and_can_be_made():
    found = registry.catalog()
    assert len(found) >= 14 and [e.name for e in found] == sorted(e.name for e in found)
    for entry in found:
        made = registry.create(entry.name)
        assert isinstance(made, registry.KINDS) and made.name == entry.name == pass_name(type(made))
        assert entry.summary and "What it does" in entry.page and entry.owner == "fp8graph"


def test_listing_imports_no_pass(acme):
    assert "keep-torn" in {entry.name for entry in registry.catalog()}
    assert not any(name.startswith("acme_passes.") for name in sys.modules)


def test_a_name_that_two_own_is_an_error_that_names_both(acme):
    with refused(UsageError, "FG113", "acme, fp8graph", "write acme:keep-router"):
        registry.create("keep-router")
    assert type(registry.create("acme:keep-router")).__module__ == "acme_passes.keep_router"
    assert type(registry.create("fp8graph:keep-router")).__module__ == "fp8graph_passes.keep_router"


def test_a_pass_of_another_package_enters_by_the_same_door(acme):
    (acme / "keep_router.py").unlink()  # else no recipe that says keep-router could be read
    text = "(float[2,8] x, float[8,8] w) => (float[2,8] my_head) { h = MatMul(x, w) my_head = MatMul(h, w) }"
    plan = fp8graph.optimize(model(text), plan_only=True, passes="keep-head").plan
    assert (plan.ops["my_head"].why.code, plan.ops["my_head"].why.by) == ("ACME1", "keep-head")
    assert plan.ops["h"].do == "quantize"
    plan = fp8graph.optimize(model(text), plan_only=True, passes="acme:keep-head{name-part='h'}").plan
    assert {op.do for op in plan.ops.values()} == {"keep"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("keep-ruter", "did you mean 'keep-router'?"),
        ("acme:keep-router", "there is no pass 'acme:keep-router'"),
        ("", "there is no pass ''"),
        ("KeepRouter", "there is no pass"),
        ("fp8graph_passes.keep_router", "there is no pass"),
    ],
)
def test_an_unknown_pass_is_refused_with_the_nearest_name(name, says):
    with refused(UsageError, "FG113", says):
        registry.create(name)


def test_a_module_that_is_no_pass_says_whose_fault_it_is(acme):
    with refused(InternalError, "FG901", "acme_passes.keep_nothing"):
        registry.create("keep-nothing")
    with refused(UsageError, "FG113", "keep-torn", "not_there"):
        registry.create("keep-torn")


def test_without_the_built_in_passes_the_message_says_how_to_install_them(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: ())
    registry.catalog.cache_clear()
    with refused(InternalError, "FG900", "pip install -e ."):
        registry.catalog()
    monkeypatch.undo()
    registry.catalog.cache_clear()


@pytest.mark.parametrize("key", ["least", "output-limit", "output_limit"])
def test_options_are_fields_spelt_either_way(acme, key):
    name = "keep-head" if key == "least" else "fold-constants"
    made = registry.create(name, {key: 3})
    assert getattr(made, key.replace("-", "_")) == 3


def test_an_unknown_option_is_refused_with_the_nearest_name():
    with refused(UsageError, "FG113", "no option 'chanels'", "did you mean 'channels'?"):
        registry.create("keep-first-conv", {"chanels": 3})


@pytest.mark.parametrize("value", ["many", 2.5, True, None, [1]])
def test_an_option_of_another_type_is_refused(value):
    with refused(UsageError, "FG113", "keep-first-conv", "channels"):
        registry.create("keep-first-conv", {"channels": value})


SPECS = [
    ("", []),
    ("keep-router", [("keep-router", {})]),
    ("keep-router,keep-first-conv", [("keep-router", {}), ("keep-first-conv", {})]),
    (" keep-router , keep-first-conv{channels=8} ", [("keep-router", {}), ("keep-first-conv", {"channels": 8})]),
    ("fp8graph:keep-router{steps=2},", [("keep-router", {"steps": 2})]),
    ("fold-constants{limit=1, output-limit=0x10}", [("fold-constants", {"limit": 1, "output_limit": 16})]),
]


@pytest.mark.parametrize(("text", "wanted"), SPECS)
def test_passes_are_read_from_a_text(text, wanted):
    made = registry.parse_specs(text)
    assert [item.name for item in made] == [name for name, _ in wanted]
    for item, (_, options) in zip(made, wanted, strict=True):
        assert options.items() <= vars(item).items()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keep-router keep-first-conv", "at 'keep-router keep-fir"),
        ("keep-router{steps=2", "cannot be read"),
        ("keep-router,,", "cannot be read"),
        ("{steps=2}", "cannot be read"),
        ("keep-router{steps}", "steps"),
        ("keep-router{=2}", "no option ''"),
        ("keep-router{steps=__import__('os')}", "steps"),
        ("keep-ruter", "did you mean 'keep-router'?"),
    ],
)
def test_a_text_that_is_no_list_of_passes_is_refused(text, says):
    with refused(UsageError, "FG113", says):
        registry.parse_specs(text)


def test_a_local_file_runs_as_a_pass(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RULE)
    made = registry.from_file(f"{path}:KeepHead")
    assert isinstance(made, PlanRule) and made.name == "keep-head"
    text = "(float[2,8] x, float[8,8] w) => (float[2,8] head) { h = MatMul(x, w) head = MatMul(h, w) }"
    proto = model(text)
    done = fp8graph.optimize(proto, data=feeds(proto), pass_file=f"{path}:KeepHead")
    assert done.plan.ops["head"].why.code == "ACME1" and done.planned == 1
    with refused(UsageError, "FG113", "keep-head"):  # a plan names no code: it must be given again
        fp8graph.optimize(proto, plan=done.plan)
    assert fp8graph.optimize(proto, plan=done.plan, pass_file=f"{path}:KeepHead").planned == 1


@pytest.mark.parametrize(
    ("content", "spec", "says"),
    [
        (None, "none.py:KeepHead", "is not there"),
        (RULE, "mine.py", "is not there"),
        (RULE, "mine.py:", "is no RewritePass"),
        (RULE, "mine.py:KeepTail", "'KeepTail' is no RewritePass"),
        (RULE, "mine.py:dataclass", "'dataclass' is no RewritePass"),
        (RULE, "mine.txt:KeepHead", "cannot be imported"),
        ("def (", "mine.py:KeepHead", "SyntaxError"),
        ("raise ValueError('at once')", "mine.py:KeepHead", "ValueError: at once"),
        ("import not_there", "mine.py:KeepHead", "not_there"),
        ("raise SystemExit(0)", "mine.py:KeepHead", "SystemExit"),
    ],
)
def test_a_pass_file_that_is_none_is_refused(tmp_path, monkeypatch, content, spec, says):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        for name in ("mine.py", "mine.txt"):
            Path(name).write_text(content)
    with refused(UsageError, "FG113", says):
        registry.from_file(spec)


@pytest.mark.parametrize(
    ("name", "called"),
    [("FoldReluScale", "fold-relu-scale"), ("InsertQDQ", "insert-qdq"), ("KeepA1b", "keep-a1b"), ("X", "x")],
)
def test_a_pass_is_called_like_its_class(name, called):
    assert pass_name(type(name, (RewritePass,), {})) == called


@pytest.mark.parametrize(
    "spec",
    ["balance-rounding{share=-1}", "balance-rounding{share=1.5}", "keep-router{steps=-1}", "keep-small-heads{least=0}",
     "keep-first-conv{channels=-4}", "fold-constants{limit=-1}"],
)  # fmt: skip
def test_an_option_out_of_its_range_is_refused(spec):
    with refused(UsageError, "FG113", "lies between"):
        registry.parse_specs(spec)


def test_the_ends_of_a_range_are_in_it():
    for spec in ("balance-rounding{share=0}", "balance-rounding{share=1}", "keep-router{steps=0}"):
        assert registry.parse_specs(spec)
