"""The break-even point of two methods: one with a high fixed cost, one with a high cost per example."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Cost of a method in seconds: `fixed` once, whatever it scores, and `per_example` for each scored example."""

    fixed: float
    per_example: float


def crossover(ours: Cost, theirs: Cost) -> float:
    """Return the number of scored examples from which on `ours` is cheaper than `theirs`.

    fixed + examples * per_example are two straight lines, which meet at
    (ours.fixed - theirs.fixed) / (theirs.per_example - ours.per_example).

    Returns
    -------
    0 if `ours` is cheaper from the first example on, infinity if it never is.
    """
    dearer_at_first = ours.fixed - theirs.fixed
    saved = theirs.per_example - ours.per_example
    if dearer_at_first <= 0:
        return 0.0 if saved >= 0 else math.inf
    return dearer_at_first / saved if saved > 0 else math.inf
