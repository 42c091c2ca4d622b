"""What commands print for people: what was done in the user's words, what was not and why, and what to type next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fp8graph.base.files import WrittenFile
from fp8graph.base.findings import Finding
from fp8graph.data.attestation import Attestation, OpVerdict
from fp8graph.data.comparison import Comparison, DefaultSession, OutputDifference
from fp8graph.data.plan import Decision, Plan
from fp8graph.report.tables import Cell, Paint, count, facts, listed, plain, share, size, table, tally, wrapped

_REASONS_SHOWN = 10
_BROKEN_SHOWN = 20
_OUTPUTS_SHOWN = 12
# Order of the columns: what one hopes for first.
_VERDICTS = ("fp8", "int8", "fp4", "storage", "folded", "emulated", "fell-back", "absent", "unknown")


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
        ("scales", _scales(plan, samples)),
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
    groups: dict[tuple[str, str], list[tuple[str, Decision]]] = {}
    for key, op in plan.kept():
        if op.op_type in wanted:
            groups.setdefault((op.why.code, op.why.by), []).append((key, op))
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


def attested(
    attestation: Attestation, *, engine: str, model: str, required: Sequence[str] = (), paint: Paint = plain
) -> str:
    """The summary of `attest`: verdicts by type, each op that is not as planned, and one closing line."""
    chips = "+".join(attestation.chips) or "unknown chips"
    programs = count(attestation.profiles, "profile")
    lines = [f"{paint('bold', engine)}  {attestation.builder} for {chips}, {programs}; model {model}"]
    ops = attestation.verdicts
    if not ops:
        promise = "the plan quantizes no op" if attestation.plan else "the model's Q/DQ promise nothing"
        return "\n".join([*lines, "", f"nothing to attest: {promise}", *required])
    seen = [name for name in _VERDICTS if name in attestation.counts and (attestation.counts[name] or name == "fp8")]
    rows: list[list[Cell]] = []
    types = sorted({op.op_type for op in ops.values()})
    for op_type in [*types, *(["all"] if len(types) > 1 else [])]:
        mine = [op for op in ops.values() if op_type in (op.op_type, "all")]
        cells = [_verdict_cell(mine, name) for name in seen]
        rows.append([("bold", "all") if op_type == "all" else op_type, str(len(mine)), *cells])
    lines += ["", *table(["op type", "planned", *seen], rows, right=range(1, len(seen) + 2), paint=paint)]
    lines += _broken(attestation, paint)
    about = [
        ("MACs", _share(attestation.share("macs"), "of those planned run in FP8")),
        ("weights", _share(attestation.share("weight_bytes"), "of the planned ops' bytes belong to ops in FP8")),
    ]
    lines += ["", *facts(about)]
    fine = len(ops) - len(attestation.broken)
    planned = sorted({op.planned for op in ops.values()})
    what = planned[0].upper() if len(planned) == 1 else "low precision"
    closing = f"{fine} of {len(ops)} planned {what} ops run in {what} on {chips}"
    if len(planned) > 1:
        closing = f"{fine} of {len(ops)} planned ops run as planned on {chips}"
    lines += [*required, paint("bad" if attestation.broken else "good", closing)]
    return "\n".join(lines)


def compared(comparison: Comparison, *, a: str, b: str, missed: Sequence[str] = (), paint: Paint = plain) -> str:
    """The summary of `compare`."""
    lines = [f"{b} against {a}, {count(comparison.samples, 'sample')}", "", *outputs_table(comparison, paint=paint)]
    bad = [*comparison.problems, *missed]
    lines += ["", *(paint("bad", text) for text in bad)] if bad else []
    return "\n".join(lines)


def outputs_table(comparison: Comparison, *, paint: Paint = plain) -> list[str]:
    """One line per output; of many, the worst."""
    ordered = sorted(comparison.outputs.items(), key=lambda item: _badness(item[1]))
    shown = ordered[:_OUTPUTS_SHOWN] if len(ordered) > _OUTPUTS_SHOWN else list(comparison.outputs.items())
    rows: list[list[Cell]] = [
        [name, _sqnr(item), _float(item.cosine, ".6f"), _float(item.max_abs, ".3g"), _remark(item)]
        for name, item in shown
    ]
    lines = table(["output", "SQNR", "cosine", "max. difference", ""], rows, right=(1, 2, 3), paint=paint)
    if len(ordered) > len(shown):
        lines.append(f"  and {count(len(ordered) - len(shown), 'output')} that lie closer")
    return lines


def calibrated(*, model: str, tensors: int | None, samples: int | None, files: Sequence[WrittenFile]) -> str:
    """The summary of `calibrate`."""
    what = count(tensors, "tensor") if tensors is not None else "tensors"
    on = f" on {count(samples, 'sample')}" if samples is not None else ""
    written = files[0].path if files else "RANGES"
    return "\n".join(
        [
            f"observed {what} of {model}{on}",
            "",
            *facts(
                [
                    ("wrote", _written(files)),
                    ("next", f"python -m fp8graph optimize {model} -o OUT --ranges {written}"),
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
    paint: Paint = plain,
) -> str:
    """The summary of `build`."""
    made_by = f" by {builder}" if builder else ""
    lines = [f"{paint('bold', engine)}  for {'+'.join(chips) or 'this machine'}{made_by}, from {model}", ""]
    lines += facts([("wrote", _written(files)), ("next", next_command)])
    lines += ["", *(f"{paint('warn', 'warning')}: {text}" for text in warnings)] if warnings else []
    return "\n".join(lines)


def checked(findings: Sequence[Finding], *, model: str, paint: Paint = plain) -> str:
    """The findings of `check`, one line each, code first."""
    if not findings:
        return f"{model}: nothing found"
    styles = {"error": "bad", "warning": "warn", "info": "dim"}
    lines = [
        f"{paint(styles[item.severity], item.code)} {item.severity:<7} {item.op or model}: {item.text}"
        + (f"; {item.do}" if item.do else "")
        for item in findings
    ]
    kinds = [count(n, name) for name in styles if (n := sum(item.severity == name for item in findings))]
    return "\n".join([*lines, f"{count(len(findings), 'finding')} ({', '.join(kinds)})"])


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
    why = session.why if len(session.why) < 160 else session.why[:157] + "..."
    return f"not safe at its default settings: {why}" + (f"\nset {options}" if options else "")


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
        kind = "weights" if quant.scale.origin == "computed" else "activations"
        per = "one scale per channel" if quant.granularity.blocks else "one scale per tensor"
        text = f"{kind} {quant.format}, {per}"
        found[text] = found.get(text, 0) + 1
    return [f"{text} ({number:,})" for text, number in sorted(found.items())]


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


def _sqnr(item: OutputDifference) -> Cell:
    if item.sqnr_db is None:
        return "equal" if item.equal else "-"
    return ("good" if item.sqnr_db >= 20 else "warn" if item.sqnr_db >= 10 else "bad", f"{item.sqnr_db:.1f} dB")


def _remark(item: OutputDifference) -> Cell:
    return ("bad", f"{item.new_nonfinite:,} new NaN or Inf") if item.new_nonfinite else ""


def _badness(item: OutputDifference) -> tuple[bool, float]:
    return (not item.new_nonfinite, float("inf") if item.sqnr_db is None else item.sqnr_db)


def _float(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _share(part: float | None, of: str) -> str:
    return "" if part is None else f"{share(part)} {of}"


def _verdict_cell(ops: Sequence[OpVerdict], verdict: str) -> Cell:
    mine = [op for op in ops if op.verdict == verdict]
    return ("bad" if any(not op.as_planned for op in mine) else "good" if mine else "dim", str(len(mine)))


def _broken(attestation: Attestation, paint: Paint) -> list[str]:
    broken = attestation.broken
    if not broken:
        return []
    lines = ["", "not as planned"]
    for key, op in list(broken.items())[:_BROKEN_SHOWN]:
        name = f"  (name {op.name})" if op.name and op.name != key else ""
        lines.append(f"  {paint('bad', f'{op.verdict:<9}')}  {op.op_type}  {key}{name}, planned {op.planned}")
        lines += wrapped(op.why or "no reason is known", first="             ")
    if len(broken) > _BROKEN_SHOWN:
        lines.append(f"  and {count(len(broken) - _BROKEN_SHOWN, 'op')} more; --json lists them all")
    return lines
