"""How far the outputs of two models lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fp8graph.data.document import check_schema, malformed

KIND, VERSION = "comparison", 1


@dataclass(frozen=True)
class OutputDifference:
    """One output over all samples.

    sqnr_db   10 log10(sum ref^2 / sum (ref - other)^2); None where the outputs are equal or not floating
    cosine    None where a side is all zero or not floating
    max_abs   largest absolute difference; None for strings
    """

    sqnr_db: float | None
    cosine: float | None
    max_abs: float | None
    new_nonfinite: int = 0
    equal: bool = False

    def to_json(self) -> dict[str, Any]:
        """The difference as a document's part; JSON has no infinity, so it is left out as null."""
        return {
            "sqnr_db": self.sqnr_db,
            "cosine": self.cosine,
            "max_abs": self.max_abs,
            "new_nonfinite": self.new_nonfinite,
            "equal": self.equal,
        }

    @staticmethod
    def from_json(item: Any) -> OutputDifference:
        """Reads what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        sqnr, cosine, largest = (
            None if item[name] is None else float(item[name]) for name in ("sqnr_db", "cosine", "max_abs")
        )
        return OutputDifference(sqnr, cosine, largest, int(item["new_nonfinite"]), bool(item["equal"]))


@dataclass(frozen=True)
class Comparison:
    """The outputs of two models on the same samples.

    problems   outputs that are missing or of another shape or type, NaN or infinities where there were none
    missed     sentences about bounds that were asked for and do not hold
    """

    outputs: Mapping[str, OutputDifference]
    samples: int
    problems: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The comparison as a document."""
        return {
            "schema": f"fp8graph.{KIND}/{VERSION}",
            "samples": self.samples,
            "outputs": {name: item.to_json() for name, item in self.outputs.items()},
            "problems": list(self.problems),
            "missed": list(self.missed),
        }

    @staticmethod
    def from_json(document: Any, where: str = "comparison") -> Comparison:
        """Reads a comparison document. Raises InputError FG111 for anything that is not one."""
        document = check_schema(document, KIND, VERSION, where)
        try:
            return Comparison(
                {str(name): OutputDifference.from_json(item) for name, item in document["outputs"].items()},
                int(document["samples"]),
                tuple(str(problem) for problem in document["problems"]),
                tuple(str(bound) for bound in document.get("missed", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise malformed(KIND, where, error) from error


@dataclass(frozen=True)
class DefaultSession:
    """Whether ONNX Runtime's default settings compute the result as written, why not, and the options that do.

    options   session config entries by name; `disabled_optimizers` is an argument of the session
    """

    safe: bool
    why: str
    options: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The verdict as a document's part."""
        return {"safe": self.safe, "why": self.why, "options": dict(self.options)}
