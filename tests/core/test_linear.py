"""Planning and normalizing take time in proportion to the number of ops."""

from __future__ import annotations

import gc
import time

import onnx

import fp8graph
from fp8graph.numerics.ranges import Ranges, Stat


def chain(ops: int) -> onnx.ModelProto:
    """Products, Relus and Adds in turn, with one weight for all: `ops` ops."""
    kinds = ("MatMul", "Relu", "Add")
    nodes, value = [], "x"
    for index in range(ops):
        kind = kinds[index % 3]
        inputs = [value] if kind == "Relu" else [value, "w" if kind == "MatMul" else "b"]
        value = f"v{index}"
        nodes.append(onnx.helper.make_node(kind, inputs, [value], name=f"node{index}"))
    info = [onnx.helper.make_tensor_value_info(name, 1, [1, 16]) for name in ("x", value)]
    weights = [
        onnx.helper.make_tensor(name, 1, dims, [0.01] * (16 * dims[0]))
        for name, dims in (("w", [16, 16]), ("b", [1, 16]))
    ]
    graph = onnx.helper.make_graph(nodes, "chain", info[:1], info[1:], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def planning(ops: int) -> float:
    """Processor seconds to load, normalize and plan: other programs on the machine do not count."""
    proto = chain(ops)
    gc.collect()
    begin = time.process_time()
    done = fp8graph.optimize(proto, plan_only=True)
    took = time.process_time() - begin
    assert len(done.plan.ops) == ops
    return took


def test_ten_thousand_ops_are_planned_in_seconds_and_in_linear_time():
    planning(300)  # imports
    small = planning(2500)
    large = planning(10_000)  # 5.2 s of one shared x86-64 core, Python 3.11, 2026-11
    assert large < 30, large
    assert large < 8 * small, (small, large)


def test_carrying_out_a_plan_is_linear_too():
    took = {}
    for ops in (600, 2400):
        values = {name: Stat(16, 0, -1.0, 1.0) for name in ("x", *(f"v{index}" for index in range(ops)))}
        ranges = Ranges("", "made up", 1, {}, values)
        gc.collect()
        begin = time.process_time()
        assert fp8graph.optimize(chain(ops), ranges=ranges).planned == ops // 3
        took[ops] = time.process_time() - begin
    assert took[2400] < 8 * took[600], took
