"""torch's Div, Clip, Cast, Cast, Mul become Q/DQ, bit for bit; what is not the same stays and says why."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fp8graph.runners.load import runner  # noqa: F401
from fp8graph_passes.standardize_fp8_casts import StandardizeFp8Casts
from tests.passes.doing import run
from tests.small import model
