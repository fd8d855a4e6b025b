"""LDS, its interval and its ceiling against SciPy, plain loops and simulations."""

import numpy as np
import pytest
import torch
from dattri.metric import lds as dattri_lds
from scipy.stats import spearmanr

from workflow_scripts.core.errors import StudyError
from workflow_scripts.evaluation.lds import (
    Bootstrap,
    bootstrap_lds,
    correlations_by_test,
    interval,
    linear_datamodeling_score,
    noise_ceiling,
    paired_difference,
    seed_agreement,
)


def _study(tests, subsets, noise, seed=0):
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((tests, subsets))
    return scores, noise * generator.standard_normal((tests, subsets)) - scores


def test_by_hand():
    # Ranks 1 2 3 4 against minus losses ranked 1 3 2 4: 1 - 6 * 2 / (4 * 15) = 0.8; the second test is reversed.
    scores = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4]])
    losses = np.array([[9.0, 5, 7, 1], [1, 2, 3, 4]])
    np.testing.assert_allclose(correlations_by_test(scores, losses), [0.8, -1])
    assert linear_datamodeling_score(scores, losses) == pytest.approx(-0.1)


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_equals_scipy_with_and_without_ties(decimals):
    scores, losses = (values.round(decimals) for values in _study(30, 20, 1.0))
    expected = [spearmanr(score, -loss).statistic for score, loss in zip(scores, losses, strict=True)]
    np.testing.assert_allclose(correlations_by_test(scores, losses), expected, atol=1e-12)
    assert linear_datamodeling_score(scores, losses) == pytest.approx(np.mean(expected))


def test_equals_dattris_on_the_same_arrays():
    generator = np.random.default_rng(4)
    examples, tests, subsets = 50, 7, 30
    scores = generator.standard_normal((examples, tests))
    members = np.stack([generator.choice(examples, 12, replace=False) for _ in range(subsets)])
    losses = generator.standard_normal((tests, subsets)) - scores[members].sum(axis=1).T
    theirs, _ = dattri_lds(torch.from_numpy(scores), (torch.from_numpy(-losses.T), torch.from_numpy(members)))
    ours = correlations_by_test(scores[members].sum(axis=1).T, losses)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)
    assert linear_datamodeling_score(scores[members].sum(axis=1).T, losses) == pytest.approx(
        float(theirs.mean()), abs=1e-6
    )


def test_constant_scores_count_as_nothing_predicted_and_constant_losses_are_left_out():
    scores = np.array([[1.0, 2, 3], [5, 5, 5], [1, 2, 3], [4, 4, 4]])
    losses = np.array([[3.0, 2, 1], [3, 2, 1], [7, 7, 7], [7, 7, 7]])
    np.testing.assert_array_equal(correlations_by_test(scores, losses), [1, 0, np.nan, np.nan])
    assert linear_datamodeling_score(scores, losses) == 0.5


def test_nothing_to_correlate_is_an_error():
    with pytest.raises(StudyError, match="nothing to predict"):
        linear_datamodeling_score(np.ones((2, 4)), np.ones((2, 4)))
    with pytest.raises(StudyError, match="at least 3 subsets"):
        linear_datamodeling_score(np.eye(2), np.eye(2))


@pytest.mark.parametrize("decimals", [0, 9])
def test_bootstrap_equals_a_plain_loop(decimals):
    tests, subsets = 7, 12
    scores, losses = (values.round(decimals) for values in _study(tests, subsets, 1.0))
    losses[3] = 1.0
    scores[5] = 2.0
    other = np.random.default_rng(9).standard_normal(scores.shape)
    resamples = Bootstrap.draw(tests, subsets, 25, np.random.default_rng(1))
    found = bootstrap_lds(np.stack([scores, other]), losses, resamples)
    for draw in range(25):
        chosen_tests = np.repeat(np.arange(tests), resamples.test_counts[draw].astype(int))
        chosen_subsets = np.repeat(np.arange(subsets), resamples.subset_counts[draw].astype(int))
        assert len(chosen_tests) == tests
        assert len(chosen_subsets) == subsets
        for method, values in enumerate((scores, other)):
            resample = np.ix_(chosen_tests, chosen_subsets)
            expected = np.nanmean(correlations_by_test(values[resample], losses[resample]))
            assert found[method, draw] == pytest.approx(expected, abs=1e-6)


def test_interval_covers_the_true_lds():
    # Tests and subsets are both redrawn in each study, so the interval has to reflect both.
    truth = np.mean([linear_datamodeling_score(*_study(300, 200, 1.5, seed)) for seed in range(3)])
    covered = 0
    for seed in range(60):
        scores, losses = _study(25, 30, 1.5, seed + 100)
        resamples = Bootstrap.draw(25, 30, 200, np.random.default_rng(seed))
        low, high = interval(bootstrap_lds(scores[None], losses, resamples)[0], 0.95)
        covered += low <= truth <= high
    assert covered >= 54


def test_interval_is_of_the_percentiles_asked_for():
    assert interval(np.arange(101.0), 0.9) == pytest.approx((5, 95))


def test_paired_difference_is_tighter_than_the_intervals_of_two_like_methods():
    scores, losses = _study(20, 40, 2.0)
    near = scores + 0.2 * np.random.default_rng(4).standard_normal(scores.shape)
    resamples = Bootstrap.draw(20, 40, 300, np.random.default_rng(1))
    a, b = bootstrap_lds(np.stack([scores, near]), losses, resamples)
    low, high = paired_difference(a, b, 0.95)
    widths = [np.subtract(*interval(draws, 0.95)[::-1]) for draws in (a, b)]
    assert high - low < min(widths)
    assert paired_difference(a, a, 0.95) == (0, 0)


def test_seed_agreement_by_hand():
    losses = np.array([[[1.0, 1, 4], [2, 3, 3], [3, 2, 2], [4, 4, 1]]])
    # Pairs of seeds: 0.8, -1, -0.8.
    assert seed_agreement(losses) == pytest.approx((0.8 - 1 - 0.8) / 3)


def test_seed_agreement_leaves_out_runs_that_diverged():
    losses = np.array([[[1.0, 1], [2, np.nan], [3, 3], [4, 4], [np.nan, 2]]] * 2)
    assert seed_agreement(losses) == pytest.approx(1)
    losses[:, :3, 0] = np.nan
    with pytest.raises(StudyError, match="noise ceiling"):
        seed_agreement(losses)


def test_noise_ceiling_by_hand():
    assert noise_ceiling(1.0, 2) == 1
    assert noise_ceiling(0.5, 1) == pytest.approx(np.sqrt(0.5))
    assert noise_ceiling(0.5, 2) == pytest.approx(np.sqrt(2 / 3))
    assert noise_ceiling(-0.2, 2) == 0


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
def test_noise_ceiling_is_what_the_true_effect_reaches(noise):
    generator = np.random.default_rng(2)
    effect = generator.standard_normal((150, 100))
    losses = -effect[:, :, None] + noise * generator.standard_normal((150, 100, 3))
    reached = linear_datamodeling_score(effect, losses.mean(axis=2))
    assert noise_ceiling(seed_agreement(losses), 3) == pytest.approx(reached, abs=0.03)
