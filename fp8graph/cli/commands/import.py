"""Brings the FP8 weights and scales of a checkpoint to a model.

CHECKPOINT is a .safetensors file, a .safetensors.index.json, or a folder with one of them and config.json. OUT.onnx is
standard ONNX that ONNX Runtime runs: weights are the checkpoint's codes behind DequantizeLinear; activations are
rounded only where the checkpoint has scales for them. What matches nothing, on either side, is listed; status 3 where
it is not allowed. Pickles (.bin, .pt) are never opened.
A Q/DQ model, or the calibration cache or table of another tool, gives its scales to a plan: -o P.json, for `optimize
--plan P.json`. Weights are then rounded anew, and what the file does not give is observed.
"""

from __future__ import annotations

import argparse

from fp8graph.base.errors import UsageError
from fp8graph.cli import values
from fp8graph.cli.console import Console, Outcome
from fp8graph.cli.groups import Output, Policy
from fp8graph.cli.parser import Parser

USAGE = "import CHECKPOINT --model MODEL -o OUT.onnx [--allow-unmatched GLOB ...]"
EXAMPLES = (
    "import Qwen3-0.6B-FP8/ --model qwen3.onnx -o qwen3.fp8.onnx",
    "import model.safetensors --model m.onnx -o o.onnx --allow-unmatched 'model.rotary_emb.*'",
    "import calib.cache --from trt-cache --model m.onnx -o p.json --target tensorrt-rtx:sm89",
)


def configure(parser: Parser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("what is brought where")
    group.add_argument("source", nargs="?", metavar="CHECKPOINT", help="a file, an index, or a folder with its config")
    parser.option(
        group, "--model", metavar="MODEL", known_as=("--onnx", "--onnx-path"), help="the graph of its architecture"
    )
    group.add_argument(
        "--from",
        dest="from_",
        default="auto",
        metavar="KIND",
        help="what CHECKPOINT is: auto, safetensors, qdq, modelopt-cache, trt-cache or ort-table",
    )
    Policy.target(group)
    Policy.recipe(parser, group)
    group.add_argument(
        "--allow-unmatched",
        nargs="+",
        action="extend",
        metavar="GLOB",
        help="names, of checkpoint or model, that may find no counterpart",
    )
    Output.add(parser, group, "the model with the checkpoint's weights, or a plan")
    group.add_argument(
        "--external-data-size-threshold",
        type=values.size,
        metavar="SIZE",
        help="each weight larger than SIZE bytes goes to OUT.data (1M); without it: where they were",
    )


def run(args: argparse.Namespace, console: Console) -> Outcome:
    """Calls `fp8graph.flow.import_plan`."""
    if not (args.source and args.model):
        raise UsageError(
            "'import' needs a checkpoint and the model of its architecture",
            where="python -m fp8graph import",
            do="python -m fp8graph import CHECKPOINT --model MODEL -o OUT.onnx",
            code="FG100",
        )
    output = Output.read(args, "import")
    from fp8graph import flow
    from fp8graph.report import importing

    done = flow.import_plan(
        args.source,
        model=args.model,
        **output,
        from_=args.from_,
        target=args.target,
        recipe=Policy.recipe_name(args),
        allow_unmatched=args.allow_unmatched,
        external_data_size_threshold=args.external_data_size_threshold,
        progress=console.progress,
    )
    result = done.to_json()
    return Outcome(
        text=importing.imported(
            result,
            plan=done.plan is not None,
            source=args.source,
            output=args.output,
            files=done.files,
            findings=done.findings,
            paint=console.paint,
        ),
        result=result,
        files=done.files,
        findings=done.findings,
    )
