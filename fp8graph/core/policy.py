"""What a recipe names, made: the one check that planning and `recipes validate` hold a recipe to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.base.names import OpPattern, did_you_mean
from fp8graph.core import registry
from fp8graph.core.passes import PlanRule, Repair, RewritePass, Stage
from fp8graph.core.planner import COMPUTE
from fp8graph.data.recipe import Recipe

# Passes of the stage that writes Q/DQ which only change types.
_TYPES_ONLY = ("cast-high-precision", "hold-caches", "restore-given-weights")


def steps(recipe: Recipe) -> tuple[list[PlanRule], list[RewritePass | Repair]]:
    """The recipe's rules and passes, in its order.

    Raises UsageError FG140 (an op type without operands in FP8, a name of the wrong kind), FG113 (a name that is
    unknown), FG109 (a pattern that cannot be read).
    """
    where = f"recipe {recipe.name}"
    for op_type in recipe.ops:
        if op_type not in COMPUTE:
            raise UsageError(
                f"the recipe quantizes {op_type}, which has no two operands that can be in FP8",
                where=f"{where}: quantize.ops",
                why=f"those that have are {', '.join(COMPUTE)}",
                do=did_you_mean(op_type, COMPUTE),
                code="FG140",
            )
    patterns = [("keep", text) for line in recipe.keep for text in line.ops]
    patterns += [("quantize.for", text) for line in recipe.lines for text in line.ops]
    for table, text in patterns:
        try:
            OpPattern(text)
        except ValueError as error:
            raise UsageError(
                "a pattern cannot be read", where=f"{where}: {table}.ops", why=str(error), do="mend it", code="FG109"
            ) from error
    rules = [_made(name, f"{where}: rules", {"rule": PlanRule}) for name in recipe.rules]
    passes = [_made(name, f"{where}: passes", {"pass": RewritePass, "repair": Repair}) for name in recipe.passes]
    passes += [_made(name, f"{where}: repairs", {"repair": Repair}) for name in recipe.repairs]
    return rules, passes


def _made(name: str, where: str, kinds: Mapping[str, type]) -> Any:
    made = registry.create(name)
    if not isinstance(made, tuple(kinds.values())):
        raise UsageError(
            f"'{name}' is no {' or '.join(kinds)}",
            where=where,
            do="`python -m fp8graph passes` lists what each is",
            code="FG140",
        )
    return made


def run_once(passes: Sequence[Any]) -> None:
    """Raises UsageError FG113 where a pass that carries out the plan stands twice: there is nothing left to do."""
    seen: set[str] = set()
    for item in passes:
        if isinstance(item, RewritePass) and getattr(item, "stage", None) is Stage.QUANTIZE:
            if item.name in seen:
                raise UsageError(
                    f"the pass {item.name} stands twice in the pipeline",
                    where="passes of the recipe, the target and --passes",
                    why="it carries out the plan, which is done once",
                    do=f"leave {item.name} out of --passes",
                    code="FG113",
                )
            seen.add(item.name)


def whole(recipe: Recipe, passes: Sequence[Any]) -> None:
    """Raises UsageError FG141 where none of the passes can write Q/DQ though ops are quantized, FG113 as `run_once`."""
    run_once(passes)
    writers = [item for item in passes if isinstance(item, RewritePass) and item.stage is Stage.QUANTIZE]
    if recipe.quantizes and all(item.name in _TYPES_ONLY for item in writers):
        raise UsageError(
            "the recipe's passes do not carry the plan out",
            where=f"recipe {recipe.name}: passes",
            why="none of them writes Q/DQ",
            do="name insert-qdq among the passes of the recipe",
            code="FG141",
        )
