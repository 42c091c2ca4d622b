"""What a build is asked to do, as data: the parent writes it, the child process reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.data.document import check_schema, malformed
from fp8graph.data.plan import Shapes, shapes_from_json, shapes_to_json

BuilderName = Literal["tensorrt-rtx", "tensorrt", "openvino"]
BUILDERS: tuple[str, ...] = get_args(BuilderName)
# What installs each: the extra of this package.
EXTRAS = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt", "openvino": "openvino"}
COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")
KIND, VERSION = "build-job", 1


@dataclass(frozen=True)
class BuildJob:
    """One engine to build.

    model         absolute path of the ONNX file
    builder       one of BUILDERS
    chips         such as ("sm89", "sm120"): one engine for all of them; empty: the GPU in the machine
    profiles      for each optimisation profile the shapes of the graph inputs by name; for an input that the builder
                  reads as a shape (the target of a Reshape) its values, for a scalar one number
    optimization_level              0 to 5; None: the builder's default
    workspace_bytes                 largest scratch memory of the engine; None: the builder's default
    load_timing_cache, save_timing_cache    absolute paths, or empty
    hardware_compatibility_level    one of COMPATIBILITY, or empty
    refit         the engine's weights can be replaced later
    strip_weights the engine holds no weights: they are put in by a refit, on the machine that runs it
    plugins       absolute paths of shared libraries with custom ops
    builder_args  further settings of the builder by their own names: config attributes and builder flags

    Raises UsageError (status 2) for a value that no builder takes.
    """

    model: str
    builder: str
    chips: tuple[str, ...] = ()
    profiles: tuple[Shapes, ...] = ()
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    load_timing_cache: str = ""
    save_timing_cache: str = ""
    hardware_compatibility_level: str = ""
    version_compatible: bool = False
    weight_streaming: bool = False
    refit: bool = False
    strip_weights: bool = False
    plugins: tuple[str, ...] = ()
    builder_args: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in (self.model, self.load_timing_cache, self.save_timing_cache, *self.plugins):
            if path and not Path(path).is_absolute():  # the child runs in a folder of its own
                raise ValueError(f"a build job holds absolute paths, not '{path}'")
        if self.builder not in BUILDERS:
            raise UsageError(
                f"there is no builder '{self.builder}'",
                where="--target",
                do=did_you_mean(self.builder, BUILDERS),
                code="FG101",
            )
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise _bad("--builder-optimization-level", self.optimization_level, "0 to 5")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise _bad("--memory-pool-limit", self.workspace_bytes, "a positive number of bytes")
        if self.hardware_compatibility_level and self.hardware_compatibility_level not in COMPATIBILITY:
            raise _bad("--hardware-compatibility-level", self.hardware_compatibility_level, ", ".join(COMPATIBILITY))
        if len(set(self.chips)) != len(self.chips):
            raise _bad("--target", "+".join(self.chips), "each chip once")

    @property
    def options(self) -> dict[str, Any]:
        """What was asked besides model, chips and profiles; no paths, no defaults."""
        options: dict[str, Any] = {
            "optimization_level": self.optimization_level,
            "workspace_bytes": self.workspace_bytes,
            "hardware_compatibility_level": self.hardware_compatibility_level or None,
            "version_compatible": self.version_compatible or None,
            "weight_streaming": self.weight_streaming or None,
            "refit": self.refit or None,
            "strip_weights": self.strip_weights or None,
            "plugins": [Path(plugin).name for plugin in self.plugins] or None,
            "builder_args": dict(sorted(self.builder_args.items())) or None,
        }
        return {name: value for name, value in options.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """The job as a document."""
        return {
            "schema": f"fp8graph.{KIND}/{VERSION}",
            "model": self.model,
            "builder": self.builder,
            "chips": list(self.chips),
            "profiles": [shapes_to_json(shapes) for shapes in self.profiles],
            "optimization_level": self.optimization_level,
            "workspace_bytes": self.workspace_bytes,
            "load_timing_cache": self.load_timing_cache,
            "save_timing_cache": self.save_timing_cache,
            "hardware_compatibility_level": self.hardware_compatibility_level,
            "version_compatible": self.version_compatible,
            "weight_streaming": self.weight_streaming,
            "refit": self.refit,
            "strip_weights": self.strip_weights,
            "plugins": list(self.plugins),
            "builder_args": dict(self.builder_args),
        }

    @staticmethod
    def from_json(document: Any, where: str = "job") -> BuildJob:
        """Reads a job document. Raises InputError FG111 for anything that is not one."""
        document = check_schema(document, KIND, VERSION, where)
        try:
            return BuildJob(
                model=str(document["model"]),
                builder=str(document["builder"]),
                chips=tuple(str(chip) for chip in document["chips"]),
                profiles=tuple(shapes_from_json(item) for item in document["profiles"]),
                optimization_level=_optional_int(document["optimization_level"]),
                workspace_bytes=_optional_int(document["workspace_bytes"]),
                load_timing_cache=str(document["load_timing_cache"]),
                save_timing_cache=str(document["save_timing_cache"]),
                hardware_compatibility_level=str(document["hardware_compatibility_level"]),
                version_compatible=bool(document["version_compatible"]),
                weight_streaming=bool(document["weight_streaming"]),
                refit=bool(document["refit"]),
                strip_weights=bool(document["strip_weights"]),
                plugins=tuple(str(plugin) for plugin in document["plugins"]),
                builder_args={str(name): str(value) for name, value in document["builder_args"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise malformed(KIND, where, error) from error


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _bad(option: str, value: object, allowed: str) -> UsageError:
    return UsageError(
        f"the builder takes no such value: {value}",
        where=option,
        why=f"allowed: {allowed}",
        do=f"give {option} one of these",
        code="FG100",
    )
