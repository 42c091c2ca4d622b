"""Paths, the sample models, and tests that need the folder `../shared` skipped where it is absent."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def pytest_configure() -> None:
    """A shell that starts the tests in the background has them ignore SIGINT, and so would commands that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `shared` where that folder is not there."""
    if SHARED.is_dir():
        return
    skip = pytest.mark.skip(reason="needs the folder ../shared, which is not there")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder of the sample models: `cnn.onnx`, `vit.onnx`, `calibration.npz`, `heldout.npz`."""
    return ROOT / "samples" / "digits"


@pytest.fixture(scope="session")
def calibration(digits: Path) -> Path:
    """Training images for both sample models."""
    return digits / "calibration.npz"


@pytest.fixture(scope="session", params=["cnn", "vit"])
def sample(request: pytest.FixtureRequest, digits: Path) -> Path:
    """Each of the two sample models."""
    return digits / f"{request.param}.onnx"
