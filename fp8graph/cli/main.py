"""`python -m fp8graph COMMAND`: finds the command and hands over to the session.

Only `sys` is imported here, so that `--help` answers at once. A command is its file in `cli/commands/` and its line in
`COMMANDS`; that the two agree is tested.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "optimize": "Plans, calibrates and writes the FP8 model, with a reason for every operator.",
    "calibrate": "Observes the ranges that a plan needs and writes them for later runs.",
    "build": "Builds an engine from a model that `optimize` wrote.",
    "attest": "Says for every planned operator what the engine really does.",
    "compare": "Runs two models on the same data and measures how far they lie apart.",
    "sensitivity": "Ranks operators by what FP8 costs the model's output there.",
    "debug": "Finds the smallest set of operators that has to stay in high precision.",
    "bench": "Measures how fast engines are on the GPU of this machine.",
    "check": "Reports what keeps a model's Q/DQ from running in low precision, and mends what can be mended.",
    "diff": "Lays two plans, models or engines side by side: what changed.",
    "inspect": "Shows what is in a model, plan, ranges, engine or attestation.",
    "import": "Brings the FP8 weights and scales of a checkpoint to a model.",
    "report": "Joins plan, comparison and attestation by operator.",
    "doctor": "Lists versions, devices and usable targets, and why the others are not.",
    "targets": "Lists targets, or shows what one can run and which source says so.",
    "recipes": "Lists recipes, shows one, or validates a file.",
    "passes": "Lists passes and rules with their owners, or shows the page of one.",
    "explain": "Prints the page of a code such as FG214.",
}
# Common options, which may stand before the command, too; `groups.Common` declares them.
COMMON_FLAGS = frozenset({"-v", "--verbose", "-q", "--quiet", "--json", "-h", "--help", "--version"})
COMMON_VALUED = frozenset({"--log-file", "--color", "--progress"})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status; no exception leaves this function."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        open_streams()
        command, rest = split(given)
        if command is None and {"-h", "--help"} & set(rest):
            return _say(top_help())
        if command is None and "--version" in rest:
            return _say(version())
        from fp8graph.cli.session import run

        return run(command, rest, given)
    except KeyboardInterrupt:  # while a module is being imported; the session handles all others
        return 130


def split(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The command, None where there is none, and all other arguments in their order.

    An option before the command that is none of the common ones is returned as the command: it is reported as what
    it is.
    """
    index = 0
    while index < len(argv):
        token = argv[index]
        name, equals, _ = token.partition("=")
        name = name.replace("_", "-")
        if name in COMMON_VALUED:
            index += 1 if equals else 2
        elif name in COMMON_FLAGS or (token[:1] == "-" and token[1:] and not token[1:].strip("vq")):
            index += 1
        else:
            return token, [*argv[:index], *argv[index + 1 :]]
    return None, list(argv)


def top_help() -> str:
    """The help of the program: every command with its line."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "Turns ONNX models into FP8 ones, builds engines and attests what really runs in FP8.",
            "",
            "usage: python -m fp8graph COMMAND ...",
            "",
            *lines,
            "",
            "examples:",
            "  python -m fp8graph optimize m.onnx -o m.fp8.onnx --target tensorrt-rtx --data calib.npz",
            "  python -m fp8graph build m.fp8.onnx -o m.engine --target tensorrt-rtx --attest",
            "",
            "`python -m fp8graph COMMAND --help` lists the options of a command; all take --json, -v, -q, --log-file.",
            "status: 0 done, 1 the answer is no, 2 wrong call, 3 input refused, 4 backend or machine, 5 our bug,",
            "        130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (nothing half-written remains)",
        ]
    )


def version() -> str:
    """Name and version in one line."""
    import fp8graph

    return f"fp8graph {fp8graph.__version__}"


def _say(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        detach_stdout()
    except OSError as error:
        detach_stdout()
        from fp8graph.cli.console import unprintable

        shown = unprintable(error)
        print(shown, file=sys.stderr, flush=True)
        return shown.status
    return 0


def open_streams() -> None:
    """Opens the null device for each of stdin, stdout and stderr that the caller has closed (`>&-`).

    Python leaves None there, and the first file that is opened would get the number of the closed stream.
    """
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    import os

    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def detach_stdout() -> None:
    """After a reader has gone away: what is still buffered goes nowhere, and the interpreter ends in silence."""
    import contextlib
    import os

    with contextlib.suppress(OSError, ValueError):  # a stdout that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
