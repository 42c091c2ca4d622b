"""Rounding a weight for the sums that it makes, not for itself.

Frantar et al., GPTQ, 2022: columns are rounded one after the other, and what one loses is made good by those behind
it, as the second moments of the operand say. What the operand itself has lost on its way (it was rounded, and so were
all before it) can be made good by the weight, too: the weight that is rounded is the least-squares answer to "what
weight on the operand as it will be yields what the original weight yields on the original operand".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8graph.numerics.moments import Moments

Array = NDArray[Any]
Round = Callable[[NDArray[np.float32], slice], NDArray[np.float32]]
_BLOCK = 128


def answered(weight: Array, moments: Moments, group: int, ridge: float) -> NDArray[np.float64]:
    """The weight that answers for what the operand has lost: [channels, K] of one group.

        w + (G + r I)^-1 C w      G = sum a a', C = sum a (f - a)', r = `ridge` times the mean of G's diagonal

    It minimizes sum (w'f - v'a)^2 + r |v - w|^2 over v. Columns that the operand never fills stay.
    """
    gram, cross = moments.gram[group].astype(np.float64), moments.cross[group].astype(np.float64)
    mean = float(np.mean(np.diag(gram)))
    if mean <= 0:
        return weight.astype(np.float64)
    gram[np.diag_indices_from(gram)] += ridge * mean
    moved = np.linalg.solve(gram, cross @ weight.astype(np.float64).T).T
    return _settled(weight.astype(np.float64) + moved)


def compensated(weight: Array, gram: Array, rounded: Round, damp: float) -> NDArray[np.float32]:
    """The rounded weight [channels, K], columns of the largest moment first.

    gram     [K, K], whole numbers
    rounded  rounds columns: float32 [channels, n] and which columns (in the order of the weight) these are
    damp     share of the mean of the gram's diagonal that is added to it

    Raises numpy.linalg.LinAlgError where the gram cannot be taken apart.
    """
    held = gram.astype(np.float64)
    scale = float(np.mean(np.diag(held)))
    held[np.diag_indices_from(held)] += damp * scale if scale > 0 else 1.0
    order = np.argsort(-np.diag(held), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(held[np.ix_(order, order)])).T
    upper = _settled(upper / np.diag(upper)[:, None])
    # Columns lie in one piece each: they are what is worked on.
    work = np.ascontiguousarray(weight.T[order], np.float64)
    done = np.empty_like(work, np.float32)
    for start in range(0, len(work), _BLOCK):
        stop = min(start + _BLOCK, len(work))
        errors = np.empty((stop - start, work.shape[1]))
        for at in range(start, stop):
            column = order[at]
            done[at] = rounded(work[at].astype(np.float32)[:, None], slice(column, column + 1))[:, 0]
            errors[at - start] = error = work[at] - done[at]
            work[at + 1 : stop] -= upper[at, at + 1 : stop, None] * error
        work[stop:] = _settled(work[stop:] - upper[start:stop, stop:].T @ errors)
    back = np.empty(done.shape[::-1], np.float32)
    back[:, order] = done.T
    return back


def loss(weight: Array, rounded: Array, moments: Moments, group: int) -> float:
    """How far the sums of `rounded` lie from those of the original: sum (w'f - v'a)^2 less what no v changes."""
    gram, cross = moments.gram[group].astype(np.float64), moments.cross[group].astype(np.float64)
    gap = weight.astype(np.float64) - rounded
    return float(np.sum((gap @ gram) * gap) + 2 * np.sum(gap * (weight.astype(np.float64) @ cross.T)))


def _settled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the last bits, in which the number of threads of a linear algebra library shows."""
    return values.astype(np.float32).astype(np.float64)
