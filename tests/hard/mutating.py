"""Damage, drawn by hypothesis: bytes of any file, and messages of a model."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import onnx
from hypothesis import strategies as st

Draw = Any
# What may stand where a document has something else.
ODD: list[Any] = [None, True, 0, -1, 3, 1e30, -1e-30, 2**70, "", "x", [], {}, [1], [[1, 1]], {"a": 1}, "amax", "fp8"]
NUMBERS = [0, 1, 2, -1, 3, 7, 8, 10, 11, 16, 17, 2**31 - 1, 2**40]
FLOATS = [0.0, float("nan"), float("inf"), -1.0, 1e38, 1e-38]


@st.composite
def damaged(draw: Draw, content: bytes) -> bytes:
    """The bytes after one to four changes: bits flipped, bytes set, cut out, put in, moved, or the end cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        kind = draw(st.sampled_from(["flip", "flip", "set", "set", "cut", "put", "copy", "end"]))
        at, size = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 8))
        if kind == "flip":
            data[at] ^= 1 << (size - 1)
        elif kind == "set":
            data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, ord("0"), ord('"')]))
        elif kind == "cut":
            del data[at : at + size]
        elif kind == "put":
            data[at:at] = draw(st.binary(min_size=size, max_size=size))
        elif kind == "copy":
            begin = draw(st.integers(0, len(data) - 1))
            data[at : at + size] = data[begin : begin + size]
        else:
            del data[at:]
    return bytes(data)


@st.composite
def damaged_json(draw: Draw, content: bytes) -> bytes:
    """A document that is JSON still, with entries taken out, put in, exchanged or of another kind."""
    document = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        node = document
        while node:
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
            if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 5)):
                node = node[key]
                continue
            kind = draw(st.sampled_from(["take", "put", "exchange", "other", "other"]))
            if kind == "take":
                del node[key]
            elif kind == "put" and isinstance(node, dict):
                node[draw(st.sampled_from(["x", "0", "7", "schema"]))] = copy.deepcopy(draw(st.sampled_from(ODD)))
            elif kind == "exchange" and isinstance(node, dict):
                other = draw(st.sampled_from(list(node)))
                node[key], node[other] = node[other], node[key]
            else:
                node[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            break
    return json.dumps(document).encode()


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(item)


def _texts(message: Any) -> Iterator[str]:
    for item in _messages(message):
        for field, value in item.ListFields():
            if field.type == field.TYPE_STRING:
                yield from [value] if isinstance(value, str) else value


@st.composite
def damaged_model(draw: Draw, content: bytes) -> bytes:
    """A model that parses still: fields taken out, messages doubled or exchanged, names and numbers of others."""
    model = onnx.ModelProto.FromString(content)
    words = ["", "ghost", *_texts(model)]
    for _ in range(draw(st.integers(1, 3))):
        everywhere = [item for item in _messages(model) if item.ListFields()]
        message = draw(st.sampled_from(everywhere))
        field, value = draw(st.sampled_from(message.ListFields()))
        many = not hasattr(value, "ListFields") and not isinstance(value, str | bytes | int | float)
        if draw(st.integers(0, 4)) == 0 or (field.type == field.TYPE_MESSAGE and not many):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            place, kind = draw(st.integers(0, len(value) - 1)), draw(st.sampled_from(["take", "double", "exchange"]))
            if kind == "take":
                del value[place]
            elif kind == "double":
                value.add().CopyFrom(value[place])
            else:
                same = [item for item in everywhere if type(item) is type(value[place])]
                other = type(value[place])()
                other.CopyFrom(draw(st.sampled_from(same)))  # it may hold what it replaces, or lie in it
                value[place].CopyFrom(other)
        else:
            _change(draw, message, field, value, many, words)
    return model.SerializeToString()


def _change(draw: Draw, message: Any, field: Any, value: Any, many: bool, words: list[str]) -> None:
    """Puts another number or text of the field's type in its place."""
    if field.type == field.TYPE_STRING:
        other: Any = draw(st.sampled_from(words))
    elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        other = draw(st.sampled_from(FLOATS))
    elif field.type == field.TYPE_BYTES:
        other = draw(damaged(value)) if not many and value else b"x"
    else:
        allowed = [item.number for item in field.enum_type.values] if field.enum_type else NUMBERS
        other = draw(
            st.sampled_from([item for item in allowed if field.cpp_type != field.CPPTYPE_INT32 or item < 2**31])
        )
    if many:
        value[draw(st.integers(0, len(value) - 1))] = other
    else:
        setattr(message, field.name, other)
