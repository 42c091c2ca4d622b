"""The option group of shapes: what inputs that are free in the model may be."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.cli import values
from fp8graph.cli.parser import Parser


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


class _ShapesOfProfile(argparse.Action):
    """Collects (profile, shapes); the profile is the one that --profile has named last."""

    def __call__(self, parser: Any, namespace: Any, given: Any, option_string: str | None = None) -> None:
        number = getattr(namespace, "profile", None) or 0
        held = getattr(namespace, self.dest, None) or []
        setattr(namespace, self.dest, [*held, *((number, shapes) for shapes in given)])


def _of_profile(args: argparse.Namespace, number: int) -> Mapping[str, Any]:
    given = {}
    for name, _, _ in Shapes.KINDS:
        given[name] = merged([shapes for of, shapes in getattr(args, name) or () if of == number], name)
    inputs = dict.fromkeys(name for shapes in given.values() for name in shapes)
    if not inputs:
        raise _shape_error(f"profile {number} has no shapes", f"--profile {number}", "shapes stand behind it")
    return {name: _profile(name, given) for name in inputs}


def merged(lists: Sequence[dict[str, values.Shape]], option: str) -> dict[str, values.Shape]:
    """One shape by input. Raises UsageError FG100 where one has two."""
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
