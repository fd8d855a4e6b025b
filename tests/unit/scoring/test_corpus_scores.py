"""One pass over a corpus: the dense way's numbers, for any tile size, thread count and split."""

import numpy as np
import pytest

from workflow_scripts.scoring.corpus_scores import TESTS_PER_BLOCK, CorpusScores
from workflow_scripts.scoring.group_scores import Membership

EXAMPLES, DIMENSION, TOP = 900, 16, 10


def _study(tests):
    generator = np.random.default_rng(1)
    embeddings = generator.standard_normal((EXAMPLES, DIMENSION), np.float32)
    queries = generator.standard_normal((tests, DIMENSION), np.float32)
    subsets = [generator.choice(EXAMPLES, 60, replace=False) for _ in range(7)]
    return embeddings, queries, Membership(subsets), subsets


def _score(embeddings, queries, membership, tile, part=slice(0, EXAMPLES)):
    scores = CorpusScores(len(queries), TOP, membership, ("attention", "mean"))
    starts = range(part.start, part.stop, tile)
    rows = [np.arange(start, min(start + tile, part.stop)) for start in starts]
    scores.add_tiles(((ids, embeddings[ids]) for ids in rows), lambda block, columns: block @ queries[columns].T)
    return scores


@pytest.mark.parametrize("tests", [3, TESTS_PER_BLOCK + 5])
def test_equals_the_dense_way(tests):
    embeddings, queries, membership, subsets = _study(tests)
    found = _score(embeddings, queries, membership, 128)
    dense = queries @ embeddings.T
    np.testing.assert_array_equal(found.top("helpful")[0], np.argsort(-dense, axis=1)[:, :TOP])
    np.testing.assert_array_equal(found.top("harmful")[0], np.argsort(dense, axis=1)[:, :TOP])
    np.testing.assert_allclose(found.top("harmful")[1], np.sort(dense, axis=1)[:, :TOP], rtol=1e-5)
    for number, subset in enumerate(subsets):
        scores = dense[:, subset].astype(np.float64)
        weights = np.exp(np.abs(scores))
        attention = (weights * scores).sum(axis=1) / weights.sum(axis=1)
        np.testing.assert_allclose(found.groups("attention")[:, number], attention, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.groups("mean")[:, number], scores.mean(axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 100, 5000])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_tile_size_and_threads_change_nothing(tile, threads, monkeypatch):
    embeddings, queries, membership, _ = _study(20)
    expected = _score(embeddings, queries, membership, 64)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    found = _score(embeddings, queries, membership, tile)
    np.testing.assert_array_equal(found.top("helpful")[0], expected.top("helpful")[0])
    np.testing.assert_array_equal(found.top("harmful")[0], expected.top("harmful")[0])
    np.testing.assert_allclose(found.groups("attention"), expected.groups("attention"), rtol=1e-5, atol=1e-5)


def test_threads_change_not_one_bit(monkeypatch):
    embeddings, queries, membership, _ = _study(20)
    results = []
    for threads in ("1", "4"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(_score(embeddings, queries, membership, 100).groups("attention"))
    np.testing.assert_array_equal(*results)


def test_parts_of_a_corpus_merge():
    embeddings, queries, membership, _ = _study(20)
    whole = _score(embeddings, queries, membership, 100)
    merged = CorpusScores(20, TOP, membership, ("attention", "mean"))
    for rows in np.array_split(np.arange(EXAMPLES), 8):
        merged.merge(_score(embeddings, queries, membership, 37, slice(rows[0], rows[-1] + 1)).part())
    for sign in ("helpful", "harmful"):
        np.testing.assert_array_equal(merged.top(sign)[0], whole.top(sign)[0])
    expected = whole.groups("attention")
    # Sums that nearly cancel keep the rounding of their terms.
    np.testing.assert_allclose(merged.groups("attention"), expected, rtol=1e-5, atol=5e-7 * np.abs(expected).max())


def test_counts_finished_examples():
    embeddings, queries, membership, _ = _study(3)
    counted = []
    scores = CorpusScores(3, TOP, membership, ("mean",))
    tiles = ((np.arange(start, start + 300), embeddings[start : start + 300]) for start in (0, 300, 600))
    scores.add_tiles(tiles, lambda block, columns: block @ queries[columns].T, counted.append)
    assert counted == [300, 300, 300]


def test_an_error_in_a_tile_ends_the_pass():
    _, _, membership, _ = _study(3)

    def broken(tile, columns):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        CorpusScores(3, TOP, membership, ("mean",)).add_tiles([(np.arange(2), None)], broken)
