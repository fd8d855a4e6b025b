"""Who is in which fold, validation set and subset (paper, section 3.1): functions of seeds alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workflow_scripts.lib.errors import StudyError
from workflow_scripts.lib.seeds import generator


@dataclass(frozen=True)
class Fold:
    """One cross-validation instance: disjoint arrays of example ids, int32."""

    pool: np.ndarray
    validation: np.ndarray


def draw_fold(
    seed: int, fold: int, example_ids: np.ndarray, pool_examples: int, validation_examples: int
) -> Fold:
    """Draw the training pool and the validation set of `fold` from `example_ids`, without overlap.

    Raises
    ------
    StudyError: the corpus is smaller than pool and validation set together.
    """
    needed = pool_examples + validation_examples
    if needed > len(example_ids):
        raise StudyError(
            f"a fold needs {pool_examples:,} pool + {validation_examples:,} validation examples, but the "
            f"corpus has only {len(example_ids):,} usable ones. Lower targets.pool_examples or "
            "targets.validation_examples, or take a larger part of the corpus."
        )
    order = generator(seed, "fold", fold).permutation(len(example_ids))[:needed]
    chosen = example_ids[order].astype(np.int32)
    return Fold(pool=chosen[validation_examples:], validation=chosen[:validation_examples])


def draw_subset(seed: int, fold: int, index: int, pool: np.ndarray, size: int) -> np.ndarray:
    """Draw subset number `index` of `fold`: `size` distinct ids of `pool`, int32, in random order."""
    if size > len(pool):
        raise StudyError(
            f"a subset of {size:,} examples can't be drawn from a pool of {len(pool):,}. "
            "Lower subset_examples or raise pool_examples."
        )
    chosen = generator(seed, "subset", fold, index).choice(len(pool), size=size, replace=False)
    return pool[chosen].astype(np.int32)
