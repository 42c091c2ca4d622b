"""Option groups, shared by commands, one class each: `add` declares the options, `read` gives them as the keyword
arguments of the function behind the command. None means: not asked, the default decides."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.cli import values
from fp8graph.cli.parser import Parser
from fp8graph.cli.shaping import merged

_MODES = {"fp8": "fp8-default"}  # ModelOpt's --quantize_mode; other values are recipes by the same name


class Common:
    """Options of every command; they may stand before it, too."""

    @staticmethod
    def add(parser: Parser) -> None:
        """Declares them."""
        group = parser.add_argument_group("common")
        group.add_argument("--json", action="store_true", help="print one JSON document instead of text")
        group.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice for everything")
        group.add_argument("-q", "--quiet", action="store_true", help="say nothing on stderr but errors")
        group.add_argument("--log-file", metavar="F", help="append the whole log to F")
        group.add_argument(
            "--color",
            type=values.choice("auto", "always", "never"),
            default="auto",
            metavar="WHEN",
            help="auto, always or never",
        )
        group.add_argument(
            "--progress",
            type=values.choice("auto", "plain", "none"),
            default="auto",
            metavar="HOW",
            help="auto, plain or none",
        )
        group.add_argument("-h", "--help", action="store_true", help="print this help")
        group.add_argument("--version", action="store_true", help="print the version")


class Model:
    """MODEL in and, for commands that write, OUT."""

    @staticmethod
    def add(parser: Parser, *, output: str = "", storage: bool = False) -> argparse._ArgumentGroup:
        """Declares them; `output` says what is written, `storage` adds how."""
        group = parser.add_argument_group("model")
        group.add_argument("model", nargs="?", metavar="MODEL", help="ONNX model")
        parser.add_argument("--onnx", "--onnx-path", dest="model_option", help=argparse.SUPPRESS)
        if output:
            Output.add(parser, group, output)
        if storage:
            group.add_argument(
                "--external-data-size-threshold",
                type=values.size,
                metavar="SIZE",
                help="each weight larger than SIZE bytes goes to OUT.data (1M); without it: where they were",
            )
        return group

    @staticmethod
    def read(args: argparse.Namespace, command: str) -> str:
        """MODEL. Raises UsageError where it was not given, or twice."""
        given = [path for path in (args.model, args.model_option) if path is not None]
        if len(given) != 1:
            raise UsageError(
                f"'{command}' needs one MODEL" + (f", two were given: {given[0]}, {given[1]}" if given else ""),
                where=f"python -m fp8graph {command}",
                why="an option that takes several values took all that follow it" if _greedy(args) else "",
                do="name the ONNX file first, right after the command",
                code="FG100",
            )
        return str(given[0])


def _greedy(args: argparse.Namespace) -> bool:
    return any(isinstance(value, list) and len(value) > 1 for value in vars(args).values())


class Output:
    """-o and --force."""

    @staticmethod
    def add(parser: Parser, group: argparse._ArgumentGroup, what: str) -> None:
        """Declares them in `group`."""
        aliases = ("--output-path", "--saveEngine")
        parser.option(group, "-o", "--output", metavar="OUT", known_as=aliases, help=what)
        group.add_argument("--force", action="store_true", help="overwrite files that exist")

    @staticmethod
    def read(args: argparse.Namespace, command: str) -> dict[str, Any]:
        """output, force. Raises UsageError where OUT was not given."""
        if not args.output:
            raise UsageError(
                f"'{command}' needs a name for what it writes",
                where=f"python -m fp8graph {command}",
                do="add -o OUT",
                code="FG100",
            )
        return {"output": args.output, "force": args.force}


class CustomOps:
    """Libraries of operators that ONNX Runtime does not have."""

    @staticmethod
    def add(parser: Parser, group: argparse._ArgumentGroup) -> None:
        """Declares the option in `group`."""
        parser.option(
            group,
            "--custom-ops",
            nargs="+",
            action="extend",
            metavar="LIB.so",
            known_as=("--ort-custom-ops",),
            help="libraries with the model's own operators",
        )


class Data:
    """What is observed or compared on."""

    @staticmethod
    def add(parser: Parser) -> None:
        """Declares them."""
        group = parser.add_argument_group("data")
        parser.option(
            group,
            "--data",
            nargs="+",
            action="extend",
            metavar="URI",
            known_as=("--calibration-data-path", "--calibration-data", "--load-inputs", "--load-input-data"),
            help=".npz, .npy, feeds of Polygraphy (.json), a folder of them, script:f.py:load_data, or random",
        )
        parser.add_argument(
            "--data-loader-script",
            dest="data",
            nargs=1,
            action="extend",
            type=values.script,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
        parser.option(
            group,
            "--samples",
            type=values.whole(1),
            metavar="N",
            known_as=("--iterations", "--iters"),
            help="at most N samples: what the model takes in one run is one",
        )
        group.add_argument(
            "--batch",
            type=values.whole(1),
            metavar="N",
            help="N rows of each array in a sample, where that is free (1)",
        )
        group.add_argument("--seed", type=values.whole(), default=0, metavar="N", help="for random data (0)")
        Data._random(parser, group)
        parser.option(
            group,
            "--providers",
            nargs="+",
            action="extend",
            metavar="P",
            known_as=("--calibration-eps",),
            help="of ONNX Runtime: cpu, cuda:0 (cpu)",
        )
        CustomOps.add(parser, group)

    @staticmethod
    def _random(parser: Parser, group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            "--val-range",
            nargs="+",
            action="extend",
            type=values.value_range,
            metavar="X:[LOW,HIGH]",
            help="of random data; without X: for all inputs ([0,1])",
        )
        parser.option(
            group,
            "--input-shapes",
            nargs="+",
            action="extend",
            type=values.shapes,
            metavar="X:SHAPE",
            known_as=("--calibration-shapes",),
            help="of random data (1 where the model leaves a size open)",
        )

    @staticmethod
    def read(args: argparse.Namespace, command: str, *, needed: bool = False) -> dict[str, Any]:
        """data and how it is read, by the names of `flow.feeding.Reading`.

        Raises UsageError FG120 where data is `needed` and was not given, FG100 where an input has two ranges or shapes.
        """
        if needed and not args.data:
            raise UsageError(
                f"'{command}' needs data and none was given",
                where=f"python -m fp8graph {command}",
                do="give --data FILE, or --data random for a try-out",
                code="FG120",
            )
        data = tuple(args.data) if args.data else None
        custom = tuple(args.custom_ops) if args.custom_ops else None
        return {
            "data": data,
            "samples": args.samples,
            "batch": args.batch,
            "seed": args.seed,
            "val_range": _by_name(args.val_range, "--val-range"),
            "input_shapes": merged(args.input_shapes or (), "input_shapes") or None,
            "providers": tuple(args.providers) if args.providers else None,
            "custom_ops": custom,
        }


def _by_name(pairs: Sequence[tuple[str, Any]] | None, option: str) -> dict[str, Any] | None:
    """Values by name. Raises UsageError FG100 where one name has two."""
    found: dict[str, Any] = {}
    for name, value in pairs or ():
        if found.setdefault(name, value) != value:
            what = f"'{name}' has two values" if name else "there are two values for all"
            raise UsageError(what, where=option, why=f"{found[name]} and {value}", do="give one of them", code="FG100")
    return found or None


class Tolerance:
    """How far two models may lie apart."""

    @staticmethod
    def add(parser: Parser) -> None:
        """Declares them."""
        group = parser.add_argument_group(
            "tolerance", "one number for all outputs, or OUTPUT:NUMBER; several may follow"
        )
        for option, metavar, known_as, what in (
            ("--min-sqnr", "DB", (), "least signal to noise ratio, in dB"),
            ("--atol", "X", ("--abs-tol",), "largest absolute difference (1e-5, where --rtol is given)"),
            ("--rtol", "X", ("--rel-tol",), "largest difference relative to B (1e-5, where --atol is given)"),
            ("--error-quantile", "Q", (), "which quantile, where that is checked (0.99)"),
        ):
            parser.option(
                group,
                option,
                type=values.bound,
                nargs="+",
                action="extend",
                metavar=metavar,
                known_as=known_as,
                help=what,
            )
        group.add_argument(
            "--check-error-stat",
            type=values.statistic,
            nargs="+",
            action="extend",
            metavar="STAT",
            help="what has to be within --atol or --rtol: elemwise (each element), max, mean, median or quantile",
        )

    @staticmethod
    def read(args: argparse.Namespace) -> dict[str, Any]:
        """The bounds, each by output."""
        names = ("min_sqnr", "atol", "rtol", "error_quantile", "check_error_stat")
        return {name: _by_name(getattr(args, name), "--" + name.replace("_", "-")) for name in names}


class Goal:
    """The accuracy that is asked for, and the plan with the most FP8 that holds it."""

    NAMES = ("min_sqnr", "max_drop", "metric", "eval_data", "curve", "resume")

    @staticmethod
    def add(parser: Parser) -> None:
        """Declares the options."""
        group = parser.add_argument_group("goal", "the plan with the most FP8 arithmetic that holds an accuracy")
        group.add_argument("--min-sqnr", type=values.number, metavar="DB", help="least signal to noise ratio, in dB")
        group.add_argument(
            "--max-drop", type=values.number, metavar="X", help="the most that --metric may fall below the original's"
        )
        Goal.metric(group)
        group.add_argument(
            "--eval-data",
            nargs="+",
            action="extend",
            metavar="URI",
            help="judge on this (every fourth sample of --data, which scales are not taken from)",
        )
        group.add_argument(
            "--curve", metavar="F", help="write accuracy over coverage: .json or .csv, and .svg beside it"
        )
        group.add_argument("--resume", action="store_true", help="go on from OUT.resume, where there is one")

    @staticmethod
    def metric(group: argparse._ArgumentGroup) -> None:
        """Declares --metric."""
        group.add_argument(
            "--metric", metavar="HOW", help="sqnr, cosine, max-abs, or FILE.py:FUNCTION of (feeds, outputs) pairs"
        )

    @staticmethod
    def read(args: argparse.Namespace) -> dict[str, Any]:
        """min_sqnr, max_drop, metric, eval_data, curve, resume."""
        data = tuple(args.eval_data) if args.eval_data else None
        return {**{name: getattr(args, name) for name in Goal.NAMES}, "eval_data": data}


class Select:
    """Which operators are quantized, and what the others compute in."""

    LISTS = ("op_types_to_quantize", "op_types_to_exclude", "nodes_to_quantize", "nodes_to_exclude")

    @staticmethod
    def add(parser: Parser) -> None:
        """Declares them."""
        group = parser.add_argument_group(
            "select", "patterns are globs on key or node name; key:, name:, type:, re: narrow them"
        )
        for name, what in zip(
            Select.LISTS,
            ("quantize these operator types only", "keep these operator types", "quantize these, too", "keep these"),
            strict=True,
        ):
            metavar = "TYPE" if name.startswith("op_types") else "PATTERN"
            option = "--" + name.replace("_", "-")
            group.add_argument(option, nargs="+", action="extend", metavar=metavar, help=what)
        group.add_argument("--fp8-everywhere", action="store_true", help="also where it does not pay")
        group.add_argument(
            "--attention",
            type=values.choice("auto", "off", "must-fuse"),
            default="auto",
            metavar="HOW",
            help="auto, off, or must-fuse: one operator that the builder has to fuse in FP8, or fails",
        )
        group.add_argument(
            "--kv-cache",
            type=values.choice("keep", "fp8"),
            default="keep",
            metavar="HOW",
            help="keep, or fp8: caches of keys and values become FP8 inputs and outputs",
        )
        parser.add_argument(
            "--disable-mha-qdq",
            dest="attention",
            action="store_const",
            const="off",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
        group.add_argument(
            "--high-precision-dtype",
            type=values.choice("keep", "fp16", "bf16", "fp32"),
            metavar="TYPE",
            help="of what is not quantized: fp16, bf16, fp32 or keep (the model's own)",
        )
        group.add_argument(
            "--direct-io-types", action="store_true", help="inputs and outputs have that type, too, where they can"
        )
        group.add_argument(
            "--given-scales",
            type=values.choice("keep", "recalibrate"),
            metavar="HOW",
            help="of activations that came with Q/DQ: keep, or recalibrate",
        )

    @staticmethod
    def typed(args: argparse.Namespace) -> list[str]:
        """The arguments that ask for the same once more, as they would be typed: for a command to go on with."""
        words: list[str] = []
        for name, value in (*Policy.read_passes(args).items(), *Select.read(args).items()):
            option = "--" + name.replace("_", "-")
            if value is True:
                words.append(option)
            elif isinstance(value, tuple):
                words += [option, *value]
            elif value and (name, value) not in (("attention", "auto"), ("kv_cache", "keep")):
                words += [option, str(value)]
        return words

    @staticmethod
    def read(args: argparse.Namespace) -> dict[str, Any]:
        """The lists as tuples, and the rest."""
        lists = {name: tuple(value) if (value := getattr(args, name)) else None for name in Select.LISTS}
        return {
            **lists,
            "fp8_everywhere": args.fp8_everywhere,
            "attention": args.attention,
            "kv_cache": args.kv_cache,
            "high_precision_dtype": args.high_precision_dtype,
            "direct_io_types": args.direct_io_types,
            "given_scales": args.given_scales,
        }


class Scales:
    """Where scales come from."""

    @staticmethod
    def add(parser: Parser) -> None:
        """Declares the option."""
        group = parser.add_argument_group("scales")
        group.add_argument(
            "--calibration-method",
            metavar="HOW",
            help="how observed scales are found: absmax, percentile:P, mse, entropy or pow2 (the recipe's: absmax)",
        )

    @staticmethod
    def read(args: argparse.Namespace) -> dict[str, Any]:
        """calibration_method."""
        return {"calibration_method": args.calibration_method}


class Policy:
    """Recipe, target and plan."""

    @staticmethod
    def target(group: argparse._ArgumentGroup) -> None:
        """Declares --target."""
        group.add_argument("--target", metavar="T", help="NAME[:CHIP[+CHIP...]], such as tensorrt-rtx:sm89")

    @staticmethod
    def recipe(parser: Parser, group: argparse._ArgumentGroup) -> None:
        """Declares --recipe."""
        parser.option(
            group, "--recipe", metavar="R", help="a recipe by name, or a TOML file", known_as=("--quantize-mode",)
        )

    @staticmethod
    def passes(group: argparse._ArgumentGroup) -> None:
        """Declares --passes and --pass-file."""
        group.add_argument(
            "--passes", action="append", metavar="'A,B{X=2}'", help="append these passes to the recipe's"
        )
        group.add_argument("--pass-file", metavar="F.py:CLASS", help="run a pass of your own")

    @staticmethod
    def read_passes(args: argparse.Namespace) -> dict[str, Any]:
        """passes, pass_file."""
        return {"passes": ",".join(args.passes) if args.passes else None, "pass_file": args.pass_file}

    @staticmethod
    def recipe_name(args: argparse.Namespace) -> str | None:
        """The recipe that was asked for, by our name."""
        return None if args.recipe is None else _MODES.get(args.recipe, args.recipe)


class Page:
    """`COMMAND` alone lists; `COMMAND show NAME` prints a page."""

    @staticmethod
    def add(parser: Parser, metavar: str, what: str, *, verbs: Sequence[str] = ("show",)) -> argparse._ArgumentGroup:
        """Declares the two words."""
        group = parser.add_argument_group("page")
        group.add_argument("verb", nargs="?", metavar="|".join(verbs), help="what to do; without it: list")
        group.add_argument("name", nargs="?", metavar=metavar, help=what)
        return group

    @staticmethod
    def read(args: argparse.Namespace, command: str, *, verbs: Sequence[str] = ("show",)) -> str | None:
        """The name, or None where a list is wanted. Raises UsageError for another verb, or one without a name."""
        if args.verb is None:
            return None
        where = f"python -m fp8graph {command}"
        if args.verb not in verbs:
            what = f"'{command}' cannot '{args.verb}'"
            raise UsageError(what, where=where, do=f"{where} {verbs[0]} {args.name or args.verb}", code="FG101")
        if args.name is None:
            raise UsageError(f"'{args.verb}' needs a name", where=where, do=f"{where} lists them", code="FG100")
        return str(args.name)
