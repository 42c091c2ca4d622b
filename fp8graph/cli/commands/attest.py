"""Says for every planned operator what the engine really does.

Read from the engine's own programs, all profiles together, without a device. Status 1 where an operator is not what the
plan says, or engine, model and plan do not belong together; `unknown` is no success. Without a plan, the model's own
Q/DQ are the promise. -v lists every operator, those that were left in high precision, too.
"""

from __future__ import annotations

import argparse
from typing import Any, Literal

from fp8graph.base.errors import UsageError
from fp8graph.cli import values
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.parser import Parser

USAGE = "attest ENGINE --model M [--plan P] [--require 'fp8>=0.95']"
EXAMPLES = (
    "attest m.engine --model m.fp8.onnx",
    "attest m.engine --model m.fp8.onnx --require 'fp8>=0.95' --json",
)
_MEASURES: dict[str, Literal["macs", "weight_bytes"]] = {"macs_fp8": "macs", "weight_bytes_fp8": "weight_bytes"}


def configure(parser: Parser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("engine")
    group.add_argument("engine", nargs="?", metavar="ENGINE", help="what `build` wrote")
    parser.option(group, "--model", metavar="M", known_as=("--onnx", "--onnx-path"), help="the model it was built from")
    group.add_argument("--plan", metavar="P", help="what was promised (M.plan.json beside the model)")
    group.add_argument(
        "--require",
        type=values.requirement,
        nargs="+",
        action="extend",
        metavar="WHAT>=SHARE",
        help="status 1 below this share instead: of planned ops by verdict (fp8), macs_fp8 or weight_bytes_fp8",
    )


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.attest`."""
    if not (args.engine and args.model):
        raise UsageError(
            "'attest' needs an engine and the model that it was built from",
            where="python -m fp8graph attest",
            do="python -m fp8graph attest ENGINE --model M",
            code="FG100",
        )
    requirements = [(_known(name), least) for name, least in args.require or ()]
    from fp8graph import flow
    from fp8graph.report import attesting

    found = flow.attest(args.engine, model=args.model, plan=args.plan)
    lines, met = [], True
    for name, least in requirements:
        part = found.share(_MEASURES[name]) if name in _MEASURES else _share(found, name)
        fine = part is not None and part >= least
        met = met and fine
        shown = "nothing planned" if part is None else f"{part:.4g}"
        lines.append(
            console.paint("good" if fine else "bad", f"{name} >= {least:g}: {'met' if fine else 'missed'} ({shown})")
        )
    fine = found.sound and met if requirements else found.honest
    return Outcome(
        text=attesting.attested(
            found,
            engine=args.engine,
            model=args.model,
            required=lines,
            every=console.verbose > 0,
            paint=console.paint,
        ),
        result=found.to_json(),
        status=0 if fine else 1,
        findings=found.findings,
    )


def _known(name: str) -> str:
    from typing import get_args

    from fp8graph.base.names import did_you_mean
    from fp8graph.data.attestation import Verdict

    known = (*get_args(Verdict), *_MEASURES)
    if name not in known:
        raise UsageError(
            f"'{name}' is nothing that can be required", where="--require", do=did_you_mean(name, known), code="FG101"
        )
    return name


def _share(found: Any, verdict: str) -> float | None:
    """Of the ops that were planned as `verdict`, those that the engine runs so."""
    planned = [op for op in found.verdicts.values() if op.planned == verdict]
    return sum(op.verdict == verdict for op in planned) / len(planned) if planned else None
