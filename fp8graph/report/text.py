"""What commands print for people: what was done in the user's words, what was not and why, and what to type next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from fp8graph.base.files import WrittenFile
from fp8graph.base.findings import Finding
from fp8graph.data.comparison import Comparison, DefaultSession, OutputDifference
from fp8graph.data.plan import Decision, Plan, Quant
from fp8graph.report.layering import layers_table
from fp8graph.report.tables import Cell, Paint, count, facts, listed, plain, size, sqnr, table, tally, wrapped

_REASONS_SHOWN = 10
# Codes of notes that an op has another type than the one asked for.
_RETYPED = ("FG214", "FG222")
_OUTPUTS_SHOWN = 12


def optimized(
    plan: Plan,
    *,
    source: str,
    output: str,
    files: Sequence[WrittenFile],
    findings: Sequence[Finding] = (),
    comparison: Comparison | None = None,
    default_session: DefaultSession | None = None,
    seconds: Mapping[str, float] | None = None,
    source_bytes: int | None = None,
    samples: int | None = None,
    next_command: str = "",
    paint: Paint = plain,
) -> str:
    """The summary of `optimize`."""
    lines = [f"{paint('bold', source)} -> {paint('bold', output)}  for {plan.target}, recipe {_recipe(plan)}", ""]
    lines += planned_table(plan, paint=paint)
    lines += kept_table(plan, paint=paint)
    made = {file.path: file for file in files}
    # a plan alone, which is what `--plan-only` writes, has no size to speak of
    model_bytes = (
        0
        if output.endswith(".plan.json")
        else sum(file.bytes for path, file in made.items() if path == output or path == f"{output}.data")
    )
    about = [
        ("formats", "\n".join(_formats(plan))),
        ("types", "\n".join(_types(findings))),
        ("scales", _scales(plan, samples)),
        ("goal", _goal(plan)),
        ("size", _sizes(source_bytes, model_bytes)),
        ("time", _times(seconds or {})),
    ]
    lines += ["", *facts(about)]
    if comparison is not None:
        lines += ["", f"outputs, {count(comparison.samples, 'sample')} (original against result)"]
        lines += outputs_table(comparison, paint=paint)
    if default_session is not None:
        lines += ["", *facts([("onnxruntime", _default(default_session))], width=13)]
    told = grouped(findings, paint=paint, least="warning")
    lines += ["", *told] if told else []
    lines += ["", *facts([("wrote", _written(files)), ("next", next_command)])]
    return "\n".join(lines)


def planned_table(plan: Plan, *, paint: Paint = plain) -> list[str]:
    """Operators of the types that matter, by what they became; the others in one line."""
    wanted = _considered(plan)
    formats = sorted({name for _, op in plan.quantized() for name in _op_formats(op)})
    rows: list[list[Cell]] = []
    for op_type in sorted(wanted):
        ops = [op for op in plan.ops.values() if op.op_type == op_type]
        if ops:
            rows.append([op_type, *_counts(ops, formats)])
    considered = [op for op in plan.ops.values() if op.op_type in wanted]
    if len(rows) > 1:
        rows.append([("bold", "all"), *_counts(considered, formats)])
    lines = table(["op type", *map(_column, formats), "kept"], rows, right=range(1, len(formats) + 2), paint=paint)
    rest: dict[str, int] = {}
    for op in plan.ops.values():
        if op.op_type not in wanted:
            rest[op.op_type] = rest.get(op.op_type, 0) + 1
    if rest:
        lines += wrapped(
            f"{count(sum(rest.values()), 'other op')} of types that are not quantized: {tally(rest)}", first="  "
        )
    return lines


def kept_table(plan: Plan, *, paint: Paint = plain) -> list[str]:
    """Why operators of the types that matter stay in high precision, the most frequent reason first."""
    wanted = _considered(plan)
    groups: dict[tuple[str, str, str], list[tuple[str, Decision]]] = {}
    for key, op in plan.kept():
        if op.op_type in wanted:
            groups.setdefault((op.why.code, op.why.by, _kind(op.why.text)), []).append((key, op))
    if not groups:
        return []
    lines = ["", "kept in high precision"]
    ordered = sorted(groups.values(), key=lambda ops: (-len(ops), ops[0][1].why.code))
    width = len(str(len(ordered[0])))
    for ops in ordered[:_REASONS_SHOWN]:
        why = ops[0][1].why
        types = listed(sorted({op.op_type for _, op in ops}), 3)
        head = f"  {len(ops):>{width}}  {why.code}  {types}: "
        text = wrapped(f"{why.text} ({listed((key for key, _ in ops), 2)})", first=head, rest=" " * (width + 11))
        lines += [text[0].replace(why.code, paint("warn", why.code), 1), *text[1:]]
    if len(ordered) > _REASONS_SHOWN:
        more = sum(len(ops) for ops in ordered[_REASONS_SHOWN:])
        lines.append(f"  and {count(more, 'op')} for {count(len(ordered) - _REASONS_SHOWN, 'other reason')}")
    return lines


def _kind(text: str) -> str:
    """A reason without what it names: of one kind are those that differ in that alone."""
    return re.sub(r"'[^']*'", "''", text)


def compared(comparison: Comparison, *, a: str, b: str, missed: Sequence[str] = (), paint: Paint = plain) -> str:
    """The summary of `compare`."""
    lines = [f"{b} against {a}, {count(comparison.samples, 'sample')}", "", *outputs_table(comparison, paint=paint)]
    lines += ["", *layers_table(comparison.layers, paint=paint)] if comparison.layers is not None else []
    bad = [*comparison.problems, *missed]
    lines += ["", *(paint("bad", text) for text in bad)] if bad else []
    return "\n".join(lines)


def outputs_table(comparison: Comparison, *, paint: Paint = plain) -> list[str]:
    """One line per output; of many, the worst."""
    ordered = sorted(comparison.outputs.items(), key=lambda item: _badness(item[1]))
    shown = ordered[:_OUTPUTS_SHOWN] if len(ordered) > _OUTPUTS_SHOWN else list(comparison.outputs.items())
    rows: list[list[Cell]] = [
        [name, sqnr(item), _float(item.cosine, ".6f"), _float(item.max_abs, ".3g"), _remark(item)]
        for name, item in shown
    ]
    lines = table(["output", "SQNR", "cosine", "max. difference", ""], rows, right=(1, 2, 3), paint=paint)
    if len(ordered) > len(shown):
        lines.append(f"  and {count(len(ordered) - len(shown), 'output')} that lie closer")
    return lines


def calibrated(
    *,
    model: str,
    tensors: int | None,
    samples: int | None,
    files: Sequence[WrittenFile],
    findings: Sequence[Finding] = (),
    next_command: str = "",
    paint: Paint = plain,
) -> str:
    """The summary of `calibrate`."""
    told = grouped(findings, paint=paint, least="warning")
    what = count(tensors, "tensor") if tensors is not None else "tensors"
    on = f" on {count(samples, 'sample')}" if samples is not None else ""
    return "\n".join(
        [
            f"observed {what} of {model}{on}",
            "",
            *([*told, ""] if told else []),
            *facts(
                [
                    ("wrote", _written(files)),
                    ("next", next_command),
                ]
            ),
        ]
    )


def built(
    *,
    engine: str,
    model: str,
    chips: Sequence[str],
    builder: str,
    files: Sequence[WrittenFile],
    warnings: Sequence[str],
    next_command: str,
    profiles: Sequence[Mapping[str, Mapping[str, Sequence[int]]]] = (),
    paint: Paint = plain,
) -> str:
    """The summary of `build`, with the shapes that it was built for: others it does not run."""
    made_by = f" by {builder}" if builder else ""
    lines = [f"{paint('bold', engine)}  for {'+'.join(chips) or 'this machine'}{made_by}, from {model}", ""]
    shapes = "\n".join(_profile(shapes, index, len(profiles)) for index, shapes in enumerate(profiles))
    lines += facts([("shapes", shapes), ("wrote", _written(files)), ("next", next_command)])
    lines += ["", *(f"{paint('warn', 'warning')}: {text}" for text in warnings)] if warnings else []
    return "\n".join(lines)


def _profile(shapes: Mapping[str, Mapping[str, Sequence[int]]], index: int, count: int) -> str:
    """The shapes of one profile: `x 1x3x8x8 to 4x3x8x8, most often 2x3x8x8`, or one shape where the three are alike."""
    said = []
    for name, three in shapes.items():
        low, usual, high = ("x".join(map(str, three[which])) or "()" for which in ("min", "opt", "max"))
        said.append(f"{name} {low}" + ("" if low == usual == high else f" to {high}, most often {usual}"))
    return (f"profile {index}: " if count > 1 else "") + ("; ".join(said) or "those of the model")


def checked(
    findings: Sequence[Finding],
    *,
    model: str,
    fixed: Sequence[Finding] = (),
    done: Sequence[str] = (),
    files: Sequence[WrittenFile] = (),
    paint: Paint = plain,
) -> str:
    """The findings of `check`, one line each, code first; with --fix, what was done before those that are left."""
    styles = {"error": "bad", "warning": "warn", "info": "dim"}
    lines = [
        f"{paint(styles[item.severity], item.code)} {item.severity:<7} {item.op or model}: {item.text}"
        + (f"; {item.do}" if item.do else "")
        for item in findings
    ]
    kinds = [count(n, name) for name in styles if (n := sum(item.severity == name for item in findings))]
    closing = f"{count(len(findings), 'finding')} ({', '.join(kinds)})" if findings else f"{model}: nothing found"
    if not files:
        return "\n".join([*lines, closing])
    mended = [f"fixed: {text}" for text in done] or ["fixed: nothing that could be"]
    mended += [f"  {item.code} {item.op or model}: {item.text}" for item in fixed]
    left = f"{len(fixed)} fixed, {closing} left" if findings else f"{len(fixed)} fixed, nothing left"
    return "\n".join([*mended, *lines, left, *facts([("wrote", _written(files))])])


def grouped(findings: Iterable[Finding], *, limit: int = 12, least: str = "info", paint: Paint = plain) -> list[str]:
    """Findings by code, one paragraph each: how many, the first one's text, some of the ops."""
    allowed = {"info": ("error", "warning", "info"), "warning": ("error", "warning"), "error": ("error",)}[least]
    groups: dict[tuple[str, str], list[Finding]] = {}
    for item in findings:
        if item.severity in allowed:
            groups.setdefault((item.severity, item.code), []).append(item)
    lines: list[str] = []
    ordered = sorted(groups.items(), key=lambda group: (allowed.index(group[0][0]), -len(group[1])))
    for (severity, code), items in ordered[:limit]:
        times = f" ({len(items)} times)" if len(items) > 1 else ""
        ops = listed(dict.fromkeys(item.op for item in items if item.op), 3)
        head = f"{severity}[{code}]: "
        text = wrapped(f"{items[0].text}{times}" + (f" - {ops}" if ops else ""), first=head, rest="  ")
        style = {"error": "bad", "warning": "warn"}.get(severity, "dim")
        lines += [paint(style, head[:-2]) + text[0][len(head) - 2 :], *text[1:]]
        if items[0].do:
            lines.append(f"  do:    {items[0].do}")
    if len(ordered) > limit:
        lines.append(f"and {count(len(ordered) - limit, 'other code')}")
    return lines


def _default(session: DefaultSession) -> str:
    """What a user meets who loads the result with ONNX Runtime's default settings."""
    if session.safe:
        return "safe at its default settings"
    options = ", ".join(f"{name}={value}" for name, value in session.options.items())
    why = "\n".join(wrapped(f"not safe at its default settings: {session.why}", width=84))
    return why + (f"\nset {options}" if options else "")


def _written(files: Sequence[WrittenFile]) -> str:
    return "\n".join(f"{file.path}  ({size(file.bytes)})" for file in files)


def _recipe(plan: Plan) -> str:
    return str(plan.recipe.get("name", "unnamed"))


def _considered(plan: Plan) -> set[str]:
    """Operator types that the recipe quantizes, or of which some operator is quantized."""
    quantize = plan.recipe.get("quantize", {})
    asked = quantize.get("ops", ()) if isinstance(quantize, Mapping) else ()
    return {*asked, *(op.op_type for _, op in plan.quantized())}


def _op_formats(op: Decision) -> list[str]:
    """The one name under which a quantized operator is counted: its operands' formats."""
    return ["+".join(dict.fromkeys(quant.format for _, quant in sorted(op.inputs.items())))]


def _column(formats: str) -> str:
    return f"FP8 ({formats})" if formats.startswith(("e4m3", "e5m2")) else formats


def _counts(ops: Sequence[Decision], formats: Sequence[str]) -> list[Cell]:
    low: list[Cell] = [str(sum(name in _op_formats(op) for op in ops if op.do == "quantize")) for name in formats]
    return [*low, str(sum(op.do == "keep" for op in ops))]


def _formats(plan: Plan) -> list[str]:
    found: dict[str, int] = {}
    for quant in plan.quants():
        kind = "weights" if quant.scale.of_weight else "activations"
        text = f"{kind} {quant.format}, one scale per {_part(quant)}"
        found[text] = found.get(text, 0) + 1
    return [f"{text} ({number:,})" for text, number in sorted(found.items())]


def _part(quant: Quant) -> str:
    """What one scale is for: tensor, channel, token, or a block and its size."""
    sizes = [size for _, size in quant.granularity.blocks]
    large = [size for size in sizes if size > 1]
    stored = f" stored as {quant.scale.stored.format}" if quant.scale.stored.format else ""
    if large:
        return f"block of {' x '.join(map(str, large))}{stored}"
    if not sizes:
        return "tensor"
    return "channel" if quant.scale.of_weight else "token"


def _types(findings: Sequence[Finding]) -> list[str]:
    """Operators that have another high-precision type than was asked for, a line for each kind of reason."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for item in findings:
        if item.code in _RETYPED:
            groups.setdefault((item.code, _kind(item.text)), []).append(item)
    return [
        line
        for (code, _), items in sorted(groups.items(), key=lambda group: -len(group[1]))
        for line in wrapped(
            f"{items[0].text} ({code}, {count(len(items), 'op')}: {listed((item.op for item in items), 3)})", width=89
        )
    ]


def _goal(plan: Plan) -> str:
    """What a search has reached, on which samples; empty without one."""
    done = plan.search
    if not done:
        return ""
    goal, unit = done["goal"], " dB" if done["metric"] == "sqnr" else ""
    wish = f"at least {goal['min_sqnr']:g} dB" if "min_sqnr" in goal else ""
    wish = f"{done['metric']} at most {goal['max_drop']:g} below the original's" if "max_drop" in goal else wish
    spread = f" (standard error {done['standard_error']:.2g})" if done.get("standard_error") else ""
    reached = "nothing differs" if done["reached"] is None else f"{done['reached']:.4g}{unit}{spread}"
    on = count(done["samples"], "sample") if done["samples"] is not None else "the samples"
    return f"{wish + ': ' if wish else ''}{reached} on {on}, {count(len(done['steps']), 'plan')} judged"


def _scales(plan: Plan, samples: int | None) -> str:
    origins: dict[str, int] = {}
    missing = 0
    for quant in plan.quants():
        origins[quant.scale.origin] = origins.get(quant.scale.origin, 0) + 1
        missing += not quant.settled
    words = {
        "computed": "computed from weights",
        "observed": "observed" + (f" on {count(samples, 'sample')}" if samples else ""),
        "given": "given by the model or the op",
        "dynamic": "computed at run time",
    }
    parts = [f"{origins[origin]:,} {text}" for origin, text in words.items() if origin in origins]
    text = ", ".join(parts)
    if plan.data == "random" or plan.data.startswith("random, "):  # the label that calibration stamps
        text += "\nthe data was RANDOM: these scales say nothing about real inputs"
    if missing:
        text += f"\n{missing:,} still without a number: give data"
    return text


def _sizes(before: int | None, after: int) -> str:
    if not after:
        return ""
    if not before:
        return size(after)
    return f"{size(before)} -> {size(after)}  ({after / before:.0%})"


def _times(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    slow = sorted(((time, name) for name, time in seconds.items() if time >= 0.05), reverse=True)[:3]
    parts = ", ".join(f"{name} {time:.1f}" for time, name in slow)
    return f"{sum(seconds.values()):.1f} s" + (f"  ({parts})" if parts else "")


def _remark(item: OutputDifference) -> Cell:
    return ("bad", f"{item.new_nonfinite:,} new NaN or Inf") if item.new_nonfinite else ""


def _badness(item: OutputDifference) -> tuple[bool, float]:
    return (not item.new_nonfinite, float("inf") if item.sqnr_db is None else item.sqnr_db)


def _float(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
