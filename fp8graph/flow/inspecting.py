"""What is in files, one by one (inspect) or two side by side (diff). Plans and attestations open without numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.names import OpPattern
from fp8graph.data import contents as inside
from fp8graph.data.contents import Contents, ScaleContent
from fp8graph.data.difference import Difference, differ
from fp8graph.data.document import kind_of, load_json
from fp8graph.flow import asked
from fp8graph.report import narrowing

_KNOWN = "a model, plan, ranges, engine, manifest, attestation or a result of --json"
_ARCHIVES = {
    b"PK\x03\x04": (
        "it is a zip archive, such as .npz arrays are",
        "optimize, calibrate and compare take it as --data",
    ),
    b"\x93NUMPY": ("it is a NumPy array", "optimize, calibrate and compare take it as --data"),
}


def inspect(file: str | Path, *, show: Sequence[str] | None = None, op: Sequence[str] | None = None) -> dict[str, Any]:
    """What is in a file: a model, plan, ranges, engine, manifest or attestation, or what a command printed by --json.

    show   io, ops, scales, layers: these sections only
    op     patterns: only rows that one of them selects, by key, node name or type, in every section; the
           keys of an engine's nodes are those of its manifest

    The kind is detected. Raises InputError for a file that is none of these, UsageError FG101 for an unknown section,
    FG109 for a pattern that selects nothing.
    """
    patterns = _patterns(op)
    contents = contents_of(asked.needed_path(file, "file"))
    found = narrowing.narrowed(contents.to_json(), _meant(patterns, contents))
    return narrowing.shown(found, asked.texts(show, "show") or ())


def diff(a: str | Path, b: str | Path, *, op: Sequence[str] | None = None) -> Difference:
    """What B has otherwise than A: two plans, models, engines, attestations or ranges.

    op   patterns: only ops that one of them selects, and their scales

    Raises UsageError FG114 for files of two kinds, FG109 for a pattern that selects nothing in both, InputError for a
    file that cannot be read. That they differ is a value, no error.
    """
    patterns = _patterns(op)
    one, other = contents_of(asked.needed_path(a, "a")), contents_of(asked.needed_path(b, "b"))
    if one.kind != other.kind:
        raise UsageError(
            f"the files are of two kinds: {one.kind} and {other.kind}",
            where=f"{a}, {b}",
            why="ops are laid side by side one by one, which only two files of one kind allow",
            do=_instead({one.kind, other.kind}, str(a), str(b)),
            code="FG114",
        )
    if not (one.ops or one.scales or one.unknown or other.ops or other.scales or other.unknown):
        raise UsageError(
            f"files of the kind {one.kind} hold no ops that could be laid side by side",
            where=f"{a}, {b}",
            do="give two plans, models, engines, attestations or ranges",
            code="FG114",
        )
    if patterns:
        one, other = _selected(one, other, patterns)
    return differ(one, other)


def _instead(kinds: set[str], a: str, b: str) -> str:
    if kinds == {"model", "plan"}:
        return "give the plan's model and another model, or two plans"
    if kinds == {"engine", "model"}:
        engine, model = (a, b) if not b.endswith(".engine") else (b, a)
        return f"python -m fp8graph attest {engine} --model {model}"
    return "give two files of one kind; python -m fp8graph inspect FILE says which it is"


def _selected(a: Contents, b: Contents, patterns: Sequence[OpPattern]) -> tuple[Contents, Contents]:
    hit: set[str] = set()

    def chosen(contents: Contents) -> set[str]:
        mine = _meant(patterns, contents)
        return {
            op.key
            for op in contents.ops
            if narrowing.selects(mine, (op.key, *op.more.get("keys", ())), (op.name,), op.op_type, hit)
        }

    keys = chosen(a) | chosen(b)  # an op that is selected in one is looked at in both

    def kept(contents: Contents) -> Contents:
        ops = tuple(op for op in contents.ops if op.key in keys)
        scales = tuple(
            scale
            for scale in contents.scales
            if scale.key in keys or narrowing.selects(patterns, (scale.tensor,), ("",), "", hit)
        )
        return replace(contents, ops=ops, scales=scales, weights={})

    both = kept(a), kept(b)
    narrowing.refuse_unused(patterns, hit)
    return both


def _meant(patterns: Sequence[OpPattern], contents: Contents) -> Sequence[OpPattern]:
    """The patterns as they select in this file: engines call ops by node names, whose keys have to be known."""
    if not patterns or contents.kind != "engine":
        return patterns
    from fp8graph.engines.contents import by_key

    return by_key(patterns, contents)


def _patterns(given: Any) -> list[OpPattern]:
    return [_pattern(text) for text in asked.texts(given, "op") or ()]


def _pattern(text: str) -> OpPattern:
    try:
        return OpPattern(text)
    except ValueError as error:
        raise UsageError(str(error), where="--op", do="quote it for the shell: --op 're:...'", code="FG100") from error


def contents_of(path: Path) -> Contents:
    """What is in one file. Raises InputError FG111, FG106 or FG508 for what is missing, damaged or of no known kind."""
    if path.is_dir():
        some = next((one for one in sorted(path.iterdir()) if one.suffix in (".onnx", ".json", ".engine")), None)
        raise InputError(
            "this is a folder, not a file",
            where=str(path),
            do=f"python -m fp8graph inspect {some or path / 'FILE'}",
            code="FG111",
        )
    if not path.is_file():
        raise InputError("the file does not exist", where=str(path), do="check the path", code="FG111")
    try:
        with path.open("rb") as stream:
            begin = stream.read(64)
    except OSError as error:
        raise InputError(
            "the file cannot be read",
            where=str(path),
            why=error.strerror or str(error),
            do="check its permissions",
            code="FG111",
        ) from error
    if begin[:4] in (b"vtrt", b"ftrt"):
        return _engine(path)
    if begin.lstrip()[:1] == b"{":
        return of_document(load_json(path, "the document"), path)
    for magic, (why, do) in _ARCHIVES.items():
        if begin.startswith(magic):
            raise InputError(f"this is not {_KNOWN}", where=str(path), why=why, do=do, code="FG106")
    from fp8graph.engines.reading import owner

    return _engine(path) if owner(path) else _model(path)


def of_document(document: Any, path: Path) -> Contents:
    """What is in a document of ours. Raises InputError FG111 for any other, and for a damaged one."""
    said = document if isinstance(document, dict) else {}
    kind = kind_of(said)
    inner = said.get("result")
    if kind == "result" and isinstance(inner, dict) and "schema" in inner:
        return of_document(inner, path)
    if kind == "plan":
        from fp8graph.data.plan import Plan

        return inside.of_plan(Plan.from_json(document, str(path)))
    if kind == "attestation":
        from fp8graph.data.attestation import Attestation

        return inside.of_attestation(Attestation.from_json(document, str(path)))
    if kind == "ranges":
        return _ranges(document, path)
    if kind == "engine":
        from fp8graph.engines.contents import of_manifest
        from fp8graph.engines.manifest import Manifest

        return of_manifest(Manifest.from_json(document, str(path)), document)
    if kind == "result":
        return inside.of_result(said)
    if kind in ("comparison", "difference", "report"):
        return Contents(kind, sections={name: value for name, value in said.items() if name not in ("schema", "kind")})
    schema = f"its schema is '{said.get('schema')}'" if "schema" in said else "it holds no 'schema'"
    raise InputError("this is no fp8graph document", where=str(path), why=schema, do=f"give {_KNOWN}", code="FG111")


def _ranges(document: Any, path: Path) -> Contents:
    from fp8graph.flow import rangefile

    ranges = rangefile.of(document, path)
    about = {"source": ranges.source, "data": ranges.data, "samples": ranges.samples}
    seen = {name: [[list(shape), times] for shape, times in shapes.items()] for name, shapes in ranges.shapes.items()}
    values = tuple(
        ScaleContent(tensor, scales=stat.count, least=stat.min, largest=stat.max, origin=f"{stat.nonfinite} not finite")
        if stat.amax is not None
        else ScaleContent(tensor, scales=stat.count, origin=f"{stat.nonfinite} not finite")
        for tensor, stat in ranges.values.items()
    )
    return Contents("ranges", about, {"shapes": seen}, scales=values, sections={"values": document["values"]})


def _engine(path: Path) -> Contents:
    from fp8graph.engines.contents import of_engine
    from fp8graph.engines.manifest import Manifest, beside
    from fp8graph.engines.reading import read_engine

    file = read_engine(path)
    manifest: Mapping[str, Any] | None = None
    silent = ""
    if beside(path).is_file():
        try:
            document = load_json(beside(path), "the manifest")
            same = Manifest.from_json(document, str(beside(path))).engine == file.sha256
            manifest, silent = (document, "") if same else (None, f"{beside(path).name} speaks of another file")
        except InputError as error:  # the engine speaks for itself
            silent = f"{beside(path).name} cannot be read: {error.what}, {error.why}"
    return of_engine(file, path.name, manifest, silent)


def _model(path: Path) -> Contents:
    from fp8graph.graph.load import load
    from fp8graph.graph.looking import contents

    try:
        source = load(path)
    except InputError as error:
        if error.code == "FG106" and path.suffix != ".onnx":
            error.what = f"this is not {_KNOWN}"
            error.do = "python -m fp8graph recipes show FILE" if path.suffix == ".toml" else "check the path"
        raise
    return contents(source.model, path.name)
