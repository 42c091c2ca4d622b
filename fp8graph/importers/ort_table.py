"""Calibration tables of ONNX Runtime: `calibration.json`, of both ages, and the text `calibration.cache`.

    {"conv1_out": [-1.5, 4.25]}                                                       before 1.17
    {"CLS": "TensorsData", "data": {"conv1_out": {"lowest": ..., "highest": ...}}}    since
    conv1_out 4.25                                                                    text, one tensor a line

The text holds the highest value alone, also where the lowest is larger in magnitude: the JSON is to be preferred.
Source: onnxruntime 1.31.1 and 1.32.0, quantization/quant_utils.py, write_calibration_table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fp8graph.base.errors import InputError
from fp8graph.base.files import read_text


def read(path: Path) -> dict[str, float]:
    """The largest magnitude of each tensor. Raises InputError FG111 (no text) and FG115 (no such table)."""
    if path.suffix == ".flatbuffers":
        raise _refused(path, "it is a flatbuffer", "give the calibration.json that was written beside it")
    text = read_text(path, "the calibration table")
    try:
        table = json.loads(text) if text.lstrip().startswith("{") else dict(map(_line, text.splitlines()))
        if isinstance(table.get("data"), dict) and "CLS" in table:
            table = table["data"]
        return {name: _amax(said) for name, said in table.items() if name != "CLS"}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        why = f"{type(error).__name__}: {str(error)[:120]}"
        raise _refused(path, why, "give the calibration.json that ONNX Runtime wrote") from error


def _line(line: str) -> tuple[str, float]:
    name, space, number = line.rpartition(" ")
    if not space:
        raise ValueError(f"{line[:60]!r} is no 'tensor highest'")
    return name, float(number)


def _amax(said: Any) -> float:
    """The largest magnitude in whatever form a range has."""
    if isinstance(said, dict):
        ends = [said["data"]] if "data" in said else [said["lowest"], said["highest"]]
        return max(map(_amax, ends))
    if isinstance(said, list):
        # with a histogram behind them: lowest, highest, counts, bins
        return max(map(_amax, said[:2])) if len(said) > 1 else _amax(said[0]) if said else 0.0
    if isinstance(said, bool) or not isinstance(said, (int, float)):
        raise TypeError(f"{said!r:.40} is no number")
    return abs(float(said))


def _refused(path: Path, why: str, do: str) -> InputError:
    return InputError("the calibration table cannot be read", where=str(path), why=why, do=do, code="FG115")
