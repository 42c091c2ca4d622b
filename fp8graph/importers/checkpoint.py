"""A safetensors checkpoint: one file, an index with its shards, or a folder with its config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fp8graph.base.errors import InputError
from fp8graph.base.files import read_text
from fp8graph.importers.container import Tensor, pickled, tensors_of
from fp8graph.importers.declared import Declared, declared

_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})


@dataclass(frozen=True)
class Checkpoint:
    """Every tensor by name, unread; `config` is config.json's, empty where there is none.

    declared   what is said about quantization
    files      what was opened, for digests
    """

    path: Path
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    declared: Declared = field(default_factory=Declared)
    files: tuple[Path, ...] = ()


def open_checkpoint(path: Path) -> Checkpoint:
    """A .safetensors file, an .index.json, or a folder that holds one of them. Raises InputError FG115."""
    if not path.exists():
        _refuse(path, "there is no such file or folder", "check the path")
    folder = path if path.is_dir() else path.parent
    start = _in_folder(path) if path.is_dir() else (path,)
    if len(start) == 1 and start[0].name.endswith(".json"):
        tensors, files = _indexed(start[0])
    elif start[0].suffix in _PICKLES:
        raise pickled(start[0])
    else:
        tensors, files = _joined(start)
    config = _json(folder / "config.json", optional=True)
    return Checkpoint(path, tensors, config, _declared(folder, config), tuple(files))


def _in_folder(folder: Path) -> tuple[Path, ...]:
    """What to open in a folder: its one index, else its safetensors files."""
    indices = sorted(folder.glob(f"*{_INDEX}"))
    if len(indices) > 1:
        names = ", ".join(item.name for item in indices)
        _refuse(folder, f"it holds several indices: {names}", f"name one of them: {indices[0]}")
    if indices:
        return (indices[0],)
    files = tuple(sorted(folder.glob("*.safetensors")))
    if files:
        return files
    pickles = sorted(item for item in folder.iterdir() if item.suffix in _PICKLES)
    if pickles:
        raise pickled(pickles[0])
    _refuse(folder, "it holds no .safetensors file", "name the folder that the checkpoint lies in")


def _indexed(path: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors that an index names, from the shards that it names."""
    index = _json(path)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or any(not isinstance(name, str) for name in shards.values()):
        _refuse(
            path, "it has no 'weight_map' from names to files", "give the model.safetensors.index.json of a checkpoint"
        )
    names = sorted(set(shards.values()))
    found: dict[str, dict[str, Tensor]] = {}
    for name in names:
        shard = path.parent / name
        if Path(name).name != name or name in ("", ".", ".."):
            _refuse(path, f"the shard '{name}' leaves the checkpoint's folder", "name shards by their file names alone")
        if not shard.is_file():
            _refuse(path, f"the shard '{name}' is missing", f"put {name} beside the index")
        found[name] = tensors_of(shard)
    for name, shard_name in sorted(shards.items()):
        if name not in found[shard_name]:
            holder = next((other for other in names if name in found[other]), None)
            rest = f", {holder} does" if holder else ""
            _refuse(path, f"the index says that {shard_name} holds '{name}', which it does not{rest}")
    for shard_name, held in found.items():
        for name in held:
            if name not in shards:
                _refuse(path, f"{shard_name} holds '{name}', which the index does not name")
    return {name: found[shard][name] for name, shard in sorted(shards.items())}, [
        path,
        *(path.parent / n for n in names),
    ]


def _joined(files: tuple[Path, ...]) -> tuple[dict[str, Tensor], list[Path]]:
    """All files together; numbered shards must be complete."""
    numbered = [(file, match) for file in files if (match := _SHARD.search(file.name))]
    if numbered and len(files) > 1:
        total = int(numbered[0][1][2])
        missing = sorted(set(range(1, total + 1)) - {int(match[1]) for _, match in numbered})
        if missing:
            _refuse(files[0].parent, f"shard {missing[0]} of {total} is missing", "copy all shards into the folder")
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in tensors_of(file).items():
            if name in tensors:
                twice = f"'{name}' lies in {tensors[name].path.name} and in {file.name}"
                _refuse(file.parent, twice, f"name the one file that counts: {file}")
            tensors[name] = tensor
    return tensors, list(files)


def _declared(folder: Path, config: Mapping[str, Any]) -> Declared:
    """The section on quantization: config.json's under either of its names, else ModelOpt's own file."""
    for holder, prefix in ((config, ""), (config.get("text_config"), "text_config.")):
        for section in ("quantization_config", "compression_config"):
            if isinstance(holder, dict) and holder.get(section) is not None:
                return _section(holder[section], f"{folder / 'config.json'}: {prefix}{section}")
    own = folder / "hf_quant_config.json"
    return _section(_json(own, optional=True).get("quantization") or {}, f"{own}: quantization")


def _section(found: Any, where: str) -> Declared:
    if not isinstance(found, dict):
        _refuse(where, f"it is {found!r:.60}, and a table is read", "put the config.json of these weights beside them")
    return declared(found, where)


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        found = json.loads(read_text(path, "the checkpoint's " + path.name))
    except (ValueError, RecursionError) as error:
        _refuse(path, f"it is no JSON: {str(error) or type(error).__name__}")
    if not isinstance(found, dict):
        _refuse(path, f"it is a JSON {type(found).__name__}, and no table")
    return found


def _refuse(path: Path | str, why: str, do: str = "download the checkpoint again") -> NoReturn:
    raise InputError("the checkpoint cannot be read", where=str(path), why=why, do=do, code="FG115")
