"""Which group of training rows helps which group of tests: what methods predict, and what fine-tuning measured.

A group is all rows of one label. What is measured comes from the evaluation's own subsets, which are drawn at random
from the whole corpus, so that some happen to have more rows of a group than others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflow_scripts.core.statistics import spearman_by_column
from workflow_scripts.evaluation.lds import noise_ceiling

FEWEST_CELLS = 3
SPLITS = 20


@dataclass(frozen=True)
class LabelGroups:
    """Rows by their label, the largest groups first.

    Parameters
    ----------
    labels: the label of each group; None for the rows without one.
    codes: int16 [rows], the group of each row; `len(labels)` for rows of other labels, -1 for rows that don't count.
    left_out: number of labels that aren't a group, because others have more rows.
    """

    labels: list[str | None]
    codes: np.ndarray
    left_out: int

    @classmethod
    def of(cls, labels: pa.StringArray, most: int, counted: np.ndarray | None = None) -> LabelGroups:
        """Return the groups of the `most` most frequent labels; of equally frequent ones the first by name.

        Parameters
        ----------
        labels: the label of each row.
        most: number of groups at most.
        counted: bool [rows], the rows that count; None for all. A label that none of them has is no group.
        """
        if counted is not None:
            groups = cls.of(labels.filter(pa.array(counted)), most)
            codes = np.full(len(labels), -1, np.int16)
            codes[counted] = groups.codes
            return replace(groups, codes=codes)
        encoded = pc.dictionary_encode(labels, null_encoding="encode")
        names, indices = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        counts = np.bincount(indices, minlength=len(names))
        ranked = sorted(range(len(names)), key=lambda one: (-counts[one], names[one] is None, names[one] or ""))
        place = np.empty(len(names), np.int16)
        place[ranked] = np.minimum(np.arange(len(names)), most)
        return cls([names[one] for one in ranked[:most]], place[indices], max(len(names) - most, 0))

    @property
    def counts(self) -> np.ndarray:
        """Number of rows of each group, int64 [groups]."""
        return self.count(self.codes)

    def count(self, codes: np.ndarray) -> np.ndarray:
        """Return how many of the rows with these `codes` are in each group, int64 [groups]."""
        return np.bincount(codes[codes >= 0], minlength=len(self.labels) + 1)[: len(self.labels)]

    @property
    def shares(self) -> np.ndarray:
        """Share of each group among the rows that count, float64 [groups]."""
        return self.counts / max(np.count_nonzero(self.codes >= 0), 1)


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of the tests, each within its group, and of the subsets.

    Parameters
    ----------
    tests: for each test group, float64 [draws, tests of the group], how often each is drawn, divided by their number.
    subsets: float64 [draws, subsets], how often each is drawn; None where there are none.
    """

    tests: list[np.ndarray]
    subsets: np.ndarray | None

    @classmethod
    def draw(cls, tests: LabelGroups, subsets: int, draws: int, rng: np.random.Generator) -> Resamples:
        """Draw resamples with replacement: of each test group as many tests as it has, and as many subsets."""
        counted = [rng.multinomial(n, np.full(n, 1 / n), size=draws) / n for n in tests.counts]
        drawn = rng.multinomial(subsets, np.full(subsets, 1 / subsets), size=draws) if subsets else None
        return cls(counted, None if drawn is None else drawn.astype(float))


def cells(values: np.ndarray, tests: LabelGroups) -> np.ndarray:
    """Return the means over the tests of each group, float64 [training groups, test groups].

    Parameters
    ----------
    values: float [training groups, tests], a value for each test.
    tests: the groups of the tests.
    """
    return np.stack([values[:, tests.codes == group].mean(axis=1) for group in range(len(tests.labels))], axis=1)


def bootstrap_cells(values: np.ndarray, tests: LabelGroups, resamples: Resamples) -> np.ndarray:
    """Return `cells` in each resample of the tests, float64 [draws, training groups, test groups]."""
    drawn = [
        weights @ values[:, tests.codes == group].T  # [draws, training groups]
        for group, weights in enumerate(resamples.tests)
    ]
    return np.stack(drawn, axis=2)


def top_shares(test_ids: np.ndarray, listed_tests: np.ndarray, listed: np.ndarray, groups: int) -> np.ndarray:
    """Return each group's share of each test's list of most helpful rows, float64 [groups, tests]; 0 of an empty list.

    Parameters
    ----------
    test_ids: int [tests], ascending.
    listed_tests: int [entries], the test of each entry of the lists.
    listed: int [entries], the group of the row that is listed.
    groups: number of groups, without that of all other rows.
    """
    counts = np.zeros((groups + 1, len(test_ids)))
    np.add.at(counts, (listed, np.searchsorted(test_ids, listed_tests)), 1)
    return counts[:groups] / np.maximum(counts.sum(axis=0), 1)


def shares_of_subsets(subsets: Sequence[np.ndarray], groups: LabelGroups) -> np.ndarray:
    """Return which share of each subset's rows each group has, float64 [subsets, groups].

    Parameters
    ----------
    subsets: for each subset, int [size], the ids of its rows.
    groups: the groups of the training rows.
    """
    return np.stack([groups.count(groups.codes[ids]) / len(ids) for ids in subsets])


def measured_effects(shares: np.ndarray, losses: np.ndarray, tests: LabelGroups) -> np.ndarray:
    """Return how much lower the tests' loss is, in nats per response token, the more of a group a subset has.

    That is the slope of minus the mean loss of the test group on the training group's share of a subset, by least
    squares: the difference that a share of 1 instead of 0 would make, all other rows in their usual proportions.

    Parameters
    ----------
    shares: float64 [subsets, training groups], see `shares_of_subsets`.
    losses: float64 [tests, subsets].
    tests: the groups of the tests.

    Returns
    -------
    float64 [training groups, test groups]; NaN where no subset has another share than the others.
    """
    weights = np.ones((1, len(shares)))
    means = [losses[tests.codes == group].mean(axis=0)[None] for group in range(len(tests.labels))]
    return np.stack([_slopes(shares, -mean, weights)[0] for mean in means], axis=1)


def bootstrap_effects(shares: np.ndarray, losses: np.ndarray, tests: LabelGroups, resamples: Resamples) -> np.ndarray:
    """Return `measured_effects` in each resample, float64 [draws, training groups, test groups]."""
    assert resamples.subsets is not None
    drawn = [
        _slopes(shares, -(weights @ losses[tests.codes == group]), resamples.subsets)
        for group, weights in enumerate(resamples.tests)
    ]
    return np.stack(drawn, axis=2)


def _slopes(shares: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the slope of `values` [draws, subsets] on each share under `weights` [draws, subsets]: [draws, groups]."""
    weights = weights / weights.sum(axis=1, keepdims=True)
    # Of shares less their mean, so that equal ones have a spread of zero and not of a rounding error.
    centred = shares - shares.mean(axis=0)
    mean_share = weights @ centred
    spread = weights @ centred**2 - mean_share**2
    mean_value = (weights * values).sum(axis=1, keepdims=True)
    covariance = (weights * (values - mean_value)) @ centred
    varies = spread > 1e-12
    return np.divide(covariance, spread, out=np.full(spread.shape, np.nan), where=varies)


def agreement(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of two matrices over their cells, float64 [draws].

    Parameters
    ----------
    predicted: float64 [draws, training groups, test groups].
    measured: float64 [draws, training groups, test groups]. Cells that are NaN in any draw count in none.

    Returns
    -------
    NaN where fewer than three cells count, or those of a matrix are all equal.
    """
    left, right = (matrix.reshape(len(matrix), -1).T for matrix in (predicted, measured))
    known = np.isfinite(left).all(axis=1) & np.isfinite(right).all(axis=1)
    if known.sum() < FEWEST_CELLS:
        return np.full(len(predicted), np.nan)
    return spearman_by_column(left[known], right[known])


def agreement_ceiling(shares: np.ndarray, losses: np.ndarray, tests: LabelGroups, rng: np.random.Generator) -> float:
    """Return the highest agreement that any prediction can be expected to reach with the measured matrix.

    Half of the subsets measure the matrix, and the other half measures it again: the root of the reliability that
    follows for all subsets, by Spearman and Brown (`lds.noise_ceiling`). Mean over random halves; NaN for fewer than
    six subsets, whose halves have no slopes to speak of.

    Parameters
    ----------
    shares: see `measured_effects`, as the next two.
    losses: float64 [tests, subsets].
    tests: the groups of the tests.
    rng: source of randomness.
    """
    if len(shares) < 6:
        return float("nan")
    found = []
    for _ in range(SPLITS):
        order = rng.permutation(len(shares))
        halves = (order[: len(order) // 2], order[len(order) // 2 :])
        one, other = (measured_effects(shares[half], losses[:, half], tests)[None] for half in halves)
        found.append(agreement(one, other)[0])
    known = np.array(found)[np.isfinite(found)]
    return noise_ceiling(float(known.mean()), 2) if len(known) else float("nan")
