"""What stands in an engine file: the second witness, read without TensorRT and without a GPU.

TensorRT-RTX keeps its compiled programs as text in the file, at every verbosity. Measured with 1.5.0, 1.6.1 and 1.7.1:

    header    b"vtrt", u64 file size at 16, version as four bytes at 24, u32 chip mask at 32; then directory entries:
              tag b"NGNE" (engine) or b"THGW" (weights), u32 0, u64 offset, u64 size (little endian)
    programs  in the engine part: b"NLYM", u32, u64 text length, text `header {..} descriptors {..} main {..}`
              version 5: one compiled subgraph of one profile; version 4: the body of a runtime_fusion of the one before
    ops       fully_connected, corrltn, deconvolution: `input={A B ..}`; function: `input_args={..}`, a generated kernel
    layers    names of the ONNX nodes merged into the op

The format is private to NVIDIA and may change in any release. So a file is only believed if it is of a build that was
checked, whole, and in every part as expected; of any other nothing is said, which is not the same as "not FP8".
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp8graph.base.errors import InputError
from fp8graph.base.files import sha256_of
from fp8graph.engines.witness import SMALL, EngineOp, Item, Tensor, layer_names, link

# Builds whose engines were compared with the builder's own listing: some 1,600 products each, no disagreement.
KNOWN_BUILDS = frozenset({(1, 5, 0, 114), (1, 6, 1, 120), (1, 7, 1, 116)})
_RTX, _DATACENTER = b"vtrt", b"ftrt"
_HEADER_BYTES, _DIRECTORY_BYTES = 64, 512
_TEXT_BYTES = 256 << 20  # more program text than this is not read; a 24-layer encoder has about 1 MiB
_START = re.compile(rb"NLYM.{12}header \{", re.DOTALL)
_MAIN, _FUSION_BODY = 5, 4
_PROFILE = re.compile(r"\[profile (\d{1,4})\]")
_TYPES = {
    "fp8_e4m3": "fp8",
    "fp4_e2m1": "fp4",
    "fp8_e8m0": "e8m0",
    "half": "fp16",
    "float": "fp32",
}  # bf16, int8, int4, int32 ... are called so


@dataclass(frozen=True)
class EngineFile:
    """What an engine file says of itself.

    sha256      of the whole file
    builder     name and version that wrote it; the name alone where the version cannot be read
    chips       chips that all its programs serve
    profiles    optimisation profiles whose programs it holds
    ops         what it computes; empty where `unknown` says why nothing could be read
    constant_bytes   bytes of the constants that its programs read, each once; None where nothing could be read
    weights     bytes of constants by type, of the profile that holds most of it: profiles share what is stored
    """

    sha256: str
    builder: str
    chips: tuple[str, ...]
    profiles: int
    ops: tuple[EngineOp, ...]
    unknown: str = ""
    constant_bytes: int | None = None
    weights: Mapping[str, int] = field(default_factory=dict)


class _FormError(Exception):
    """The file is not in the form that this reader knows."""


def read_engine(path: Path) -> EngineFile:
    """Reads an engine file. Time is linear in its size, and only program text is taken into memory.

    Raises InputError FG508 for a file that is missing, no engine, or not whole. A whole engine in a form that is not
    known is no error: `unknown` of the result says so.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(_HEADER_BYTES)
            if start[:4] not in (_RTX, _DATACENTER) or size < _HEADER_BYTES:
                raise _refused(path, "it does not begin like an engine of TensorRT")
            if start[:4] == _DATACENTER:
                why = "the form of TensorRT's engines is not known, only that of TensorRT-RTX"
                return EngineFile(sha256_of(path), "tensorrt", (), 1, (), why)
            (said,) = struct.unpack_from("<Q", start, 16)
            if said != size:
                raise _refused(path, f"it is not whole: {size} bytes, its header says {said}")
            digest = sha256_of(path)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data, start, digest)
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error


def _refused(path: Path, why: str) -> InputError:
    return InputError(
        "the engine file cannot be read",
        where=str(path),
        why=why,
        do="build it anew: python -m fp8graph build MODEL -o ENGINE --target TARGET",
        code="FG508",
    )


def _read(data: mmap.mmap, start: bytes, digest: str) -> EngineFile:
    version = tuple(start[24:28])
    builder = f"tensorrt-rtx {'.'.join(map(str, version))}"
    if version not in KNOWN_BUILDS:
        known = ", ".join(".".join(map(str, build)) for build in sorted(KNOWN_BUILDS))
        return EngineFile(digest, builder, (), 1, (), f"engines of {builder} were not checked, only those of {known}")
    try:
        first, size = _section(data, b"NGNE")
        programs = list(_programs(data, first, first + size))
        mains = [program for program in programs if program.version == _MAIN]
        if not mains:
            raise _FormError("it holds no program")
        if max(program.profile for program in mains) >= len(mains):
            raise _FormError("it names more profiles than it holds programs")
        items = [item for program in programs for item in program.items]
        common = set(mains[0].chips).intersection(*(program.chips for program in mains))
        chips = tuple(chip for chip in mains[0].chips if chip in common)
        profiles = 1 + max(program.profile for program in mains)
        ops, held = tuple(link(items)), _held(data, programs)
        return EngineFile(digest, builder, chips, profiles, ops, constant_bytes=held, weights=_by_type(programs))
    except (_FormError, RecursionError) as error:
        return EngineFile(digest, builder, (), 1, (), f"the file is not in the form that is known: {error}")


def _section(data: mmap.mmap, tag: bytes) -> tuple[int, int]:
    at = data.find(tag, 0, _DIRECTORY_BYTES)
    if at < 0 or at + 24 > len(data):
        raise _FormError(f"it has no part {tag[::-1].decode()}")
    first, size = struct.unpack_from("<QQ", data, at + 8)
    if first + size > len(data):
        raise _FormError(f"its part {tag[::-1].decode()} is longer than the file")
    return first, size


def _held(data: mmap.mmap, programs: Sequence[_Program]) -> int:
    """Bytes of all constants. Programs of several profiles share the stored ones: never more than that part holds."""
    _, stored = _section(data, b"THGW")
    return min(stored, sum(size for program in programs for _, size in program.constants.values()))


def _by_type(programs: Sequence[_Program]) -> dict[str, int]:
    sums: dict[tuple[str, int], int] = {}
    for program in programs:
        for type_, size in program.constants.values():
            sums[type_, program.profile] = sums.get((type_, program.profile), 0) + size
    return {name: max(sums[key] for key in sums if key[0] == name) for name in sorted({name for name, _ in sums})}


@dataclass(frozen=True)
class _Program:
    """`constants`: type and bytes of each stored constant by the region and the place in it that its tensors name."""

    version: int
    profile: int
    chips: tuple[str, ...]
    items: tuple[Item, ...]
    constants: Mapping[tuple[str, str], tuple[str, int]]


def _programs(data: mmap.mmap, first: int, end: int) -> Iterator[_Program]:
    """The programs in file order; the body of a fusion is read with the constants of the program before it."""
    taken, owner, constants = 0, 0, frozenset[str]()
    at = first
    while found := _START.search(data, at, end):
        begin = found.start() + 16
        (length,) = struct.unpack_from("<Q", data, found.start() + 8)
        if length > end - begin:
            raise _FormError("a program is longer than the file")
        taken += length
        if taken > _TEXT_BYTES:
            raise _FormError(f"it holds more than {_TEXT_BYTES >> 20} MiB of program text")
        parts = _Text(data[begin : begin + length].decode("utf-8", "replace")).parts()
        header = dict(parts.get("header", []))
        version = int(header["version"]) if str(header.get("version", "")).isdecimal() else -1
        if version not in (_MAIN, _FUSION_BODY) or "descriptors" not in parts or "main" not in parts:
            raise _FormError(f"a program of version {version}, or with parts missing")
        if version == _MAIN:
            named = [int(n) for name in _list(header.get("inputs")) for n in _PROFILE.findall(name)]
            owner = max(named, default=0)
            constants = frozenset()
        tensors = _tensors(parts["descriptors"], constants)
        if version == _MAIN:
            constants = frozenset(name for name, tensor in tensors.items() if tensor[0].constant)
        items = tuple(_items(parts["main"], tensors, owner, inside=version == _FUSION_BODY))
        held = _constants(parts["descriptors"]) if version == _MAIN else {}
        yield _Program(version, owner, tuple(_list(header.get("accelerators"))), items, held)
        at = begin + length


def _constants(entries: list[tuple[str, Any]]) -> dict[tuple[str, str], tuple[str, int]]:
    """Type and bytes of the constants of a program. Tensors of equal bytes name one place and are stored once."""
    found = {}
    for key, value in entries:
        fields = dict(value) if key == "tensor" and isinstance(value, list) else {}
        size = str(fields.get("const_payload_size", ""))
        if size.isdecimal():
            # A constant that names no place has one of its own.
            place = str(fields.get("offset", fields.get("name", "")))
            type_ = str(fields.get("type", ""))
            found[str(fields.get("region", "")), place] = (_TYPES.get(type_, type_), int(size))
    return found


def _tensors(entries: list[tuple[str, Any]], outside: frozenset[str]) -> dict[str, tuple[Tensor, int]]:
    """Every tensor and view by name, with its rank. `outside`: constants of the program that a fusion belongs to.

    A view goes by the name of the tensor that it looks at: so what made that is found.
    """
    found: dict[str, tuple[Tensor, int]] = {}
    for key, value in entries:
        if key not in ("tensor", "sub_tensor") or not isinstance(value, list):
            continue
        fields = dict(value)
        name, type_ = str(fields.get("name", "")), str(fields.get("type", ""))
        base = found.get(str(fields.get("base", "")))
        constant = "const_payload_size" in fields or name in outside or (base is not None and base[0].constant)
        tensor = Tensor(base[0].name if base is not None else name, _TYPES.get(type_, type_), constant)
        found[name] = (tensor, len(_list(fields.get("dims"))))
    return found


def _items(
    entries: list[tuple[str, Any]], tensors: Mapping[str, tuple[Tensor, int]], profile: int, *, inside: bool
) -> Iterator[Item]:
    unknown = (Tensor("", "?", False), 0)
    # A fusion has one product: what small constants its body reads is what that product's weight is stored in.
    weights = [pair for pair in tensors.values() if pair[0].constant and pair[0].type in SMALL] if inside else []
    for kind, value in entries:
        if not isinstance(value, list):
            continue
        fields = dict(value)
        inputs = [tensors.get(name, unknown) for name in _list(fields.get("input", fields.get("input_args")))]
        made = _list(fields.get("output", fields.get("output_args")))
        outputs = tuple(tensors[name][0].name if name in tensors else name for name in made)
        said = kind
        if kind in ("fully_connected", "corrltn", "deconvolution"):
            inputs = inputs[:2] + weights  # then come scale factors and bias
            # What a fusion computes inside is high precision: said here, so that no reader of types is misled.
            said = "runtime_fusion" if inside else kind
        elif kind == "runtime_fusion":
            continue  # its body follows as a program of its own
        elif kind == "function" and "_mha_v" in str(fields.get("name", "")):
            said = str(fields["name"])
            inputs = [
                pair for pair in inputs if pair[1] >= 3 and not pair[0].type.startswith(("bool", "int32", "int64"))
            ]
        layers = layer_names(str(fields.get("layers", "")))
        yield Item(profile, said, layers, tuple(tensor for tensor, _ in inputs), outputs)


def _list(value: Any) -> list[str]:
    """The words of a block `{ a b }`, or a single word."""
    if isinstance(value, list):
        return [word for key, word in value if not key and isinstance(word, str)]
    return [value] if isinstance(value, str) else []


class _Text:
    """A program's text: words, quoted texts, `key=value` and blocks `{ .. }`, read once from front to back.

    A block is a list of (key, value) pairs; the key of a plain word in it is empty. Blocks deeper than `_DEPTH` and
    anything unfinished is a _FormError.
    """

    _TOKEN = re.compile(r'\s*(?:"([^"\\]*(?:\\.[^"\\]*)*)"|([{}=])|([^\s{}="]+)|$)', re.DOTALL)
    _ESCAPED = re.compile(r"\\(.)", re.DOTALL)
    _DEPTH = 16

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._kind, self._value = "", ""
        self._next()

    def _next(self) -> None:
        """Moves on: kind `text`, `word`, `{`, `}`, `=`, or `end`."""
        found = self._TOKEN.match(self._text, self._at)
        if found is None:
            raise _FormError(f"its text cannot be read at {self._text[self._at : self._at + 40]!r}")
        self._at = found.end()
        quoted, mark, word = found.groups()
        if quoted is not None:
            self._kind, self._value = "text", self._ESCAPED.sub(r"\1", quoted) if "\\" in quoted else quoted
        else:
            self._kind, self._value = mark or ("word" if word else "end"), word or ""

    def parts(self) -> dict[str, list[tuple[str, Any]]]:
        """The blocks `name { .. }` that the text consists of."""
        parts = {}
        while self._kind != "end":
            name = self._value
            self._next()
            if not name or self._kind != "{":
                raise _FormError("its text does not consist of named blocks")
            parts[name] = self._block(0)
        return parts

    def _block(self, depth: int) -> list[tuple[str, Any]]:
        if depth > self._DEPTH:
            raise _FormError("its blocks are nested too deep")
        self._next()
        pairs: list[tuple[str, Any]] = []
        while self._kind != "}":
            if self._kind in ("end", "="):
                raise _FormError("a block has no end")
            if self._kind == "{":
                pairs.append(("", self._block(depth + 1)))
                continue
            word = self._value
            self._next()
            if self._kind == "=":
                self._next()
                if self._kind in ("end", "}", "="):
                    raise _FormError(f"'{word}' has no value")
                pairs.append((word, self._value_here(depth)))
            else:
                pairs.append(("", word))
        self._next()
        return pairs

    def _value_here(self, depth: int) -> Any:
        if self._kind == "{":
            return self._block(depth + 1)
        value = self._value
        self._next()
        return value
