"""The third witness: the engine as its own maker reads it, where a GPU is that can load it.

python -m fp8graph.engines.inspector BUILDER ENGINE     the child: prints one JSON document

EngineInspector writes the same lines as the listing at the end of a build, and `listing` reads both. It was tried
against a stand-in only: no machine with a GPU was to be had.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fp8graph.engines import child, listing
from fp8graph.engines.probe import MODULES, devices
from fp8graph.engines.witness import EngineOp

_TIMEOUT_S = 600.0


def inspect(engine: Path, builder: str, timeout_s: float = _TIMEOUT_S) -> tuple[list[EngineOp] | None, str]:
    """The ops that the maker's inspector lists, or None and why it lists none.

    `builder` is `tensorrt-rtx` or `tensorrt`. Where the machine has no GPU, nobody expects this witness: the reason
    is empty, and no child is started. Never raises: a library that crashes or does not answer is a silent witness.
    """
    if builder not in MODULES or hasattr(importlib.import_module(MODULES[builder]), "read") or not devices():
        return None, ""
    done = child.ask([*child.python("fp8graph.engines.inspector"), builder, str(engine.absolute())], timeout_s)
    if done.returncode is None:
        return None, f"the inspector took more than {timeout_s:g} s"
    try:
        answer = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        answer = None
    if done.returncode or not isinstance(answer, dict):
        return None, f"the inspector {child.ended(done.returncode)}"
    if answer.get("why"):
        return None, str(answer["why"])
    try:
        return listing.parse(str(answer.get("layers", ""))), ""
    except listing.FormError as error:
        return None, f"what the inspector lists cannot be read: {error}"


def layers(trt: Any, engine: bytes) -> dict[str, str]:
    """`layers`, the inspector's text for all layers and profiles, or `why` there is none."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        return {"why": f"{trt.__name__} {trt.__version__} does not load this engine on this GPU"}
    inspector = loaded.create_engine_inspector()
    text = str(inspector.get_engine_information(trt.LayerInformationFormat.ONELINE))
    # The layers come under a heading in a log, and may come without it here.
    text = text if text.startswith("Layers:") else "Layers:\n" + text
    return {"layers": text}


def _answer(builder: str, engine: Path) -> dict[str, str]:
    try:
        trt = importlib.import_module(MODULES[builder]).load()
    except Exception as error:  # a package that is half there raises whatever it likes
        return {"why": f"{builder} is not usable here: {type(error).__name__}: {error}".partition("\n")[0]}
    return layers(trt, engine.read_bytes())


def main(argv: Sequence[str]) -> int:
    """Entry of the child process."""
    sys.stdout.write("\n" + json.dumps(_answer(argv[0], Path(argv[1]))) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
