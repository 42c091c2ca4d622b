"""What a checkpoint's config names stays in high precision."""

from __future__ import annotations

import onnx

from fp8graph_passes.keep_named import KeepNamed
from tests.passes.doing import opinions
from tests.small import TWO, model


def test_a_product_that_import_has_marked_is_kept_with_what_it_wrote():
    proto = model(TWO)
    proto.graph.node[2].metadata_props.append(
        onnx.StringStringEntryProto(key="fp8graph.high", value="the checkpoint's ignore names lm_head")
    )
    assert opinions(KeepNamed(), proto) == {"y": ("keep", "FG237")}
    assert opinions(KeepNamed(), model(TWO)) == {}
