"""Keep the head of the network: the product that an output comes from.

What it does   Keeps a Conv, Gemm or MatMul whose result is an output of the model, `steps` ops further down at most.
Why            The head is small, and its error goes to the answer without any layer behind it that could absorb it.
Codes          ACME001 kept: the head
Exactness      plan only, no arithmetic changes
"""

from __future__ import annotations

from dataclasses import dataclass

from fp8graph import Context, Opinion, OpView, PlanRule


@dataclass(frozen=True)
class KeepHead(PlanRule):
    """The last product stays in high precision. `steps`: how many ops may follow it, such as a bias or Softmax."""

    steps: int = 1

    def decide(self, op: OpView, ctx: Context) -> Opinion | None:
        """Walks down to the output; no opinion on any other op."""
        if op.type not in ("Conv", "Gemm", "MatMul"):
            return None
        node = op.node
        for step in range(self.steps + 1):
            if node.outputs[0].is_graph_output():
                below = f", {step} ops further down" if step else ""
                return Opinion("keep", "ACME001", f"the head: it makes the output '{node.outputs[0].name}'{below}")
            consumers = node.outputs[0].consumers()
            if len(consumers) != 1:
                return None
            node = consumers[0]
        return None
