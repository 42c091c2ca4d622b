"""Factors between convolutions: asked for by its own name, it leaves other products alone."""

from __future__ import annotations

from tests.passes.test_migrate_channels import MOVED, adjusts, noise, optimized, spread


def test_each_of_the_two_is_for_its_own_readers():
    conv, linear = spread(*MOVED["Conv to a depthwise Conv"]), spread(*MOVED["Gemm, Relu"])
    for name, mine, other in (("equalize-channels", conv, linear), ("migrate-channels", linear, conv)):
        assert {item.rule for item in adjusts(optimized(mine, passes=name).plan)} == {name}
        assert not adjusts(optimized(other, passes=name).plan)


def test_a_depthwise_reader_takes_all_of_the_spread():
    proto = spread(*MOVED["Conv to a depthwise Conv"])
    plain, better = optimized(proto), optimized(proto, passes="equalize-channels")
    assert noise(proto, better) < noise(proto, plain) - 3
    (item,) = adjusts(better.plan)
    array = better.plan.arrays[item.value.name]
    assert max(array) / min(array) >= 2**10  # of the 14 octaves that lie between channels
