"""What is printed of an attestation."""

from __future__ import annotations

from collections.abc import Sequence

from fp8graph.data.attestation import Attestation, Measure, OpVerdict
from fp8graph.report.tables import Cell, Paint, count, facts, plain, share, size, table, wrapped
from fp8graph.report.text import grouped

_BROKEN_SHOWN = 20
# Order of the columns: what one hopes for first.
_VERDICTS = ("fp8", "int8", "fp4", "storage", "folded", "emulated", "fell-back", "absent", "unknown")


def attested(
    attestation: Attestation,
    *,
    engine: str,
    model: str,
    required: Sequence[str] = (),
    every: bool = False,
    paint: Paint = plain,
) -> str:
    """The summary of `attest`: verdicts by type, each op that is not as planned, and one closing line.

    every   lists every op with its verdict and the witnesses that it rests on, those in high precision, too
    """
    chips = "+".join(attestation.chips) or "unknown chips"
    programs = count(attestation.profiles, "profile")
    lines = [f"{paint('bold', engine)}  {attestation.builder} for {chips}, {programs}; model {model}"]
    # Each note on the whole on its own; those on single ops together, as they come in numbers.
    told = [line for note in attestation.notes if not note.op for line in grouped([note], paint=paint)]
    told += grouped((note for note in attestation.notes if note.op), paint=paint)
    lines += ["", *told] if told else []
    ops = attestation.verdicts
    if ops:
        lines += ["", *_verdicts_table(attestation, paint), *_broken(attestation, paint)]
    lines += _every_op(attestation, paint) if every else []
    about = facts(_attested_facts(attestation))
    lines += ["", *about] if about else []
    if not ops:
        promise = "the plan quantizes no op" if attestation.plan else "the model's Q/DQ promise nothing"
        return "\n".join([*lines, *([""] if not about else []), f"nothing to attest: {promise}", *required])
    fine = len(ops) - len(attestation.broken)
    planned = sorted({op.planned for op in ops.values()})
    what = planned[0].upper() if len(planned) == 1 else "low precision"
    closing = f"{fine} of {len(ops)} planned {what} ops run in {what} on {chips}"
    if len(planned) > 1:
        closing = f"{fine} of {len(ops)} planned ops run as planned on {chips}"
    if not attestation.sound:
        closing += "; what was found above speaks against the whole"
    lines += [*required, paint("good" if attestation.honest else "bad", closing)]
    return "\n".join(lines)


def _verdicts_table(attestation: Attestation, paint: Paint) -> list[str]:
    ops = attestation.verdicts
    seen = [name for name in _VERDICTS if name in attestation.counts and (attestation.counts[name] or name == "fp8")]
    rows: list[list[Cell]] = []
    types = sorted({op.op_type for op in ops.values()})
    for op_type in [*types, *(["all"] if len(types) > 1 else [])]:
        mine = [op for op in ops.values() if op_type in (op.op_type, "all")]
        cells = [_verdict_cell(mine, name) for name in seen]
        rows.append([("bold", "all") if op_type == "all" else op_type, str(len(mine)), *cells])
    return table(["op type", "planned", *seen], rows, right=range(1, len(seen) + 2), paint=paint)


def _attested_facts(attestation: Attestation) -> list[tuple[str, str]]:
    """What the verdicts rest on, how much runs in FP8, what the other products do, how large the constants are."""
    grounds: dict[str, int] = {}
    for op in attestation.verdicts.values():
        ground = " and ".join(op.rests_on) if op.witnesses else ""
        if op.witnesses and not op.rests_on:
            ground = "no witness"
        if ground:
            grounds[ground] = grounds.get(ground, 0) + 1
    rest = [f"{number:,} on {ground}" + ("" if " " in ground else " alone") for ground, number in grounds.items()]
    others: dict[str, int] = {}
    for op in attestation.others.values():
        words = f"{op.op_type} in high precision" if op.verdict == "high" else f"{op.op_type}: {op.verdict}"
        others[words] = others.get(words, 0) + 1
    foretold = [op for op in attestation.verdicts.values() if op.forecast]
    right = sum(op.forecast == op.verdict for op in foretold)
    weights, held = attestation.weights, ""
    if weights.engine is not None:
        held = f"{size(weights.engine)} in the engine"
        if weights.forecast is not None and weights.excess is not None:
            held += f", {size(weights.forecast)} forecast from the model ({weights.excess:+.1%})"
    return [
        ("rests on", ", ".join(rest)),
        ("forecast", f"{right:,} of {len(foretold):,} ops do what the model let expect" if foretold else ""),
        ("MACs", _shares(attestation, "macs")),
        ("weights", _shares(attestation, "weight_bytes")),
        ("others", ", ".join(f"{number} {words}" for words, number in others.items())),
        ("constants", held),
    ]


def _shares(attestation: Attestation, measure: Measure) -> str:
    part, totals = attestation.share(measure), attestation.totals(measure)
    every = sum(totals.values())
    of_all = f"{share(totals['fp8'] / every)} of all products" if every else ""
    if part is None:
        return f"in FP8: {of_all}" if of_all else ""
    return f"in FP8: {share(part)} of those that can be or were planned so" + (f", {of_all}" if of_all else "")


def _every_op(attestation: Attestation, paint: Paint) -> list[str]:
    ops = {**attestation.verdicts, **attestation.others}
    forecast = any(op.forecast for op in ops.values())
    rows: list[list[Cell]] = []
    for key, op in ops.items():
        said = op.verdict if not op.profiles else ", ".join(f"{p}: {one}" for p, one in enumerate(op.profiles))
        style = "good" if op.as_planned else "bad"
        foreseen = [op.forecast] if forecast else []
        rows.append([key, op.op_type, op.planned, *foreseen, (style, said), " and ".join(op.rests_on) or "no witness"])
    head = ["op", "type", "planned", *(["forecast"] if forecast else []), "engine", "rests on"]
    return ["", *table(head, rows, paint=paint)] if rows else []


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
        ground = f"  (by {' and '.join(op.rests_on)})" if op.rests_on else ""
        lines.append(f"  {paint('bad', f'{op.verdict:<9}')}  {op.op_type}  {key}{name}, planned {op.planned}{ground}")
        lines += wrapped(op.why or "no reason is known", first="             ")
    if len(broken) > _BROKEN_SHOWN:
        lines.append(f"  and {count(len(broken) - _BROKEN_SHOWN, 'op')} more; --json lists them all")
    return lines
