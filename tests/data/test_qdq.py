"""How targets read Q/DQ of others: every packaged table can be read, and a damaged one is told."""

from __future__ import annotations

import pytest

from fp8graph.data import target as targets
from fp8graph.data.qdq import Qdq

TABLE = {
    "imports": ["e4m3fn"],
    "carries": ["DequantizeLinear"],
    "casts": ["fp32>fp16"],
    "pads": ["Conv"],
    "scalars": ["Conv"],
    "fp4": [],
    "microsoft": [],
    "refused": [{"domain": "", "ops": ["Det"], "text": "no", "source": "a parser"}],
}


@pytest.mark.parametrize("name", targets.names())
def test_every_target_with_a_builder_of_its_own_says_how_it_reads_them(name):
    table = targets.load(name).qdq
    assert table.engine == name.startswith("tensorrt")
    if table.engine:
        assert table.imports and "e4m3fn" in table.imports and "DequantizeLinear" in (table.carries or ())
        assert all(row.ops and row.source and row.text for row in table.refused)


def test_without_a_table_nothing_is_refused():
    assert Qdq.from_table(None) == Qdq() and Qdq().imports is None and not Qdq().refused


def test_a_table_is_read_as_it_stands():
    table = Qdq.from_table(TABLE)
    assert (table.casts, table.refused[0].ops) == ((("fp32", "fp16"),), ("Det",))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"casts": ["fp32"]}, ValueError),
        ({"refused": [{"domain": "", "ops": [], "text": "", "source": ""}]}, ValueError),
        ({"imports": None}, TypeError),
    ],
)
def test_a_damaged_table_is_told(change, error):
    with pytest.raises(error):
        Qdq.from_table(TABLE | change)
