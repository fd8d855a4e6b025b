"""Group scores against the definition, written out in float64."""

import numpy as np
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.scoring.group_scores import ChosenPooling, GroupScores, Membership

POOLINGS = ("attention", "mean", "sum")


def _definition(scores, pooling):
    """f(x, S) of the members' scores [members, tests], straight from the paper's formula."""
    scores = scores.astype(np.float64)
    if pooling == "mean":
        return scores.mean(axis=0)
    if pooling == "sum":
        return scores.sum(axis=0)
    magnitudes = np.abs(scores)
    weights = np.exp(magnitudes - magnitudes.max(axis=0))
    return (weights / weights.sum(axis=0) * scores).sum(axis=0)


def _expected(scores, subsets, pooling):
    return np.stack([_definition(scores[subset], pooling) for subset in subsets])


def _streamed(scores, membership, tile, ids=None):
    groups = GroupScores(scores.shape[1], membership, POOLINGS)
    ids = np.arange(len(scores)) if ids is None else ids
    for start in range(0, len(scores), tile):
        groups.update(ids[start : start + tile], scores[start : start + tile])
    return groups


def _study(scale, examples=300, tests=6, subsets=8, size=40):
    generator = np.random.default_rng(5)
    scores = (generator.standard_normal((examples, tests)) * scale).astype(np.float32)
    return scores, [generator.choice(examples, size, replace=False) for _ in range(subsets)]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("scale", [0.01, 1, 30, 1e4])
@pytest.mark.parametrize("tile", [1, 17, 300])
def test_equals_the_definition_for_any_tile(pooling, scale, tile):
    scores, subsets = _study(scale)
    found = _streamed(scores, Membership(subsets), tile).result(pooling)
    expected = _expected(scores, subsets, pooling)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6 * scale)


def test_by_hand():
    # Weights of 1, -1, 0 are e, e, 1: f = (e - e + 0) / (2 e + 1) = 0; of 2, -1: (2 e^2 - e) / (e^2 + e).
    scores = np.array([[1], [-1], [0], [2]], np.float32)
    groups = _streamed(scores, Membership([np.array([0, 1, 2]), np.array([3, 1])]), 4)
    e = np.e
    np.testing.assert_allclose(groups.result("attention")[:, 0], [0, (2 * e**2 - e) / (e**2 + e)], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(groups.result("mean")[:, 0], [0, 0.5])
    np.testing.assert_allclose(groups.result("sum")[:, 0], [0, 1])


@pytest.mark.parametrize("tile", [1, 2, 5])
def test_a_subset_far_below_the_largest_score_keeps_its_weights(tile):
    scores = np.array([[1e4], [10], [-9], [1], [-1e4]], np.float32)
    subsets = [np.array([1, 2, 3]), np.array([0, 3]), np.array([0, 4]), np.array([3])]
    found = _streamed(scores, Membership(subsets), tile).result("attention")
    np.testing.assert_allclose(found, _expected(scores, subsets, "attention"), rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(found[0], _definition(scores[[1, 2, 3]], "attention"), rtol=1e-6)
    assert found[3, 0] == 1


def test_all_zero_scores():
    scores = np.zeros((4, 2), np.float32)
    found = _streamed(scores, Membership([np.array([0, 3])]), 2)
    assert [found.result(pooling).tolist() for pooling in POOLINGS] == [[[0, 0]]] * 3


@pytest.mark.parametrize("pooling", POOLINGS)
def test_parts_merge(pooling):
    scores, subsets = _study(20)
    membership = Membership(subsets)
    whole = _streamed(scores, membership, 64).result(pooling)
    merged = GroupScores(scores.shape[1], membership, POOLINGS)
    for part in np.array_split(np.arange(len(scores)), 8):
        merged.merge(_streamed(scores[part], membership, 13, part))
    np.testing.assert_allclose(merged.result(pooling), whole, rtol=2e-6, atol=2e-6 * 20)


def test_examples_outside_all_subsets_and_any_ids():
    scores, _ = _study(1, examples=50)
    ids = np.arange(50) * 7 + 3
    found = _streamed(scores, Membership([ids[[4, 9]], ids[[4]]]), 8, ids).result("sum")
    np.testing.assert_allclose(found, [scores[4] + scores[9], scores[4]], rtol=1e-6)


def test_a_member_that_was_never_scored_is_an_error():
    scores, _ = _study(1, examples=50)
    groups = _streamed(scores, Membership([np.array([4, 50])]), 8)
    with pytest.raises(StudyError, match="1 members of subsets"):
        groups.result("mean")


def test_a_score_that_is_not_finite_is_an_error():
    scores = np.array([[np.nan], [1]], np.float32)
    with pytest.raises(StudyError, match="finite"):
        _streamed(scores, Membership([np.array([0, 1])]), 2).result("attention")


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e3])
def test_chosen_attention_is_attention_of_scaled_scores(unit):
    scores, subsets = _study(unit)
    groups = GroupScores(scores.shape[1], Membership(subsets), ["chosen", "mean"], ChosenPooling("attention", 3 / unit))
    for start in range(0, len(scores), 17):
        groups.update(np.arange(start, min(start + 17, len(scores))), scores[start : start + 17])
    # f is attention of 3 s, in the unit of s.
    expected = _expected(scores * (3 / unit), subsets, "attention") * (unit / 3)
    np.testing.assert_allclose(groups.result("chosen"), expected, rtol=1e-5, atol=1e-5 * unit)
    np.testing.assert_allclose(groups.result("mean"), _expected(scores, subsets, "mean"), rtol=1e-5, atol=1e-5 * unit)


def test_chosen_mean_is_the_mean():
    scores, subsets = _study(1.0)
    groups = GroupScores(scores.shape[1], Membership(subsets), ["chosen", "mean"], ChosenPooling("mean"))
    groups.update(np.arange(len(scores)), scores)
    np.testing.assert_array_equal(groups.result("chosen"), groups.result("mean"))


def test_chosen_without_a_choice_is_refused():
    with pytest.raises(ValueError, match="nothing says what"):
        GroupScores(3, Membership([]), ["chosen"])
