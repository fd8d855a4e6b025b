"""The running top list is what sorting all scores gives, whatever the tiles, parts and ties."""

import numpy as np
import pytest

from workflow_scripts.scoring.top_k import TopScores


def _sorted_top(scores, top, sign):
    """Sort all scores [examples, tests]; of equal ones the lower id comes first."""
    order = np.argsort(-scores if sign == "helpful" else scores, axis=0, kind="stable")[:top].T
    return order, np.take_along_axis(scores.T, order, axis=1)


def _streamed(scores, top, sign, tile, ids=None):
    found = TopScores(scores.shape[1], top, sign)
    ids = np.arange(len(scores)) if ids is None else ids
    for start in range(0, len(scores), tile):
        found.update(ids[start : start + tile], scores[start : start + tile])
    return found


def _scores(kind, examples=700, tests=9):
    generator = np.random.default_rng(3)
    if kind == "normal":
        return generator.standard_normal((examples, tests), np.float32)
    if kind == "ties":
        return generator.integers(-2, 3, (examples, tests)).astype(np.float32)
    if kind == "signed zeros":
        return generator.choice(np.array([0.0, -0.0], np.float32), (examples, tests))
    if kind == "constant":
        return np.ones((examples, tests), np.float32)
    rising = np.sort(generator.standard_normal((examples, tests), np.float32) * 1e4, axis=0)
    return rising if kind == "rising" else np.ascontiguousarray(rising[::-1])


@pytest.mark.parametrize("sign", ["helpful", "harmful"])
@pytest.mark.parametrize("kind", ["normal", "ties", "signed zeros", "constant", "rising", "falling"])
@pytest.mark.parametrize("tile", [1, 7, 64, 1000])
def test_equals_sorting(kind, sign, tile):
    scores = _scores(kind)
    ids, values = _streamed(scores, 20, sign, tile).result()
    expected_ids, expected_values = _sorted_top(scores, 20, sign)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(values, expected_values)
    assert values.dtype == np.float32


@pytest.mark.parametrize("sign", ["helpful", "harmful"])
@pytest.mark.parametrize("kind", ["normal", "ties", "rising"])
def test_parts_merge_exactly_in_any_order(kind, sign):
    scores = _scores(kind)
    whole = _streamed(scores, 20, sign, 64).result()
    parts = np.array_split(np.arange(len(scores)), 8)
    merged = TopScores(scores.shape[1], 20, sign)
    for part in reversed(parts):
        merged.merge(_streamed(scores[part], 20, sign, 33, part))
    np.testing.assert_array_equal(merged.result()[0], whole[0])
    np.testing.assert_array_equal(merged.result()[1], whole[1])


@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_a_tile_scored_apart_with_the_threshold_so_far_changes_nothing(kind):
    scores = _scores(kind)
    found = _streamed(scores[:300], 20, "harmful", 300)
    later = found.empty()
    later.update(np.arange(300, 700), scores[300:])
    found.merge(later)
    np.testing.assert_array_equal(found.result()[0], _sorted_top(scores, 20, "harmful")[0])


@pytest.mark.parametrize("sign", ["helpful", "harmful"])
@pytest.mark.parametrize("tile", [1, 10, 100])
def test_nan_scores_are_never_kept(sign, tile):
    scores = _scores("normal", examples=100)
    scores[::3] = np.nan
    scores[:, 4] = np.nan
    ids, values = _streamed(scores, 20, sign, tile).result()
    expected, _ = _sorted_top(scores, 20, sign)
    others = np.arange(9) != 4
    np.testing.assert_array_equal(ids[others], expected[others])
    assert np.isinf(values[4]).all()


@pytest.mark.parametrize("kind", ["ties", "constant"])
def test_many_tiles_scored_apart_merge_in_order_with_ties(kind):
    scores = _scores(kind)
    found = TopScores(scores.shape[1], 20, "helpful")
    for start in range(0, 700, 10):
        part = found.empty()
        for row in range(start, start + 10, 5):
            part.update(np.arange(row, row + 5), scores[row : row + 5])
        found.merge(part)
    np.testing.assert_array_equal(found.result()[0], _sorted_top(scores, 20, "helpful")[0])


def test_tiles_without_a_better_score_take_no_memory():
    found = TopScores(1, 1, "helpful")
    found.update(np.array([0]), np.ones((1, 1), np.float32))
    for row in range(1, 50):
        part = found.empty()
        part.update(np.array([row]), np.zeros((1, 1), np.float32))
        found.merge(part)
    assert not found._found
    assert found.result()[0].tolist() == [[0]]


def test_fewer_examples_than_asked_for():
    scores = _scores("normal", examples=5)
    ids, values = _streamed(scores, 20, "helpful", 2).result()
    assert ids.shape == values.shape == (9, 5)
    np.testing.assert_array_equal(ids, _sorted_top(scores, 5, "helpful")[0])


def test_large_ids_survive():
    ids = np.array([5, 2**31 - 2, 2**31 - 1])
    found = TopScores(1, 2, "helpful")
    found.update(ids, np.ones((3, 1), np.float32))
    assert found.result()[0].tolist() == [[5, 2**31 - 2]]
