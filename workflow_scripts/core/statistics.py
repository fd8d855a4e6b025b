"""Spearman's rank correlation of many columns at once."""

from __future__ import annotations

import numpy as np
import pandas as pd


def spearman_by_column(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each column, float64 [tests]; NaN for a column that does not vary.

    Ties get their average rank.

    Parameters
    ----------
    left: float [subsets, tests].
    right: float [subsets, tests], as `left`.
    """
    left, right = (pd.DataFrame(values).rank().to_numpy() for values in (left, right))
    left, right = left - left.mean(axis=0), right - right.mean(axis=0)
    spread = np.sqrt((left**2).sum(axis=0) * (right**2).sum(axis=0))
    correlations = np.full(spread.shape, np.nan)
    np.divide((left * right).sum(axis=0), spread, out=correlations, where=spread > 0)
    return correlations
