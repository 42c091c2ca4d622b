"""Refusing models that are not what they say, before anything is allocated for them or believed about them.

Checks what readers downstream take for granted: tensors have the bytes that their dims ask for, names are written
once, everything that is read is there, nothing depends on itself. Any order of nodes will do: unsorted ones are sorted
later.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import Message

from fp8graph.base.errors import InputError

# Highest IR version whose files are known to mean what they say; onnx itself may know newer ones.
_EXTERNAL = onnx.TensorProto.EXTERNAL
# Bytes of an element; the types of half a byte and less are packed.
_BITS: dict[int, int] = {
    onnx.TensorProto.FLOAT: 32, onnx.TensorProto.UINT8: 8, onnx.TensorProto.INT8: 8, onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT16: 16, onnx.TensorProto.INT32: 32, onnx.TensorProto.INT64: 64, onnx.TensorProto.BOOL: 8,
    onnx.TensorProto.FLOAT16: 16, onnx.TensorProto.DOUBLE: 64, onnx.TensorProto.UINT32: 32,
    onnx.TensorProto.UINT64: 64, onnx.TensorProto.COMPLEX64: 64, onnx.TensorProto.COMPLEX128: 128,
    onnx.TensorProto.BFLOAT16: 16, onnx.TensorProto.FLOAT8E4M3FN: 8, onnx.TensorProto.FLOAT8E4M3FNUZ: 8,
    onnx.TensorProto.FLOAT8E5M2: 8, onnx.TensorProto.FLOAT8E5M2FNUZ: 8, onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT4: 4, onnx.TensorProto.FLOAT4E2M1: 4,
}  # fmt: skip
for _name, _bits in (("FLOAT8E8M0", 8), ("UINT2", 2), ("INT2", 2), ("FLOAT6E2M3", 6), ("FLOAT6E3M2", 6)):
    if hasattr(onnx.TensorProto, _name):
        _BITS[getattr(onnx.TensorProto, _name)] = _bits
# Which typed field holds elements of a type, and how many of its numbers one element takes.
Imports = Mapping[str, int]
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def validate(proto: onnx.ModelProto, where: str, path: Path | None = None) -> list[Path]:
    """Raises InputError FG106 or FG104 for the first thing that is wrong; returns the files of external data.

    `path` is the model's own file, None for a model in memory.
    """
    _versions(proto, where)
    _texts(proto, where)
    files: list[Path] = []
    for graph in (proto.graph, *_function_bodies(proto)):
        for tensor in _tensors(graph):
            file = _tensor(tensor, where, path)
            if file is not None and file not in files:
                files.append(file)
    _functions(proto, where)
    imports = {item.domain: item.version for item in proto.opset_import}
    _graph(proto.graph, None, frozenset(), imports, where)
    for function in proto.functions:
        own = {item.domain: item.version for item in function.opset_import}
        body = onnx.GraphProto(node=function.node)
        body.input.extend(onnx.ValueInfoProto(name=name) for name in function.input)
        body.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
        _graph(body, None, frozenset(), own, f"{where}, function '{function.domain}::{function.name}'")
    return files


def _versions(proto: onnx.ModelProto, where: str) -> None:
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise refused(where, "it holds no graph: it is empty, or not an ONNX model")
    if proto.ir_version > onnx.IR_VERSION:
        raise refused(where, f"its IR version {proto.ir_version} is not known ({onnx.IR_VERSION} is the newest)")
    if not proto.opset_import:
        raise refused(where, "it imports no opset, so its ops have no meaning")
    newest = onnx.defs.onnx_opset_version()
    for item in (*proto.opset_import, *(item for function in proto.functions for item in function.opset_import)):
        if item.domain in ("", "ai.onnx") and not 1 <= item.version <= newest:
            raise refused(where, f"opset {item.version} is not known (1 to {newest} are)")


def _texts(message: Message, where: str) -> None:
    """Every text must be UTF-8: protobuf hands others over as bytes, and refuses to write them."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in [value] if hasattr(value, "ListFields") else value:
                _texts(item, where)
        elif field.type == field.TYPE_STRING:
            items = [value] if isinstance(value, (str, bytes)) else value
            wrong = next((item for item in items if isinstance(item, bytes)), None)
            if wrong is not None:
                raise refused(where, f"the {field.name} {wrong!r} is no UTF-8 text")


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _function_bodies(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    for function in proto.functions:
        yield onnx.GraphProto(node=function.node)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for body in _bodies(node):
            yield from _tensors(body)


def _tensor(tensor: onnx.TensorProto, where: str, path: Path | None) -> Path | None:
    """Checks one tensor and returns the file of its external data, None where its data is inside."""
    at = f"{where}, tensor '{tensor.name}'"
    kinds = onnx.TensorProto.DataType.keys()
    if tensor.data_type == onnx.TensorProto.UNDEFINED or tensor.data_type not in onnx.TensorProto.DataType.values():
        raise refused(at, f"its data type {tensor.data_type} is not known ({len(kinds) - 1} types are)")
    if any(size < 0 for size in tensor.dims):
        raise refused(at, f"its dims {list(tensor.dims)} hold a negative number")
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    count = math.prod(tensor.dims)
    wanted = (count * _BITS.get(tensor.data_type, 8) + 7) // 8
    typed = [name for name in _FIELDS if len(getattr(tensor, name))]
    if tensor.data_location == _EXTERNAL:
        if typed or tensor.HasField("raw_data"):
            raise refused(at, "it holds data of its own and names external data, too", code="FG104")
        if path is None:
            raise refused(at, "its data is external, and a model in memory has no folder", code="FG104")
        return _external(tensor, wanted, path)
    if tensor.HasField("raw_data"):
        if typed:
            raise refused(at, f"it holds its data twice: as raw_data and as {typed[0]}")
        if len(tensor.raw_data) != wanted:
            raise refused(at, f"its dims {list(tensor.dims)} ask for {wanted} bytes, it has {len(tensor.raw_data)}")
    elif count and not typed:
        raise refused(at, f"its dims {list(tensor.dims)} ask for {wanted} bytes, it has no data")
    elif len(typed) > 1:
        raise refused(at, f"it holds its data twice: as {typed[0]} and as {typed[1]}")
    elif typed and not _fits(tensor, typed[0], count):
        raise refused(
            at, f"its dims {list(tensor.dims)} ask for {count} values, it has {len(getattr(tensor, typed[0]))}"
        )
    return None


def _fits(tensor: onnx.TensorProto, field: str, count: int) -> bool:
    """Whether a typed field holds so many elements: complex numbers take two, packed types share one."""
    have, bits = len(getattr(tensor, field)), _BITS.get(tensor.data_type, 8)
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return have == 2 * count
    return have == count or (bits < 8 and have == (count * bits + 7) // 8)


def _external(tensor: onnx.TensorProto, wanted: int, path: Path) -> Path:
    """The file of a tensor's external data: it lies in the model's folder, links followed, and is long enough."""
    at = f"{path}, tensor '{tensor.name}'"
    keys = [entry.key for entry in tensor.external_data]
    if len(set(keys)) != len(keys):
        raise refused(at, "a key of its external data stands there twice", code="FG104")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file: Path = path.parent / str(location)
    if not location or "\0" in location:
        raise refused(at, "its location is empty or holds a null character", code="FG104")
    if Path(location).is_absolute() or not file.resolve().is_relative_to(path.parent.resolve()):
        link = " through a link" if ".." not in Path(location).parts and not Path(location).is_absolute() else ""
        raise refused(at, f"its location '{location}' leads outside of the model's folder{link}", code="FG104")
    if file.is_dir():
        raise refused(at, f"its location '{location}' is a folder (directory)", code="FG104")
    if not file.is_file():
        raise refused(at, f"its data file '{location}' is not there", do=f"copy it beside {path.name}", code="FG104")
    if file.stat().st_nlink > 1:  # onnx and onnx_ir refuse them: a link may name a file from anywhere
        raise refused(at, f"its data file '{location}' has several hard links", do="copy the file", code="FG104")
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or wanted)
    except ValueError as error:
        raise refused(at, "its offset or length is no number", code="FG104") from error
    size = file.stat().st_size
    if offset < 0 or length < 0:
        raise refused(at, f"its offset {offset} or length {length} is negative", code="FG104")
    if length != wanted:
        raise refused(at, f"its length is {length} bytes, its dims {list(tensor.dims)} ask for {wanted}", code="FG104")
    if offset + length > size:
        raise refused(
            at, f"it wants bytes {offset} to {offset + length} (offset, length), '{location}' has {size}", code="FG104"
        )
    return file


def _functions(proto: onnx.ModelProto, where: str) -> None:
    """Functions must not call themselves, through others either."""
    calls = {
        (f.domain, f.name): {(n.domain, n.op_type) for g in (onnx.GraphProto(node=f.node),) for n in _all_nodes(g)}
        for f in proto.functions
    }
    state: dict[tuple[str, str], int] = {}
    for start in calls:
        stack = [(start, iter(sorted(calls[start] & set(calls))))] if start not in state else []
        state.setdefault(start, 1)
        while stack:
            name, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                state[name] = 2
                stack.pop()
            elif state.get(following) == 1:
                raise refused(where, f"the function '{following[0]}::{following[1]}' calls itself: a recursion")
            elif following not in state:
                state[following] = 1
                stack.append((following, iter(sorted(calls[following] & set(calls)))))


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _all_nodes(body)


def _graph(
    graph: onnx.GraphProto, outer: frozenset[str] | None, constants: frozenset[str], imports: Imports, where: str
) -> None:
    """Checks names, attributes and order of one graph and its bodies.

    `outer` are names that a body may read from around it, `constants` the initialisers among them; None in a main
    graph and a function.
    """
    own: dict[str, str] = {}
    initializers: set[str] = set()
    for tensor in [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]:
        if not tensor.name:
            raise refused(where, "an initialiser has no name, so nothing can read it")
        if tensor.name in initializers:
            raise refused(where, f"two initialisers are called '{tensor.name}' (duplicate)")
        if tensor.name in constants:
            raise refused(where, f"the initialiser '{tensor.name}' of a body shadows an outer one of the same name")
        initializers.add(tensor.name)
    for value in graph.input:
        if value.name in own:
            raise refused(where, f"two graph inputs are called '{value.name}' (duplicate)")
        own[value.name] = "a graph input"
    own.update((name, "an initialiser") for name in initializers)
    for node in graph.node:
        for name in filter(None, node.output):
            if name in own:
                raise refused(
                    f"{where}, {_say(node)}",
                    f"it writes '{name}', which is already {own[name]}: names are written once (SSA)",
                )
            own[name] = f"written by {_say(node)}"
    visible = (outer or frozenset()) | own.keys()
    for node in graph.node:
        _attributes(node, imports, where)
        for name in filter(None, node.input):
            if name not in visible:
                raise refused(f"{where}, {_say(node)}", f"it reads '{name}', which nothing produces")
        for body in _bodies(node):
            _graph(body, visible, constants | initializers, imports, where)
    for value in graph.output:
        if value.name not in visible:
            raise refused(where, f"the graph output '{value.name}' is produced by nothing")
        if value.name not in own:
            raise refused(where, f"a body returns '{value.name}' of the graph around it: an Identity is missing")
    _acyclic(graph, where)


def _attributes(node: onnx.NodeProto, imports: Imports, where: str) -> None:
    """Attributes of ONNX's own ops must have the types that ONNX says: nobody can read others."""
    at = f"{where}, {_say(node)}"
    if not node.op_type:
        raise refused(at, "it says no operator")
    known: Mapping[str, int] = {}
    if node.domain in ("", "ai.onnx"):
        known = _attribute_types(node.op_type, imports.get("", imports.get("ai.onnx", 1)))
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.UNDEFINED:
            raise refused(at, f"its attribute '{attribute.name}' has no type")
        if attribute.type != known.get(attribute.name, attribute.type):
            name = onnx.AttributeProto.AttributeType.Name
            wanted, have = name(known[attribute.name]), name(attribute.type)
            raise refused(at, f"its attribute '{attribute.name}' is of type {have}, {wanted} is wanted")


@functools.cache
def _attribute_types(op_type: str, opset: int) -> Mapping[str, int]:
    try:
        schema = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return {}
    types = {name: attribute.type for name, attribute in schema.attributes.items()}
    return {name: int(kind.value) for name, kind in types.items()}  # type: ignore[attr-defined]


def _acyclic(graph: onnx.GraphProto, where: str) -> None:
    """Kahn's algorithm: what is left over depends on itself."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waiting: list[int] = []
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.node):
        sources = {makers[name] for name in _reads(node) if name in makers}
        waiting.append(len(sources))
        for source in sources:
            readers.setdefault(source, []).append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    done = 0
    while ready:
        done += 1
        for reader in readers.get(ready.pop(), ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                ready.append(reader)
    if done < len(graph.node):
        stuck = next(node for index, node in enumerate(graph.node) if waiting[index])
        raise refused(f"{where}, {_say(stuck)}", "it depends on itself: the graph holds a cycle")


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, and those that its bodies read from around them."""
    yield from node.input
    for body in _bodies(node):
        for inner in _all_nodes(body):
            yield from inner.input
        yield from (value.name for value in body.output)


def _say(node: onnx.NodeProto) -> str:
    name = node.name or next(iter(node.output), "")
    return f"node '{name}' ({node.op_type})"


def refused(where: str, why: str, do: str = "export the model anew", code: str = "FG106") -> InputError:
    """The error for a model that is not what it says."""
    what = "external data cannot be used" if code == "FG104" else "the model is invalid"
    return InputError(what, where=where, why=why, do=do, code=code)
