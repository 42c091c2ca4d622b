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
class LayerDifference:
    """One op that two models have under one key.

    local         of its output where the second model's op is fed what the first one's is fed
    accumulated   of its output as each model computes it
    """

    key: str
    op_type: str
    name: str
    local: OutputDifference
    accumulated: OutputDifference

    def to_json(self) -> dict[str, Any]:
        """The layer as a document's part."""
        both = {"local": self.local.to_json(), "accumulated": self.accumulated.to_json()}
        return {"key": self.key, "op_type": self.op_type, "name": self.name, **both}

    @staticmethod
    def from_json(item: Any) -> LayerDifference:
        """Reads what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        local, both = (OutputDifference.from_json(item[name]) for name in ("local", "accumulated"))
        return LayerDifference(str(item["key"]), str(item["op_type"]), str(item["name"]), local, both)


@dataclass(frozen=True)
class LayerErrors:
    """The layers of two models, in the order of the second.

    left_out   ops that both have and that were not measured, by key: why
    """

    layers: tuple[LayerDifference, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Comparison:
    """The outputs of two models on the same samples.

    problems   outputs that are missing or of another shape or type, NaN or infinities where there were none
    missed     sentences about bounds that were asked for and do not hold
    layers     where the error comes from, where that was asked for
    """

    outputs: Mapping[str, OutputDifference]
    samples: int
    problems: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    layers: LayerErrors | None = None

    def to_json(self) -> dict[str, Any]:
        """The comparison as a document; `layers` and `left_out` only where layers were asked for."""
        told = (
            {}
            if self.layers is None
            else {
                "layers": [item.to_json() for item in self.layers.layers],
                "left_out": dict(self.layers.left_out),
            }
        )
        return {
            "schema": f"fp8graph.{KIND}/{VERSION}",
            "samples": self.samples,
            "outputs": {name: item.to_json() for name, item in self.outputs.items()},
            "problems": list(self.problems),
            "missed": list(self.missed),
            **told,
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
                _layers(document) if "layers" in document else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise malformed(KIND, where, error) from error


def _layers(document: Mapping[str, Any]) -> LayerErrors:
    left = {str(key): str(why) for key, why in document["left_out"].items()}
    return LayerErrors(tuple(LayerDifference.from_json(item) for item in document["layers"]), left)


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
