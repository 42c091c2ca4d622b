"""What a witness makes of the ops it has: one word for each node."""

import pytest

from fp8graph.engines.witness import EngineOp, NodeName, Witness


def op(said: str, names: str, operands: str = "", stored: str = "", profile: int = 0) -> EngineOp:
    return EngineOp(
        profile, said, tuple(n for n in names.split(",") if n), tuple(operands.split()), tuple(stored.split())
    )


def word(node: NodeName, *ops: EngineOp, others: tuple[NodeName, ...] = (), profiles: int = 0) -> str:
    return Witness(ops, [node, *others], profiles).says(node).word


MM = NodeName("mm", "mm")


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        ([op("gemm", "mm", "fp8 fp8")], "fp8"),
        ([op("corrltn", "mm", "fp8 fp8 fp32 fp32")], "fp8"),
        ([op("gemm", "mm", "int8 int8")], "int8"),
        ([op("gemm", "mm", "fp4 fp8 fp4 fp8")], "fp4"),
        ([op("gemm", "mm", "fp16 fp16")], "high"),
        ([op("gemm", "mm", "fp8 fp16")], "high"),
        ([op("gemm", "mm", "fp16 fp16", "fp8")], "storage"),
        ([op("runtime_fusion", "mm", "fp8 fp8", "")], "high"),
        ([op("runtime_fusion", "mm", "fp8 fp8", "fp8")], "storage"),
        ([op("_gemm_mha_v2", "mm", "fp8 fp8 fp8")], "fp8"),
        ([op("_gemm_mha_v2", "mm", "fp8 fp8 fp8 fp16")], "fp8"),
        ([op("_gemm_mha_v2", "mm", "fp16 fp8 fp8")], "high"),
        ([op("_gemv_mha_v1", "mm", "fp8 fp8 fp8")], "high"),
        ([op("kgen", "mm", "fp16 fp16")], "generated"),
        ([op("kgen", "mm", "fp16", "fp8")], "storage"),
        ([], "missing"),
        ([op("gemm", "mm2", "fp8 fp8")], "missing"),
        # an epilogue kernel and a fusion that took the node's epilogue in do not count beside the product
        ([op("gemm", "mm", "fp8 fp8"), op("kgen", "mm", "fp16")], "fp8"),
        ([op("gemm", "mm", "fp8 fp8"), op("runtime_fusion", "next,mm", "fp16 fp16")], "fp8"),
        # nor does an attention that applies the product's scale per channel to what it reads
        ([op("gemm", "mm", "fp8 fp8"), op("_gemv_mha_v1", "scores,mm", "fp16 fp16 fp16")], "fp8"),
        # the worst of several
        ([op("gemm", "mm", "fp8 fp8"), op("gemm", "mm", "fp16 fp16")], "high"),
        ([op("gemm", "mm", "fp8 fp8"), op("gemm", "mm", "fp16 fp16", profile=1)], "high"),
        ([op("gemm", "mm", "fp8 fp8"), op("gemm", "other", "fp8 fp8", profile=1)], "missing"),
    ],
)
def test_the_word_on_a_node(ops: list[EngineOp], expected: str):
    assert word(MM, *ops) == expected


def test_a_product_of_several_nodes_counts_for_each():
    gate = NodeName("gate", "gate")
    both = op("gemm", "mm,gate", "fp8 fp8")
    assert word(MM, both, others=(gate,)) == word(gate, both, others=(MM,)) == "fp8"


def test_a_profile_that_is_known_of_has_to_be_there():
    assert word(MM, op("gemm", "mm", "fp8 fp8"), profiles=2) == "missing"


def test_nodes_of_one_name_are_told_apart_by_where_they_lie():
    then, other = NodeName("mm", "mm | t (then_branch) | if (If)"), NodeName("mm", "mm | e (else_branch) | if (If)")
    ops = [op("gemm", then.full, "fp8 fp8"), op("gemm", other.full, "fp16 fp16")]
    assert (word(then, *ops, others=(other,)), word(other, *ops, others=(then,))) == ("fp8", "high")


def test_nodes_that_cannot_be_told_apart_are_each_there_only_if_all_are():
    one, two = NodeName("mm", "mm"), NodeName("mm", "mm", True)
    fp8 = op("gemm", "mm", "fp8 fp8")
    assert word(one, fp8, others=(two,)) == "unclear"
    assert word(one, fp8, fp8, others=(two,)) == "fp8"
    assert word(one, fp8, op("gemm", "mm", "fp16 fp16"), others=(two,)) == "high"


def test_a_name_inside_a_call_is_known_by_its_beginning():
    inner = NodeName("mm", "")
    assert word(inner, op("gemm", "mm | call (Block)", "fp8 fp8"), op("gemm", "mm | again (Block)", "fp8 fp8")) == "fp8"
    assert (
        word(inner, op("gemm", "mm | call (Block)", "fp8 fp8"), op("gemm", "mm | again (Block)", "fp16 fp16")) == "high"
    )


def test_a_name_with_a_bar_in_it_is_the_longer_one():
    short, long = NodeName("mm", "mm"), NodeName("mm | x", "mm | x")
    ops = [op("gemm", "mm | x", "fp16 fp16"), op("gemm", "mm", "fp8 fp8")]
    assert (word(short, *ops, others=(long,)), word(long, *ops, others=(short,))) == ("fp8", "high")


def test_unrolled_layers_without_a_name_speak_for_nodes_of_loops():
    looped, unrolled = NodeName("mm", "mm", True), op("gemm", "", "fp16 fp16")
    assert word(looped, op("gemm", "mm", "fp8 fp8"), unrolled) == "high"
    assert word(looped, op("gemm", "mm", "fp8 fp8"), op("gemm", "", "fp8 fp8")) == "fp8"
    assert word(MM, op("gemm", "mm", "fp8 fp8"), unrolled) == "fp8"


def test_profiles_that_differ_are_listed():
    said = Witness([op("gemm", "mm", "fp8 fp8"), op("gemm", "mm", "fp16 fp16", profile=1)], [MM]).says(MM)
    assert said.text == "profile 0: fp8 x fp8; profile 1: fp16 x fp16"
