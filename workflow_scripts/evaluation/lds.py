"""The linear datamodeling score (LDS), its bootstrap interval and its noise ceiling (paper, section 4.1).

A test's correlation is Spearman's, over subsets, between the group scores f(x, S) and minus the measured losses
l(x; S); the LDS is its mean over tests. A test whose losses are all equal is left out; a method whose scores of a test
are all equal gets correlation 0 there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.statistics import spearman_by_column
from workflow_scripts.study.choices import SMALLEST_NUMBER_OF_SUBSETS


class UndefinedLdsError(StudyError):
    """The measured losses of an evaluation set don't vary, so that no LDS is defined."""


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of tests and subsets, the same for every method of an evaluation.

    Parameters
    ----------
    test_counts: float32 [draws, tests], how often each test is drawn.
    subset_counts: float32 [draws, subsets], how often each subset is drawn.
    """

    test_counts: np.ndarray
    subset_counts: np.ndarray

    @classmethod
    def draw(cls, tests: int, subsets: int, draws: int, generator: np.random.Generator) -> Bootstrap:
        """Draw resamples of tests and subsets with replacement, as many of each as there are.

        Parameters
        ----------
        tests: number of tests.
        subsets: number of subsets.
        draws: number of resamples.
        generator: source of randomness.
        """
        counts = (
            generator.multinomial(number, np.full(number, 1 / number), size=draws).astype(np.float32)
            for number in (tests, subsets)
        )
        return cls(*counts)


def correlations_by_test(scores: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return each test's Spearman correlation of scores and minus the losses, float64 [tests].

    It is NaN where all losses are equal, and 0 where only the scores are.

    Parameters
    ----------
    scores: float [tests, subsets], finite.
    losses: float [tests, subsets], finite.
    """
    correlations = spearman_by_column(scores.T, -losses.T)
    varies = np.ptp(losses, axis=1) > 0
    return np.where(varies, np.nan_to_num(correlations), np.nan)


def linear_datamodeling_score(scores: np.ndarray, losses: np.ndarray) -> float:
    """Return the LDS (paper, section 4.1).

    Parameters
    ----------
    scores: float [tests, subsets], finite.
    losses: float [tests, subsets], finite.

    Raises
    ------
    StudyError: there are fewer than three subsets.
    UndefinedLdsError: there is no test whose losses differ.
    """
    if losses.shape[1] < SMALLEST_NUMBER_OF_SUBSETS:
        raise StudyError(
            f"an LDS needs at least {SMALLEST_NUMBER_OF_SUBSETS} subsets, and there are {losses.shape[1]}: raise "
            "`subsets` of the evaluation (the paper takes 100)"
        )
    correlations = correlations_by_test(scores, losses)
    if np.isnan(correlations).all():
        raise UndefinedLdsError(
            "no test's loss differs between subsets, so there is nothing to predict: raise "
            "finetuning.learning_rate or finetuning.epochs, or the evaluation's subset_examples"
        )
    return float(np.nanmean(correlations))


def bootstrap_lds(scores: np.ndarray, losses: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """Return the LDS of several methods in each resample, float64 [methods, draws]; NaN where it is undefined.

    Within a resample a subset that was drawn c times counts c times, and its copies are tied.

    Parameters
    ----------
    scores: float [methods, tests, subsets], finite.
    losses: float [tests, subsets], finite.
    bootstrap: the resamples.
    """
    counts = bootstrap.subset_counts
    weighted = np.zeros((len(scores), len(counts)))
    weight = np.zeros(len(counts))
    for test, test_count in enumerate(bootstrap.test_counts.T):
        values = np.concatenate([-losses[None, test], scores[:, test]])
        # An average rank, less the mean rank, is half the sum of signs against all that were drawn: one
        # matrix product ranks every resample.
        signs = np.sign(values[:, None, :] - values[:, :, None]).astype(np.float32)
        loss_ranks, *score_ranks = counts @ signs
        loss_weights = counts * loss_ranks
        loss_spread = np.vecdot(loss_weights, loss_ranks)
        counted = test_count * (loss_spread > 0)
        weight += counted
        for method, ranks in enumerate(score_ranks):
            spread = np.sqrt(loss_spread * np.vecdot(counts * ranks, ranks))
            covariance = np.vecdot(loss_weights, ranks)
            correlation = np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0)
            weighted[method] += counted * correlation
    return np.divide(weighted, weight, out=np.full(weighted.shape, np.nan), where=weight > 0)


def interval(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the percentile interval (low, high) of bootstrap draws.

    Parameters
    ----------
    draws: float [draws]; NaN values are left out.
    confidence: share of the draws that it covers, in (0, 1).
    """
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(a: np.ndarray, b: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the interval (low, high) of the difference of two methods' LDS.

    Both methods have the same tests and subsets in each draw, so what makes a draw easy or hard cancels; the interval
    is narrower than the two methods' own intervals suggest.

    Parameters
    ----------
    a: float [draws], the first method's LDS in each draw.
    b: float [draws], the second method's LDS in the same draws.
    confidence: coverage of the interval, in (0, 1).
    """
    return interval(a - b, confidence)


def seed_agreement(losses: np.ndarray) -> float:
    """Return how well one fine-tuning run of each subset predicts another.

    It is the mean, over tests and pairs of seeds, of Spearman's correlation between the two seeds' losses, over the
    subsets of which neither run diverged.

    Parameters
    ----------
    losses: float [tests, subsets, seeds]; NaN for a run that diverged.

    Raises
    ------
    UndefinedLdsError: no two seeds have enough subsets in common on which losses differ.
    """
    agreements = []
    for first, second in combinations(range(losses.shape[2]), 2):
        finished = np.isfinite(losses[:, :, [first, second]]).all(axis=(0, 2))
        if finished.sum() >= SMALLEST_NUMBER_OF_SUBSETS:
            pair = losses[:, finished]
            correlations = correlations_by_test(-pair[:, :, first], pair[:, :, second])
            if not np.isnan(correlations).all():
                agreements.append(np.nanmean(correlations))
    if not agreements:
        raise UndefinedLdsError(
            "the noise ceiling can't be measured: no two seeds of the fine-tuning runs have "
            f"{SMALLEST_NUMBER_OF_SUBSETS} subsets in common that didn't diverge and whose losses differ. Change "
            "finetuning.learning_rate."
        )
    return float(np.mean(agreements))


def noise_ceiling(agreement: float, seeds: int) -> float:
    """Return the highest LDS that any method can be expected to reach against losses averaged over `seeds`.

    A measured loss is the subset's effect plus the noise of a run. The agreement r of two runs is the share of
    a run's variance that is effect (its reliability). By Spearman and Brown the mean of k runs has reliability
    r_k = k r / (1 + (k - 1) r). A perfect method knows the effect but not the noise, and the correlation of the
    effect with effect plus noise is the root of the reliability: sqrt(r_k). (Exact for Pearson's correlation; for
    ranks it is a close approximation.)

    Parameters
    ----------
    agreement: r, the result of `seed_agreement`; below 0 counts as 0.
    seeds: k, the number of runs per subset.
    """
    agreement = max(agreement, 0.0)
    return float(np.sqrt(seeds * agreement / (1 + (seeds - 1) * agreement)))
