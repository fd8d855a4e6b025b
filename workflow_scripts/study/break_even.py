"""When a method that costs much once and little per example overtakes one that costs little once and much after."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Seconds that a method takes once, whatever it scores, and for each scored example."""

    fixed: float
    per_example: float


def crossover(ours: Cost, theirs: Cost) -> float:
    """Return the number of scored examples from which on `ours` is cheaper.

    0 where it is from the first example on, infinity where it never becomes so: examples * per_example + fixed are two
    straight lines, which meet at (our fixed - their fixed) / (their per_example - our per_example).
    """
    dearer_at_first = ours.fixed - theirs.fixed
    saved = theirs.per_example - ours.per_example
    if dearer_at_first <= 0:
        return 0.0 if saved >= 0 else math.inf
    return dearer_at_first / saved if saved > 0 else math.inf
