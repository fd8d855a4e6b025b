"""The LDS on the folds of the targets that are held back from the encoder, where a study makes its choices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workflow_scripts.evaluation.lds import UndefinedLdsError, linear_datamodeling_score
from workflow_scripts.study.choices import SMALLEST_NUMBER_OF_SUBSETS
from workflow_scripts.targets.tables import FoldTargets


def held_back_lds(groups: Sequence[np.ndarray], folds: Sequence[FoldTargets]) -> float:
    """Return the mean LDS over the folds where it is defined; 0 where it is on none.

    Parameters
    ----------
    groups: for each fold, group scores, float [subsets, tests].
    folds: the measured labels; subsets whose runs all diverged don't count, nor do folds with too few others.
    """
    found = []
    for scores, fold in zip(groups, folds, strict=True):
        finished = np.isfinite(fold.labels).all(axis=1)
        if finished.sum() < SMALLEST_NUMBER_OF_SUBSETS:
            continue
        try:
            # A label is higher where the loss is lower.
            found.append(linear_datamodeling_score(scores[finished].T, -fold.labels[finished].T))
        except UndefinedLdsError:
            continue
    return float(np.mean(found)) if found else 0.0
