"""Option groups, shared by commands, one class each: `add` declares the options, `read` gives them as the keyword
arguments of the function behind the command. None means: not asked, the default decides."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.cli import values
from fp8graph.cli.parser import Parser

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
            known_as=("--calibration-data-path", "--load-inputs"),
            help=".npz, .npy, a folder of them, or random",
        )
        parser.option(
            group,
            "--samples",
            type=values.whole(1),
            metavar="N",
            known_as=("--iterations",),
            help="at most N samples: what the model takes in one run is one",
        )
        group.add_argument(
            "--batch",
            type=values.whole(1),
            metavar="N",
            help="N rows of each array in a sample, where that is free (1)",
        )
        group.add_argument("--seed", type=values.whole(), default=0, metavar="N", help="for random data (0)")
        CustomOps.add(parser, group)

    @staticmethod
    def read(args: argparse.Namespace, command: str, *, needed: bool = False) -> dict[str, Any]:
        """data, samples, batch, seed, custom_ops. Raises UsageError FG120 where data is `needed` and was not given."""
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
            "custom_ops": custom,
        }


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
        }


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


class Shapes:
    """Shapes of inputs that are free in the model."""

    KINDS = (
        ("shapes", ("--override-shapes",), "least, usual and largest alike"),
        ("min_shapes", ("--minShapes", "--trt-min-shapes"), "least"),
        ("opt_shapes", ("--optShapes", "--trt-opt-shapes"), "most usual"),
        ("max_shapes", ("--maxShapes", "--trt-max-shapes"), "largest"),
    )

    @staticmethod
    def add(parser: Parser, *, profiles: bool = False) -> None:
        """Declares them; with `profiles` also --profile, which says what profile the shapes behind it are of."""
        group = parser.add_argument_group("shapes", "x:[1,3,224,224] or x:1x3x224x224, several after one option")
        if profiles:
            what = "the shapes behind this are of optimisation profile N (0, 1, ...)"
            group.add_argument("--profile", type=values.whole(0), metavar="N", help=what)
        for name, aliases, what in Shapes.KINDS:
            parser.option(
                group,
                "--" + name.replace("_", "-"),
                nargs="+",
                action=_ShapesOfProfile,
                type=values.shapes,
                metavar="X:SHAPE",
                known_as=aliases,
                help=what,
            )

    @staticmethod
    def read(args: argparse.Namespace) -> Mapping[str, Any] | None:
        """Profiles by input, None where no shape was given.

        A missing least or largest shape is the most usual one; a missing most usual one is the largest.
        Raises UsageError where the three do not fit together, or `--shapes` and another name one input.
        """
        found = Shapes.read_profiles(args)
        return found[0] if found else None

    @staticmethod
    def read_profiles(args: argparse.Namespace) -> tuple[Mapping[str, Any], ...] | None:
        """Profiles by input for each --profile, None where no shape was given.

        Raises UsageError as `read` does, and where the profiles are not numbered 0, 1, 2 ..., or hold no shape.
        """
        numbers = {number for name, _, _ in Shapes.KINDS for number, _ in getattr(args, name) or ()}
        last = getattr(args, "profile", None)
        numbers |= set() if last is None else {last}
        if numbers != set(range(len(numbers))):
            missing = min(set(range(max(numbers))) - numbers)
            raise _shape_error("a profile is missing", "--profile", f"{max(numbers)} was given and {missing} was not")
        return tuple(_of_profile(args, number) for number in sorted(numbers)) or None


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


class _ShapesOfProfile(argparse.Action):
    """Collects (profile, shapes); the profile is the one that --profile has named last."""

    def __call__(self, parser: Any, namespace: Any, given: Any, option_string: str | None = None) -> None:
        number = getattr(namespace, "profile", None) or 0
        held = getattr(namespace, self.dest, None) or []
        setattr(namespace, self.dest, [*held, *((number, shapes) for shapes in given)])


def _of_profile(args: argparse.Namespace, number: int) -> Mapping[str, Any]:
    given = {}
    for name, _, _ in Shapes.KINDS:
        given[name] = _merged([shapes for of, shapes in getattr(args, name) or () if of == number], name)
    inputs = dict.fromkeys(name for shapes in given.values() for name in shapes)
    if not inputs:
        raise _shape_error(f"profile {number} has no shapes", f"--profile {number}", "shapes stand behind it")
    return {name: _profile(name, given) for name in inputs}


def _merged(lists: Sequence[dict[str, values.Shape]], option: str) -> dict[str, values.Shape]:
    merged: dict[str, values.Shape] = {}
    for shapes in lists:
        for name, shape in shapes.items():
            if merged.setdefault(name, shape) != shape:
                raise _shape_error(
                    f"'{name}' has two shapes", f"--{option.replace('_', '-')}", f"{merged[name]}, {shape}"
                )
    return merged


def _profile(name: str, given: Mapping[str, Mapping[str, values.Shape]]) -> Any:
    from fp8graph.data.plan import Profile, ProfileError

    alike, low, usual, high = (given[kind].get(name) for kind, _, _ in Shapes.KINDS)
    if alike is not None:
        if low is not None or usual is not None or high is not None:
            raise _shape_error(f"'{name}' has --shapes and another one", "--shapes", "--shapes means all three alike")
        return Profile(alike, alike, alike)
    usual = next(shape for shape in (usual, high, low) if shape is not None)
    try:
        return Profile(usual if low is None else low, usual, usual if high is None else high)
    except ProfileError as error:
        raise _shape_error(f"the shapes of '{name}' do not fit together", "--min-shapes ...", error.what) from error


def _shape_error(what: str, where: str, why: str) -> UsageError:
    return UsageError(
        what, where=where, why=why, do="type --min-shapes x:1x3 --opt-shapes x:8x3 --max-shapes x:32x3", code="FG100"
    )
