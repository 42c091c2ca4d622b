"""Outputs in a file, for a comparison with what another machine or version has given: `--save-outputs`.

An .npz archive: `about` is a JSON text; each other array is called `SAMPLE/OUTPUT`, where SAMPLE begins the digest of
the inputs that it was computed from, so that outputs of other data are not taken for those of these.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fp8graph.base.errors import InputError, UsageError
from fp8graph.data.document import check_schema, malformed
from fp8graph.runners.base import Feeds, Outputs

_KIND, _VERSION = "outputs", 1
_ABOUT, _BF16 = "about", ":bfloat16"


class Writer:
    """Writes outputs as they come; what lies at `path` is whole after `close`."""

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        self._outputs, self._seen = list(outputs), set[str]()

    def add(self, feed: Feeds, outputs: Outputs) -> None:
        """Takes in one sample. Raises UsageError FG100 for outputs that are no tensors."""
        sample = _digest(feed)
        if sample in self._seen:
            return
        self._seen.add(sample)
        for name, value in outputs.items():
            if not isinstance(value, np.ndarray | np.generic):
                raise UsageError(
                    f"the output '{name}' is a {type(value).__name__}, and arrays are what can be saved",
                    where="--save-outputs",
                    do="leave --save-outputs out",
                    code="FG100",
                )
            self._write(f"{sample}/{name}", np.asarray(value))

    def close(self) -> None:
        """Ends the file."""
        about = {"schema": f"fp8graph.{_KIND}/{_VERSION}", "outputs": self._outputs}
        self._write(_ABOUT, np.asarray(json.dumps(about)))
        self._archive.close()

    def _write(self, name: str, array: np.ndarray[Any, Any]) -> None:
        if array.dtype == ml_dtypes.bfloat16:  # a type that files do not know: exact in float32, and called so
            name, array = name + _BF16, array.astype(np.float32)
        if array.dtype.kind == "O":
            array = array.astype(str)
        # A fixed time: the same outputs give the same bytes.
        with self._archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)


class Saved:
    """A runner that gives what was saved for the same inputs."""

    def __init__(self, arrays: Mapping[str, np.ndarray[Any, Any]], where: str) -> None:
        """`arrays` are what the file holds, by name. Raises InputError FG111 where they are no saved outputs."""
        self._where = where
        try:
            document = json.loads(str(arrays.get(_ABOUT, "null")))
        except ValueError:
            document = None
        said = check_schema(document, _KIND, _VERSION, where).get("outputs")
        if not isinstance(said, list):
            raise malformed(_KIND, where, TypeError("it names no outputs"))
        self._outputs = [str(name) for name in said]
        self._samples: dict[str, Outputs] = {}
        for key, array in arrays.items():
            sample, slash, name = key.partition("/")
            if name.endswith(_BF16):
                name, array = name.removesuffix(_BF16), array.astype(ml_dtypes.bfloat16)
            if slash:
                self._samples.setdefault(sample, {})[name] = array

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""
        return self._outputs

    def run(self, feeds: Feeds) -> Outputs:
        """What was saved. Raises InputError FG107 where it was not for these inputs."""
        found = self._samples.get(_digest(feeds))
        if found is None or set(found) != set(self._outputs):
            raise InputError(
                "the saved outputs are of other data",
                where=self._where,
                why=f"it holds {len(self._samples)} samples, and none with these inputs",
                do="give the --data that they were saved with, with the same --samples, --batch and --seed",
                code="FG107",
            )
        return found


def _digest(feed: Feeds) -> str:
    sha = hashlib.sha256()
    for name in sorted(feed):
        array = np.asarray(feed[name])
        array = array.astype(str) if array.dtype.kind == "O" else array
        sha.update(f"{name} {array.dtype} {array.shape} ".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]
