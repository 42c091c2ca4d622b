"""ONNX Runtime on the CPU, with the settings under which FP8 graphs are computed as written.

At its default level it removes a Relu in front of an FP8 QuantizeLinear and turns biases into int32 (measured with
1.31.1 and 1.32.0); 1.31.1 forms integer kernels with FP8 operands, too, and has none. `session.disable_quant_qdq` and
leaving `ReluQuantRewrite` out cure all three, and weights are still folded once at load.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fp8graph.base.errors import BackendError, InputError
from fp8graph.graph import tensors, walk
from fp8graph.graph.protos import infer_types
from fp8graph.graph.save import to_proto, weight_bytes
from fp8graph.runners import early
from fp8graph.runners.base import Feeds, Outputs
from fp8graph.runners.expand import bfloat16, everything, small_floats, vendor_quantization
from fp8graph.runners.providers import check_used, resolved

# The last two move Q/DQ in front of a Transpose, also where a graph output lies there, which is then rounded (1.32.0).
_DISABLED = ["ReluQuantRewrite", "TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider"]
# Behind Casts, as when half precision is computed as rounded fp32, these end the process in NchwcTransformer (measured:
# a bidirectional LSTM, 1.31.1 and 1.32.0), which is there for convolutions.
_CELLS = ("LSTM", "GRU", "RNN")
# Above this a model goes to the session as files: a protobuf ends at 2 GiB, and its copies cost memory before that.
_IN_MEMORY = 32_000_000
# Above this a model is not loaded twice.
_TWICE = 2_000_000_000
_TYPES = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(int64)": ir.DataType.INT64,
    "tensor(int32)": ir.DataType.INT32,
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(uint8)": ir.DataType.UINT8,
    "tensor(int8)": ir.DataType.INT8,
}
# Types of numpy's (ml_dtypes) that go in as OrtValues, for the runtime's Python side has none of them.
_CODES = {"float8_e4m3fn": ir.DataType.FLOAT8E4M3FN, "float8_e5m2": ir.DataType.FLOAT8E5M2}


class OnnxRuntime:
    """One session. `model` is a path or a model of ours.

    Of a model of ours, bf16, which has no kernels here, is run as rounded fp32. Where `exact`, so is fp16, and numbers,
    Q/DQ and versions that the runtime does not have are expanded (`expand.everything`). A path is run as it is.

    threads   intra-op threads; 1 makes results independent of the machine's load
    exact     False leaves ONNX Runtime's default settings: what a user gets who loads the file plainly
    fuse      False computes each op alone, as it is written: what tests compare bit by bit
    libraries shared libraries with the model's own operators
    providers as `runners.providers` reads them; none: the CPU
    aside     outputs that are computed as early as can be, so that what they read is not held for them; it costs
              loading the model twice, and is done on the CPU, where its weights are less than 2 GB
    """

    def __init__(
        self,
        model: Path | ir.Model,
        *,
        threads: int = 1,
        exact: bool = True,
        fuse: bool = True,
        libraries: Sequence[str] = (),
        providers: Sequence[str] = (),
        aside: Sequence[str] = (),
    ) -> None:
        import onnxruntime

        wanted = resolved(providers)
        options = _options(onnxruntime, threads, libraries)
        disabled: list[str] = []
        if exact:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            disabled = _DISABLED
        else:
            # Else every weight is dequantized before the first product runs (1.32: all of the model at once in fp32).
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        if not fuse:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            # A packed weight takes another kernel, which adds up in another order.
            options.add_session_config_entry("session.disable_prepacking", "1")

        if not isinstance(model, Path) and any(place.node.op_type in _CELLS for place in walk.walk(model)):
            disabled = [*disabled, "NchwcTransformer"]
        expanded = model if isinstance(model, Path) else (everything.numbers if exact else bfloat16.expand)(model)

        def session(given: str | bytes) -> Any:
            return onnxruntime.InferenceSession(given, options, providers=wanted, disabled_optimizers=disabled)

        def sorted_session(given: str | bytes) -> Any:
            with tempfile.TemporaryDirectory(prefix="fp8graph-", ignore_cleanup_errors=True) as folder:
                early.save_to(options, Path(folder))
                session(given)
                again = _options(onnxruntime, threads, libraries)
                early.as_it_is(onnxruntime, again)
                path = early.sorted_model(Path(folder), aside)
                return onnxruntime.InferenceSession(path, again, providers=wanted)

        soon = aside and not isinstance(expanded, Path) and not providers and weight_bytes(expanded) < _TWICE
        made = sorted_session if soon else session
        try:
            whole = 0 if soon else _IN_MEMORY
            self._session = made(str(expanded)) if isinstance(expanded, Path) else _loaded(expanded, made, whole)
        except Exception as error:  # onnxruntime raises its own types, all of them from Exception
            raise _failed("ONNX Runtime cannot load the model", error) from error
        check_used(wanted, self._session.get_providers())
        self._names = [output.name for output in self._session.get_outputs()]

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""
        return self._names

    def run(self, feeds: Feeds) -> Outputs:
        """Arrays by output name. Raises BackendError FG133 with ONNX Runtime's reason."""
        try:
            given = {name: _plain(array) for name, array in feeds.items()}
            if not any(str(array.dtype) in _CODES for array in given.values()):
                return dict(zip(self._names, self._session.run(self._names, given), strict=True))
            made = self._session.run_with_ort_values(self._names, {name: _held(array) for name, array in given.items()})
            return {name: value.numpy() for name, value in zip(self._names, made, strict=True)}
        except Exception as error:  # onnxruntime raises its own types, all of them from Exception
            raise _failed("ONNX Runtime cannot run the model", error) from error


def _options(onnxruntime: Any, threads: int, libraries: Sequence[str]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_pattern = False
    _register(options, libraries)
    return options


def _register(options: Any, libraries: Sequence[str]) -> None:
    for library in libraries:
        try:
            options.register_custom_ops_library(library)
        except Exception as error:  # onnxruntime raises its own types, all of them from Exception
            raise InputError(
                "a library of custom operators cannot be loaded",
                where=library,
                why=str(error).splitlines()[0],
                do="give the library that ONNX Runtime loads for this model",
                code="FG133",
            ) from error


def fill_types(model: ir.Model, libraries: Sequence[str] = ()) -> int:
    """Asks ONNX Runtime for the types of inner values that onnx could not infer (vendor ops); how many were found.

    Never raises: a model that the runtime does not load keeps its unknown types.
    """
    unknown = [value for node in model.graph for value in node.outputs if value.name and value.dtype is None]
    if not unknown:
        return 0
    view = model.clone()
    inner = {value.name: value for node in view.graph for value in node.outputs}
    have = {value.name for value in view.graph.outputs}
    view.graph.outputs.extend(inner[value.name] for value in unknown if value.name not in have)
    found = 0
    try:
        found = _spelt_types(view, unknown)
        unknown = [value for value in unknown if value.dtype is None]
        session = OnnxRuntime(view, libraries=libraries)._session if unknown else None
    except (BackendError, InputError):
        return found
    if session is None:
        return found
    types = {output.name: output for output in session.get_outputs()}
    for value in unknown:
        said = types.get(value.name)
        dtype = _TYPES.get(said.type) if said is not None else None
        if said is None or dtype is None:
            continue
        value.type = ir.TensorType(dtype)
        if said.shape:  # an empty list also stands for a rank that is not known
            value.shape = value.shape or ir.Shape(said.shape)
        found += 1
    return found


def _spelt_types(view: ir.Model, unknown: Sequence[ir.Value]) -> int:
    """Types behind TensorRT's operators, as onnx infers them of the standard ones: the session has other types."""
    spelt = vendor_quantization.expand(view)
    if spelt is view:
        return 0
    infer_types(spelt)
    made = {value.name: value for node in spelt.graph for value in node.outputs if value.dtype is not None}
    found = [(value, made[value.name]) for value in unknown if value.name in made]
    for value, twin in found:
        value.type, value.shape = twin.type, value.shape or twin.shape
    return len(found)


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """bf16 as the float32 that an expanded model reads, and FP4, FP6 and E8M0 as what holds them there."""
    if array.dtype == tensors.NUMPY["bf16"]:
        return array.astype(np.float32)
    return small_floats.carried(array) if array.dtype.isbuiltin == 2 else array  # a type of ml_dtypes


def _held(array: np.ndarray[Any, Any]) -> Any:
    """An OrtValue: of codes with the type that numpy does not know."""
    from onnxruntime import OrtValue

    kind = _CODES.get(str(array.dtype))
    if kind is None:
        return OrtValue.ortvalue_from_numpy(array)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array).view(np.uint8), int(kind))


def _loaded(model: ir.Model, session: Any, most: int) -> Any:
    """A session from memory, or where the weights are `most` bytes or more from files, which costs no copy of them."""
    if weight_bytes(model) < most:
        return session(to_proto(model).SerializeToString())
    with tempfile.TemporaryDirectory(prefix="fp8graph-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data")
        return session(str(path))


def _failed(what: str, error: Exception) -> BackendError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    why = lines[0][:600] if lines else type(error).__name__
    do = "run the original model in ONNX Runtime first"
    if "not a registered function/op" in why:
        do = "give the library that holds the operator: --custom-ops LIB.so"
    return BackendError(what, why=why, do=do, code="FG133")
