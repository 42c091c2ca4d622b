"""Shapes and options of a job, put into a builder's config. The third-party objects come as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.data.plan import Profile, Shapes
from fp8graph.engines.job import BuildJob

# Attributes of a config that fp8graph sets itself, or that are no plain values.
_OURS = frozenset({"progress_monitor", "profiling_verbosity", "num_compute_capabilities", "profile_stream", "flags"})
_TRUE, _FALSE = ("1", "true", "on", "yes"), ("0", "false", "off", "no")


def flags(job: BuildJob) -> list[str]:
    """The builder flags that a job's own options stand for, by the builder's names."""
    asked = {
        "WEIGHT_STREAMING": job.weight_streaming,
        "REFIT": job.refit,
        "STRIP_PLAN": job.strip_weights,
        # Weights that were stripped come back unchanged, unless --refit says that others may take their place.
        "REFIT_IDENTICAL": job.strip_weights and not job.refit,
    }
    return [name for name, wanted in asked.items() if wanted]


def switched_on(job: BuildJob, flag: str) -> bool:
    """Whether `--builder-arg` switches a builder flag on."""
    return any(name.replace("-", "_").upper() == flag and _bool(value) for name, value in job.builder_args.items())


def apply_args(trt: Any, config: Any, job: BuildJob) -> None:
    """Sets level, workspace, weight streaming, refitting and the builder's own settings.

    Raises UsageError: FG101 for a setting that the builder does not have, FG100 for a value that it does not take.
    """
    if job.optimization_level is not None:
        config.builder_optimization_level = job.optimization_level
    if job.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_bytes)
    for flag in flags(job):
        config.set_flag(trt.BuilderFlag.__members__[flag])
    for name, value in job.builder_args.items():
        _set(trt, config, name, value)


def _set(trt: Any, config: Any, name: str, value: str) -> None:
    flags = trt.BuilderFlag.__members__
    plain = name.replace("-", "_")
    try:
        if plain.upper() in flags:
            flag = flags[plain.upper()]
            (config.set_flag if _bool(value) else config.clear_flag)(flag)
            return
        if plain.startswith("_") or plain in _OURS or callable(getattr(config, plain, len)):
            known = [*(flag.lower() for flag in flags), *_attributes(config)]
            raise UsageError(
                f"the builder has no setting '{name}'",
                where=f"--builder-arg {name}={value}",
                do=did_you_mean(plain.lower(), known),
                code="FG101",
            )
        setattr(config, plain, _like(getattr(config, plain), value))
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(
            f"the builder's setting '{name}' takes no '{value}'",
            where=f"--builder-arg {name}={value}",
            why=f"{error}".strip("'"),
            do="give a number, true or false, or the name of a level",
            code="FG100",
        ) from error


def _attributes(config: Any) -> list[str]:
    names = (name for name in dir(config) if not name.startswith("_") and name not in _OURS)
    return [name for name in names if not callable(getattr(config, name))]


def _like(current: Any, value: str) -> Any:
    """`value` as the type of the setting's present value: bool, int, text, or a member of an enumeration."""
    if isinstance(current, bool):
        return _bool(value)
    if isinstance(current, int):
        return int(value)
    if isinstance(current, str):
        return value
    members = getattr(type(current), "__members__", None)
    if members is None:
        raise TypeError("it is no plain value")
    if value.upper() not in members:
        raise ValueError(f"it is one of {', '.join(name.lower() for name in members)}")
    return members[value.upper()]


def _bool(value: str) -> bool:
    if value.lower() not in _TRUE + _FALSE:
        raise ValueError("it is true or false")
    return value.lower() in _TRUE


def add_profiles(builder: Any, network: Any, config: Any, profiles: Sequence[Shapes]) -> list[str]:
    """Adds the optimisation profiles of a job; gives warnings.

    Inputs whose shapes are fixed need none. For an input that the builder reads as a shape the profile holds values.
    Raises UsageError: FG101 for an unknown input, FG100 for shapes that are missing or do not fit.
    """
    inputs = {tensor.name: tensor for tensor in (network.get_input(i) for i in range(network.num_inputs))}
    warnings: list[str] = []
    needed = [name for name, tensor in inputs.items() if _is_open(tensor)]
    for shapes in profiles:
        for name in shapes:
            if name not in inputs:
                do = did_you_mean(name, inputs)
                raise UsageError(f"the model has no input '{name}'", where=f"--shapes {name}", do=do, code="FG101")
    for shapes in profiles or [{}]:
        for name in needed:
            if name not in shapes:
                raise _missing(name, inputs[name])
    for shapes in profiles if needed else profiles[:1]:
        profile = builder.create_optimization_profile()
        for name, wanted in shapes.items():
            warnings += _set_shape(profile, inputs[name], wanted)
        if needed and config.add_optimization_profile(profile) < 0:
            raise UsageError(
                "the builder refuses the shapes",
                where="--min-shapes --opt-shapes --max-shapes",
                why=", ".join(f"{name}: {spell(p.min)} to {spell(p.max)}" for name, p in shapes.items()),
                code="FG100",
            )
    return list(dict.fromkeys(warnings))


def _is_open(tensor: Any) -> bool:
    return bool(tensor.is_shape_tensor) or any(size < 0 for size in tensor.shape)


def _set_shape(profile: Any, tensor: Any, wanted: Profile) -> list[str]:
    shape = tuple(tensor.shape)
    if tensor.is_shape_tensor:
        if len(wanted.min) != (shape[0] if shape else 1):
            raise _unfit(tensor.name, f"it holds {shape[0] if shape else 1} values that are read as a shape", wanted)
        profile.set_shape_input(tensor.name, list(wanted.min), list(wanted.opt), list(wanted.max))
        return []
    fits = len(wanted.min) == len(shape) and all(
        size < 0 or size == low == high for size, low, high in zip(shape, wanted.min, wanted.max, strict=True)
    )
    if fits:
        profile.set_shape(tensor.name, wanted.min, wanted.opt, wanted.max)
        return []
    # Measured: a trip count is no shape to TensorRT-RTX 1.7.1, its loops take any number; values for it do nothing.
    if len(shape) <= 1 and not any(size < 0 for size in shape) and len(wanted.min) == (shape[0] if shape else 1):
        return [f"input '{tensor.name}' is not read as a shape by this builder: the values given for it change nothing"]
    raise _unfit(tensor.name, f"the model says {spell(shape)}", wanted)


def _missing(name: str, tensor: Any) -> UsageError:
    shape = tuple(tensor.shape)
    if tensor.is_shape_tensor:
        what, example = "is read as a shape, and its values were not given", [1] * (shape[0] if shape else 1)
    else:
        what, example = "has open dimensions, and no shapes were given", [abs(size) for size in shape]
    return UsageError(
        f"input '{name}' {what}",
        where=f"input '{name}' {spell(shape)}",
        why="an engine is built for a least, a usual and a largest shape",
        do=f"give --shapes {name}:{spell(example)} (or --min-, --opt- and --max-shapes), or a plan with shapes",
        code="FG100",
    )


def _unfit(name: str, why: str, wanted: Profile) -> UsageError:
    given = spell(wanted.min) if wanted.min == wanted.max else f"{spell(wanted.min)} to {spell(wanted.max)}"
    return UsageError(
        f"the shapes given for input '{name}' do not fit it",
        where=f"--shapes {name}:{given}",
        why=f"{why}, given: {given}",
        do="python -m fp8graph inspect MODEL --show io lists the inputs with their shapes",
        code="FG100",
    )


def spell(shape: Sequence[int]) -> str:
    """A shape as it is typed: 1x3x224x224, with ? for an open dimension; a scalar is []."""
    return "x".join("?" if size < 0 else str(size) for size in shape) or "[]"
