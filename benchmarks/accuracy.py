"""Accuracy and coverage against other tools: one table a model, for the docs.

    python benchmarks/accuracy.py --bench FOLDER [--entries NAME ...] [--peers TOOL=PYTHON ...] [--work FOLDER]
        [--write]

A row is a way to make an FP8 model: full coverage (recipe `fp8-full`, target `reference`), default options, and
`--min-sqnr` at the SQNR of each tool that leaves products in high precision; below it the curve of coverage.

FOLDER is used by the commands of its `score.py` (`model`, `calib`, `eval`) and by `entries.json`; the paired test, the
evaluation data and the names of FP8 nodes come from the functions behind them (`Bench.data`, `run`, `METRICS`,
`count`). `baselines.json` has rows of other tools, `baselines/run.py TOOL PYTHON OUT ENTRY` makes one anew on a copy of
the model. `--peers modelopt=PYTHON` does so with that interpreter for the tools `modelopt` and `modelopt_*`; what is
not installed there, or is not asked for, keeps the row that was recorded, and the table says so.

Rows are kept in `--work` and not made twice: delete files of its `rows` and `peers` to make them anew. `--write` puts
the tables between the marks of docs/accuracy.md. Without `--bench`: the digits, and no other tool. Status 1 where a row
of ours failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

import numpy as np
import onnx_ir as ir
from entries import loaded

import fp8graph
from fp8graph.data.plan import Plan, Profile
from fp8graph.engines.sizes import op_sizes
from fp8graph.graph import walk
from fp8graph.runners.reference import reference

ROOT = Path(__file__).resolve().parents[1]
PAGE, MARKS = ROOT / "docs" / "accuracy.md", ("<!-- accuracy: begin -->", "<!-- accuracy: end -->")
COLUMNS = ("made by", "FP8 nodes", "metric", "agreement %", "SQNR dB", "FP8 MACs", "CPU s", "row")
# The package of a tool whose name in `--peers` is another.
PACKAGES = {"modelopt": "nvidia-modelopt", "ort": "onnxruntime", "quark": "amd-quark", "amax": "onnx"}
FULL = ("--recipe", "fp8-full", "--target", "reference")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    nodes    FP8 nodes and all, as the bench counts them
    metric   of the original, and of the model
    macs     multiply-adds with both operands in FP8, over those of all products of the original
    seconds  CPU time of the whole process, imports included
    made     `here`, or `recorded` and why
    paired   of a classification: answers that only the original, and that only the model has right
    measure  what the metric is
    """

    tool: str
    nodes: tuple[int, int] = (0, 0)
    metric: tuple[float, float] = (math.nan, math.nan)
    agreement: float = math.nan
    sqnr_db: float = math.nan
    macs: float | None = None
    seconds: float = math.nan
    made: str = "here"
    error: str = ""
    paired: tuple[int, int] | None = None
    measure: str = ""

    def cells(self, digits: int) -> list[str]:
        """Its cells; of a failure, only what failed."""
        if self.error:
            return [self.tool, "failed", *[""] * 4, f"{self.seconds:.1f}", self.made]
        return [
            self.tool,
            "{} of {}".format(*self.nodes),
            f"{self.metric[1]:.{digits}f}",
            f"{self.agreement:.1f}",
            f"{self.sqnr_db:.1f}",
            f"{self.macs:.0%}" if self.macs is not None else "",
            f"{self.seconds:.1f}",
            self.made,
        ]


class Source(Protocol):
    """Models with data and a score."""

    names: list[str]

    def model(self, name: str) -> Path: ...
    def calibration(self, name: str, folder: Path) -> Path: ...
    def evaluation(self, name: str, folder: Path) -> Path: ...
    def scored(self, name: str, path: Path) -> Mapping[str, Any]: ...
    def fp8(self, path: Path) -> set[str]: ...
    def answers(self, name: str, path: Path) -> tuple[np.ndarray, np.ndarray] | None: ...


class Bench:
    """A folder with a `score.py`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.names = list(json.loads((folder / "entries.json").read_text(encoding="utf-8")))
        self._module = loaded(self.folder / "score.py")
        self._bench = self._module.Bench(str(self.folder))

    def model(self, name: str) -> Path:
        return Path(self._command("model", name).strip())

    def calibration(self, name: str, folder: Path) -> Path:
        path = folder / f"{name}.calib.npz"
        self._command("calib", name, "-o", str(path))
        return path

    def evaluation(self, name: str, folder: Path) -> Path:
        path = folder / f"{name}.eval.npz"
        np.savez(path, **self._bench.data(name, "eval", None)[0])
        return path

    def scored(self, name: str, path: Path) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self._command("eval", name, str(path), "--json", "-"))
        return found

    def fp8(self, path: Path) -> set[str]:
        return set(self._module.count(str(path))[2])

    def answers(self, name: str, path: Path) -> tuple[np.ndarray, np.ndarray] | None:
        """Labels and what a model answers; None where that is no classification."""
        entry = self._bench.entry(name)
        feeds, labels = self._bench.data(name, "eval", None)
        if labels is None:
            return None
        outputs = self._module.run(str(path), feeds, entry["outputs"], entry["batch"])
        value, answers = self._module.METRICS[entry["metric"]["kind"]](outputs, labels, feeds, entry)
        # A share of right answers, whatever its kind is called.
        if np.shape(answers) != np.shape(labels) or not np.isclose(value, 100 * np.mean(answers == labels)):
            return None
        return labels, answers

    def recorded(self, name: str) -> list[dict[str, Any]]:
        """Rows of other tools for an entry."""
        path = self.folder / "baselines.json"
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return [row for row in rows if row["entry"] == name]

    def _command(self, *words: str) -> str:
        call = [sys.executable, str(self.folder / "score.py"), *words]
        done = subprocess.run(call, capture_output=True, text=True, env=self.environment())
        if done.returncode:
            raise SystemExit(f"error: score.py {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def environment(self) -> dict[str, str]:
        """In which its scripts take this folder's entries."""
        return {**os.environ, "FP8GRAPH_BENCH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}


class Digits:
    """The sample models, scored with `fp8graph.compare`."""

    folder = ROOT / "samples" / "digits"

    def __init__(self) -> None:
        self.names = ["cnn", "vit"]

    def model(self, name: str) -> Path:
        return self.folder / f"{name}.onnx"

    def calibration(self, name: str, folder: Path) -> Path:
        return self.folder / "calibration.npz"

    def evaluation(self, name: str, folder: Path) -> Path:
        path = folder / "heldout.npz"
        np.savez(path, image=np.load(self.folder / "heldout.npz")["image"])
        return path

    def scored(self, name: str, path: Path) -> Mapping[str, Any]:
        images = {"image": np.load(self.folder / "heldout.npz")["image"]}
        compared = fp8graph.compare(self.model(name), path, data=images, batch=450)
        labels, right = self.answers(name, self.model(name))
        _, answers = self.answers(name, path)
        return {
            "metric": "top-1 accuracy %",
            "fp32": 100 * float((right == labels).mean()),
            "candidate": 100 * float((answers == labels).mean()),
            "agreement": 100 * float((answers == right).mean()),
            "sqnr_db": min(item.sqnr_db for item in compared.outputs.values() if item.sqnr_db is not None),
            "fp8_nodes": len(self.fp8(path)),
            "compute_nodes": len(op_sizes(ir.load(self.model(name)), {})),
        }

    def fp8(self, path: Path) -> set[str]:
        plan = Plan.from_json(json.loads(Path(f"{path}.plan.json").read_text(encoding="utf-8")))
        return {key for key, op in plan.quantized() if op.precision == "fp8"}

    def answers(self, name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
        with np.load(self.folder / "heldout.npz") as data:
            found = reference(str(path)).run({"image": data["image"]})
            return data["label"], found["logits"].argmax(axis=1)


def macs(source: Source, name: str, path: Path, sample: Mapping[str, np.ndarray]) -> float | None:
    """Multiply-adds of the products in FP8 over those of all products of the original, for one sample."""
    shapes = {key: Profile(*[(1, *array.shape[1:])] * 3) for key, array in sample.items()}
    whole = sum(found or 0 for found, _ in op_sizes(ir.load(source.model(name)), shapes).values())
    model, wanted = ir.load(path), source.fp8(path)
    keys = {place.key for place in walk.walk(model) if {place.key, place.node.outputs[0].name} & wanted}
    sizes = [found for key, (found, _) in op_sizes(model, shapes).items() if key in keys]
    return sum(found or 0 for found in sizes) / whole if whole and None not in sizes else None


def p_value(lost: int, won: int) -> float:
    """McNemar's exact test of two models on the same samples: how likely a split as uneven as this is by chance."""
    count, least = lost + won, min(lost, won)
    return min(1.0, float(2 * sum(math.comb(count, k) for k in range(least + 1)) / 2**count))


@dataclass
class Maker:
    """Makes the rows of one model; `folder` keeps rows and models."""

    source: Source
    name: str
    folder: Path
    limit_s: float

    def __post_init__(self) -> None:
        for part in ("rows", "models", "data"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.data = self.source.calibration(self.name, self.folder / "data")

    def ours(self, title: str, options: Sequence[str], paired: bool = False) -> Row:
        """A row of `fp8graph optimize`."""
        return self._kept(f"fp8graph {title}", lambda: self._optimized(title, options, paired))

    def _optimized(self, title: str, options: Sequence[str], paired: bool) -> Row:
        out = self.folder / "models" / f"{self.name}.{slug(title)}.onnx"
        answer, seconds = self.optimize(out, options)
        row = Row(f"fp8graph {title}", seconds=seconds)
        if answer.get("status") != 0:
            error = answer.get("error") or {}
            return replace(row, error=f"{error.get('code', '')} {error.get('what', '')}: {error.get('why', '')}")
        row = self._scored(row, out)
        return replace(row, paired=self._paired(out)) if paired else row

    def _paired(self, out: Path) -> tuple[int, int] | None:
        before, after = (self.source.answers(self.name, path) for path in (self.source.model(self.name), out))
        if before is None or after is None:
            return None
        was, now = (answers == labels for labels, answers in (before, after))
        return int((was & ~now).sum()), int((now & ~was).sum())

    def optimize(self, out: Path, options: Sequence[str]) -> tuple[dict[str, Any], float]:
        """Result document of the command, and CPU seconds."""
        call = [sys.executable, "-m", "fp8graph", "optimize", str(self.source.model(self.name)), "-o", str(out)]
        call += ["--data", str(self.data), "--high-precision-dtype", "fp32", "--no-compare", "--quiet", "--force"]
        return timed([*call, *options, "--json"], self.limit_s)

    def _scored(self, row: Row, path: Path) -> Row:
        found = self.source.scored(self.name, path)
        with np.load(self.data) as arrays:
            share = macs(self.source, self.name, path, dict(arrays))
        return replace(valued(row, found), macs=share)

    def peer(self, tool: str, python: str, bench: Bench) -> Row:
        """A row that the bench's script makes anew."""
        return self._kept(tool, lambda: self._run(tool, python, bench))

    def _run(self, tool: str, python: str, bench: Bench) -> Row:
        out = self.folder / "peers"
        env = bench.environment()
        if "@" in tool:  # on the nodes that another tool has chosen
            env["NODES_OF"] = str(out / tool.partition("@")[2])
        call = [sys.executable, str(bench.folder / "baselines" / "run.py"), tool, python, str(out), self.name]
        result, limit = out / tool / f"{self.name}.json", ""
        try:
            if not result.exists():
                subprocess.run(call, env=env, timeout=self.limit_s, capture_output=True, check=False)
        except subprocess.TimeoutExpired:
            limit = f"took more than {self.limit_s:.0f} s"
        if limit or not result.exists():
            return Row(tool, error=limit or "its script wrote no result")
        found = json.loads(result.read_text(encoding="utf-8"))
        row = valued(Row(tool, seconds=found["user_s"]), found)
        if row.error:
            return row
        with np.load(self.data) as arrays:
            return replace(row, macs=macs(self.source, self.name, result.with_suffix(".onnx"), dict(arrays)))

    def curve(self) -> list[tuple[int, float]]:
        """FP8 nodes and SQNR of the plans along the curve, those of most nodes first."""
        path = self.folder / "rows" / f"{self.name}.curve.json"
        if not path.exists():
            data = str(self.source.evaluation(self.name, self.folder / "data"))
            out = self.folder / "models" / f"{self.name}.curve.onnx"
            answer, _ = self.optimize(out, ["--curve", str(path), "--eval-data", data])
            if answer.get("status") != 0:
                return []
        points = json.loads(path.read_text(encoding="utf-8"))["points"]
        best: dict[int, float] = {}
        for point in points:
            if point["value"] is not None:
                best[point["quantized"]] = max(best.get(point["quantized"], -math.inf), point["value"])
        return [(nodes, value) for nodes, value in sorted(best.items(), reverse=True) if nodes]

    def _kept(self, title: str, make: Callable[[], Row]) -> Row:
        path = self.folder / "rows" / f"{self.name}.{slug(title)}.json"
        if path.exists():
            held: Any = json.loads(path.read_text(encoding="utf-8"))
            for pair in ("nodes", "metric", "paired"):
                held[pair] = tuple(held[pair]) if held[pair] is not None else None
            return Row(**held)
        begin = time.perf_counter()
        row = make()
        path.write_text(json.dumps(asdict(row)), encoding="utf-8")
        spent = time.perf_counter() - begin
        print(f"{self.name}, {' | '.join(row.cells(3))} {row.error} ({spent:.0f} s)", file=sys.stderr, flush=True)
        return row


def slug(title: str) -> str:
    """A title as the name of a file."""
    return "-".join(title.replace("--", "").split())


def timed(call: Sequence[str], limit_s: float) -> tuple[dict[str, Any], float]:
    """The document that a command prints, and its CPU seconds."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(call, stdout=out, stderr=said, stdin=subprocess.DEVNULL)
        begin, pid = time.monotonic(), 0
        while not pid:
            pid, _, usage = os.wait4(process.pid, os.WNOHANG)
            if not pid and time.monotonic() - begin > limit_s:
                process.kill()
                _, _, usage = os.wait4(process.pid, 0)
                return {"error": {"what": "time is up", "why": f"{limit_s:.0f} s"}}, usage.ru_utime
            time.sleep(0.05)
        out.seek(0)
        said.seek(0)
        try:
            return json.load(out), usage.ru_utime
        except ValueError:
            return {"error": {"what": "no result", "why": said.read()[-300:]}}, usage.ru_utime


def valued(row: Row, found: Mapping[str, Any]) -> Row:
    """The row with the figures of a score."""
    if found.get("error"):
        return replace(row, error=str(found["error"]).splitlines()[0][:150])
    return replace(
        row,
        measure=str(found["metric"]),
        nodes=(found["fp8_nodes"], found["compute_nodes"]),
        metric=(float(found["fp32"]), float(found["candidate"])),
        agreement=float(found["agreement"]),
        sqnr_db=float(found["sqnr_db"]),
    )


def version(package: str, python: str) -> str | None:
    """What is installed for an interpreter; None where nothing is."""
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    try:
        return subprocess.run([python, "-c", code, package], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def peers(maker: Maker, bench: Bench, pythons: Mapping[str, str]) -> Iterator[Row]:
    """Rows of the tools that were recorded: made anew where that can be."""
    script = bench.folder / "baselines" / "run.py"
    for record in bench.recorded(maker.name):
        tool = record["tool"]
        base = tool.partition("@")[0].partition("_")[0]
        python, package = pythons.get(base), PACKAGES.get(base, base)
        if python is not None and script.exists() and version(package, python) is not None:
            yield maker.peer(tool, python, bench)
            continue
        why = "not run" if python is None else f"{package} is not installed" if script.exists() else "no run.py"
        yield valued(Row(tool, seconds=record["user_s"], made=f"recorded: {why}"), record)


def goals(rows: Sequence[Row], margin: float) -> list[float]:
    """What to ask of `--min-sqnr`: above each tool that leaves products in high precision; within half a dB, above the
    best of them."""
    wanted = sorted(
        math.ceil(10 * (row.sqnr_db + margin)) / 10
        for row in rows
        if not row.error and 0 < row.nodes[0] < row.nodes[1] and math.isfinite(row.sqnr_db)
    )
    found: list[float] = []
    for goal in reversed(wanted):
        if not found or found[-1] - goal > 0.5:
            found.append(goal)
    return found[::-1]


def rows_of(maker: Maker, args: argparse.Namespace, pythons: Mapping[str, str]) -> list[Row]:
    """All rows of one model, those of other tools first."""
    found = list(peers(maker, maker.source, pythons)) if isinstance(maker.source, Bench) else []
    wanted = goals(found, args.margin)
    found.append(maker.ours("full coverage", FULL))
    found.append(maker.ours("default", (), paired=True))
    found += [maker.ours(f"--min-sqnr {goal:g}", ("--min-sqnr", f"{goal:g}")) for goal in wanted]
    return found


def text_of(name: str, rows: Sequence[Row], curve: Sequence[tuple[int, float]]) -> Iterator[str]:
    """The table of one model and what there is to say below it."""
    first = next((row for row in rows if not row.error), rows[0])
    digits = 3 if abs(first.metric[0]) < 10 else 1
    yield from (f"### {name}: {first.measure}, FP32 {first.metric[0]:.{digits}f}", "")
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|---|{'---:|' * (len(COLUMNS) - 2)}---|"
    for row in rows:
        yield f"| {' | '.join(row.cells(digits))} |"
    for row in rows:
        if row.error:
            yield from ("", f"{row.tool} failed: `{row.error}`")
    for row in rows:
        if row.paired is not None:
            lost, won = row.paired
            told = f"{lost} answers are right before alone, {won} after alone: p = {p_value(lost, won):.2f} (McNemar)"
            yield from ("", f"{row.tool} against FP32: {told}.")
    if curve:
        yield from ("", "Curve (FP8 nodes: dB): " + ", ".join(f"{nodes}: {value:.1f}" for nodes, value in curve) + ".")
    yield ""


def written(lines: Sequence[str], page: Path) -> None:
    """Puts the tables between the marks of a page."""
    begin, end = MARKS
    text = page.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise SystemExit(f"error: {page.name} has no lines {begin} and {end}")
    head, tail = text.partition(begin)[0], text.partition(end)[2]
    page.write_text(f"{head}{begin}\n\n" + "\n".join(lines).strip() + f"\n\n{end}{tail}", encoding="utf-8")


def main() -> int:
    """Makes the rows of each model and prints them; the status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, metavar="FOLDER")
    parser.add_argument("--entries", nargs="+", help="only these")
    parser.add_argument("--peers", nargs="+", default=[], metavar="TOOL=PYTHON", help="run these tools anew")
    parser.add_argument("--margin", type=float, default=0.5, help="dB that --min-sqnr asks for above a tool's figure")
    parser.add_argument("--no-curve", action="store_true")
    parser.add_argument("--limit-s", type=float, default=1800, help="seconds that a row may take")
    parser.add_argument("--work", type=Path, help="keep rows and models there, and go on from them")
    parser.add_argument("--write", action="store_true", help=f"write the tables into docs/{PAGE.name}")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    args = parser.parse_args()
    pythons = dict(item.split("=", 1) for item in args.peers)
    source: Source = Bench(args.bench) if args.bench is not None else Digits()
    lines: list[str] = []
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.entries or source.names:
            maker = Maker(source, name, args.work or Path(scratch), args.limit_s)
            rows = rows_of(maker, args, pythons)
            curve = [] if args.no_curve else maker.curve()
            failed |= any(row.error and row.tool.startswith("fp8graph") for row in rows)
            text = list(text_of(name, rows, curve))
            lines += text
            if args.json:
                for row in rows:
                    print(json.dumps({"entry": name, **asdict(row)}), flush=True)
            else:
                print("\n".join(text), flush=True)
    if args.write:
        written(lines, PAGE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
