"""Reports what keeps a model's Q/DQ from running in low precision, and mends what can be mended.

Works on anybody's Q/DQ model. One line for each finding, its code first; status 1 from severity `warning` upwards.
With --fix, OUT is the model as far as it could be mended, and the findings are those that are left; where nothing could
be mended, OUT is not written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.cli import values
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Model, Output, Policy
from fp8graph.cli.main import version
from fp8graph.cli.parser import Parser

USAGE = "check MODEL [--plan P] [--target T] [--select FG3] [--ignore FG301] [--fix -o OUT]"
EXAMPLES = (
    "check theirs.onnx --target tensorrt-rtx:sm89",
    "check m.fp8.onnx --select FG3 --ignore FG304 --json",
    "check theirs.onnx --output-format github",
    "check theirs.onnx --fix -o mended.onnx",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    files = Model.add(parser)
    group = parser.add_argument_group("check")
    group.add_argument("--plan", metavar="P", help="its plan, whose target and shapes count where none are named")
    Policy.target(group)
    group.add_argument("--select", nargs="+", action="extend", metavar="CODE", help="only codes that begin so")
    group.add_argument("--ignore", nargs="+", action="extend", metavar="CODE", help="not codes that begin so")
    group.add_argument("--exit-zero", action="store_true", help="status 0 whatever is found")
    group.add_argument("--fix", action="store_true", help="mend what can be mended, and write it as OUT")
    group.add_argument(
        "--output-format",
        type=values.choice("text", "json", "sarif", "github"),
        default="text",
        metavar="HOW",
        help="text, json, sarif or github",
    )
    Output.add(parser, files, "the mended model, with --fix")


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.check`."""
    model = Model.read(args, "check")
    select, ignore = _prefixes(args.select, "--select"), _prefixes(args.ignore, "--ignore")
    asked = {"plan": args.plan, "target": args.target, **_fix(args)}
    from fp8graph import flow
    from fp8graph.report import linting, text

    checked = flow.check(model, **asked)
    findings = tuple(
        item
        for item in checked
        if (not select or item.code.startswith(select)) and not (ignore and item.code.startswith(ignore))
    )
    bad = any(item.severity != "info" for item in findings)
    fixed, done, files = checked.fixed, checked.done, checked.files
    result: dict[str, object] = {"model": model}
    if args.fix:
        result |= {
            "output": args.output if files else None,
            "done": list(done),
            "fixed": [item.to_json() for item in fixed],
        }
    name = args.output if files else model
    if args.output_format == "sarif":
        said = linting.sarif(findings, model=name, version=version().rpartition(" ")[2])
    elif args.output_format == "github":
        said = linting.github(findings, model=name)
    else:
        said = text.checked(findings, model=name, fixed=fixed, done=done, files=files, paint=console.paint)
        said += f"\nnothing to fix was found: {args.output} is not written" if args.fix and not files else ""
    status = 1 if bad and not args.exit_zero else 0
    return Outcome(text=said, result=result, status=status, files=files, findings=findings)


def _fix(args: argparse.Namespace) -> dict[str, object]:
    """fix, output and force. Raises UsageError where one of --fix and -o is without the other."""
    if args.fix != bool(args.output):
        what = "--fix needs a name for what it writes" if args.fix else "check writes nothing without --fix"
        raise UsageError(what, where="python -m fp8graph check", do="add --fix -o OUT", code="FG100")
    return {"fix": True, "output": args.output, "force": args.force} if args.fix else {}


def _prefixes(given: Iterable[str] | None, option: str) -> tuple[str, ...]:
    """Beginnings of codes. Raises UsageError for one with which no code begins."""
    from fp8graph.base.codes import CODES

    found = tuple(part.strip().upper() for text in given or () for part in text.split(",") if part.strip())
    for prefix in found:
        if not any(code.startswith(prefix) for code in CODES):
            raise UsageError(
                f"no code begins with '{prefix}'", where=option, do=did_you_mean(prefix, CODES), code="FG101"
            )
    return found
