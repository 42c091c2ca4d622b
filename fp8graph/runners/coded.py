"""A runner for models whose inputs or outputs are FP8 codes, or had another type: it is fed floats, and gives floats of
the type that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from fp8graph import formats
from fp8graph.formats.spec import Format
from fp8graph.graph import coded, tensors
from fp8graph.numerics import cast
from fp8graph.runners.base import Feeds, Outputs, Runner


class CodedRunner:
    """Quantizes what is fed to inputs of codes, and dequantizes what outputs of codes give.

    An array of codes (uint8, or the format's own type) is fed as it is.
    """

    def __init__(
        self, runner: Runner, inputs: Mapping[str, _Part | _Retyped], outputs: Mapping[str, _Part | _Retyped]
    ) -> None:
        self._runner, self._inputs, self._outputs = runner, inputs, outputs

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""
        return self._runner.outputs

    def run(self, feeds: Feeds) -> Outputs:
        """Arrays by output name: those of codes in the type that they stand for. Raises as the runner itself."""
        given = {
            name: self._inputs[name].codes(array) if name in self._inputs else array for name, array in feeds.items()
        }
        made = self._runner.run(given)
        return {
            name: self._outputs[name].numbers(array) if name in self._outputs else array for name, array in made.items()
        }


class _Part:
    """One input or output."""

    def __init__(self, form: Format, meaning: coded.Coded) -> None:
        self.form, self.scale = form, np.asarray(meaning.scale, np.float32)
        self.dtype = tensors.NUMPY[tensors.FLOATS[meaning.dtype]]

    def codes(self, array: tensors.Array) -> tensors.Array:
        own = cast.ml_dtype(self.form)
        if array.dtype == np.uint8 or array.dtype == own:
            return array.view(own)
        floats = array if array.dtype in tensors.NUMPY.values() else array.astype(np.float32)
        return cast.encode(floats, self.form, self.scale).view(own)

    def numbers(self, array: tensors.Array) -> tensors.Array:
        return cast.decode(array, self.form, self.scale).astype(self.dtype)


class _Retyped:
    """One input or output that had another float type."""

    def __init__(self, dtype: ir.DataType, before: ir.DataType) -> None:
        self.dtype, self.before = (tensors.NUMPY[tensors.FLOATS[kind]] for kind in (dtype, before))

    def codes(self, array: tensors.Array) -> tensors.Array:
        with np.errstate(over="ignore"):  # a number beyond fp16 is infinite, as it is for whoever calls the model
            return array.astype(self.dtype)

    def numbers(self, array: tensors.Array) -> tensors.Array:
        return array.astype(self.before)


def around(runner: Runner, model: ir.Model) -> Runner:
    """The runner itself, or one around it where inputs or outputs of `model` are codes that say what they stand for, or
    had another float type."""
    inputs, outputs = _parts(model.graph.inputs), _parts(model.graph.outputs)
    return CodedRunner(runner, inputs, outputs) if inputs or outputs else runner


def _parts(values: Sequence[ir.Value]) -> dict[str, _Part | _Retyped]:
    known = {formats.get(name).onnx_type: formats.get(name) for name in formats.names()}
    kinds = {value.name: known.get(int(value.dtype)) for value in values if value.dtype is not None}
    dtypes = {value.name: value.dtype for value in values if value.dtype is not None}
    found: dict[str, _Part | _Retyped] = {
        name: _Retyped(dtypes[name], before) for name, before in coded.retyped(values).items()
    }
    for name, meaning in coded.marked(values).items():
        form = kinds.get(name)
        if form is not None:
            found[name] = _Part(form, meaning)
    return found
