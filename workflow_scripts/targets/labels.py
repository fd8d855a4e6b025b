"""Labels r(x, S) computed from losses (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def standardised_labels(losses: np.ndarray) -> np.ndarray:
    """Return r(x, S) = -(l - mean) / spread, with mean and spread over the subsets (paper, section 3.1).

    Losses are averaged over seeds. The spread is the standard deviation; the paper's text says variance, which would
    not make labels independent of the losses' scale.

    Parameters
    ----------
    losses: float [subsets, seeds, examples]; NaN for a diverged run.

    Returns
    -------
    float64 [subsets, examples]; 0 for an example whose loss does not vary, NaN for a subset whose runs all diverged.
    """
    mean_losses = _mean_over_seeds(losses)
    centred = mean_losses - np.nanmean(mean_losses, axis=0)
    spread = np.sqrt(np.nanmean(centred**2, axis=0))
    return -centred / np.where(spread > 0, spread, 1.0)


def pooled_labels(losses: Sequence[np.ndarray], example_ids: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the labels of each fold as the authors' released code computes them.

    As in `standardised_labels`, but mean and spread of an example's losses are over the subsets of all folds in which
    it is a validation example.

    Parameters
    ----------
    losses: for each fold, float [subsets, seeds, examples]; NaN for a diverged run.
    example_ids: for each fold, int [examples], the ids of its validation examples.

    Returns
    -------
    For each fold, float64 [subsets, examples].
    """
    means = [_mean_over_seeds(fold) for fold in losses]
    ids, place = np.unique(np.concatenate(example_ids), return_inverse=True)
    places = np.split(place, np.cumsum([len(fold) for fold in example_ids])[:-1])

    def by_example(values: Sequence[np.ndarray]) -> np.ndarray:
        total = np.zeros(len(ids))
        for fold, where in zip(values, places, strict=True):
            np.add.at(total, where, np.nansum(fold, axis=0))
        return total

    counts = by_example([np.isfinite(fold).astype(float) for fold in means])
    mean = by_example(means) / np.maximum(counts, 1)
    centred = [fold - mean[where] for fold, where in zip(means, places, strict=True)]
    spread = np.sqrt(by_example([fold**2 for fold in centred]) / np.maximum(counts, 1))
    spread = np.where(spread > 0, spread, 1.0)
    return [-fold / spread[where] for fold, where in zip(centred, places, strict=True)]


def _mean_over_seeds(losses: np.ndarray) -> np.ndarray:
    """Return the mean over the seeds that did not diverge, float64 [subsets, examples]; NaN where all did."""
    finished = np.isfinite(losses)
    counts = finished.sum(1)
    means = np.full(counts.shape, np.nan)
    np.divide(np.where(finished, losses, 0.0).sum(1, dtype=np.float64), counts, out=means, where=counts > 0)
    return means
