"""The contract suite for passes and rules, built-in or your own: `check_pass(MyPass)` raises where a promise is broken.

    from fp8graph.testing import check_pass
    assert sum(check_pass(FoldReluScale).values())     # it holds, and it did something

Of a RewritePass it asks, on every model of a corpus and at the place where the default pipeline would run it:

1. interface      inputs and outputs keep names, types and shapes
2. count          0 changes exactly where the model stays the same, byte for byte but for metadata
3. determinism    two runs give the same bytes
4. idempotence    a second run changes nothing; a QUANTIZE pass runs once by nature and is not asked
5. validity       onnx.checker passes, with types; they are complete only from LEGALIZE on
6. plan           every quantized op of the plan is still there
7. exactness      what `exact` declares, against ONNX Runtime computing each op alone (`difference` says how close)

Of a PlanRule: the model stays as it is, the answer is the same twice, and its code is one that there is.
Of a Repair: the same, and each array is the one that its reference names, for the weight whose digest it holds.
What it wants to know of data is found from the feeds; of what it offers, every second is granted.

What it does not see: models unlike those of the corpus. Give your own as `models`, too, where the pass is about them.
"""

from __future__ import annotations

from fp8graph.testing.check import check_pass
from fp8graph.testing.errors import (
    ContractError,
    CountError,
    CrashError,
    DeterminismError,
    ExactnessError,
    IdempotenceError,
    InterfaceError,
    PlanError,
    PurityError,
    ValidityError,
)
from fp8graph.testing.exact import difference, outputs
from fp8graph.testing.models import corpus, from_text, random_feeds
from fp8graph.testing.prepare import Prepared, planned

__all__ = [
    "ContractError",
    "CountError",
    "CrashError",
    "DeterminismError",
    "ExactnessError",
    "IdempotenceError",
    "InterfaceError",
    "PlanError",
    "Prepared",
    "PurityError",
    "ValidityError",
    "check_pass",
    "corpus",
    "difference",
    "from_text",
    "outputs",
    "planned",
    "random_feeds",
]
