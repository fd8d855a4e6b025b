"""The sum of two sources is that of their scores, however their tiles are cut and whatever rows they lack."""

import numpy as np
import pytest

from workflow_scripts.core.timing import Seconds
from workflow_scripts.embeddings.tiles import inner_products
from workflow_scripts.scoring.sources import Source
from workflow_scripts.scoring.summed_source import sum_sources

ROWS, TESTS = 40, 3


def of_embeddings(dimension, size, ids=None, seed=0):
    """A source of inner products in tiles of `size`; and the scores, [ROWS, TESTS], NaN for rows that it lacks."""
    random = np.random.default_rng(seed)
    ids = np.arange(ROWS) if ids is None else np.asarray(ids)
    vectors, tests = (random.standard_normal((rows, dimension)).astype(np.float32) for rows in (ROWS, TESTS))
    tiles = [(own, vectors[own]) for own in np.split(ids, range(size, len(ids), size))]
    source = Source(
        tiles=tiles,
        score=inner_products(tests),
        examples=len(ids),
        bytes_per_example=4 * dimension,
        embedding=Seconds(1, 2),
        test_embedding=Seconds(3, 4),
        start_up=Seconds(5, 6),
        test_start_up=Seconds(7, 8),
    )
    dense = np.full((ROWS, TESTS), np.nan, np.float32)
    dense[ids] = vectors[ids] @ tests.T
    return source, dense


def of_texts(size, seed=9):
    dense = np.random.default_rng(seed).standard_normal((ROWS, TESTS)).astype(np.float32)
    rows = [slice(start, min(start + size, ROWS)) for start in range(0, ROWS, size)]
    tiles = [(np.arange(ROWS)[tile], tile) for tile in rows]
    return Source(tiles, lambda tile, columns: dense[tile, columns], ROWS, 10), dense


def scored(source, columns=slice(None)):
    ids, scores = zip(*((ids, source.score(tile, columns)) for ids, tile in source.tiles), strict=True)
    assert all(one.dtype == np.float32 and len(one) == len(own) for one, own in zip(scores, ids, strict=True))
    return np.concatenate(ids), np.concatenate(scores)


@pytest.mark.parametrize("sizes", [(8, 8), (7, 11), (40, 3), (1, 40)])
@pytest.mark.parametrize("columns", [slice(None), slice(1, 2)])
def test_tiles_may_be_cut_in_two_ways(sizes, columns):
    (first, a), (second, b) = of_embeddings(4, sizes[0]), of_embeddings(9, sizes[1], seed=1)
    ids, found = scored(sum_sources((first, second), (0.5, -2.0)), columns)
    assert ids.tolist() == list(range(ROWS))
    np.testing.assert_allclose(found, (0.5 * a - 2.0 * b)[:, columns], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lacking", [[0], [39], [0, 1, 2, 3, 20, 38, 39], list(range(8, 32))])
@pytest.mark.parametrize("size", [5, 16])
def test_rows_that_one_of_them_lacks_have_no_place(lacking, size):
    present = np.setdiff1d(np.arange(ROWS), lacking)
    (first, a), (second, b) = of_embeddings(4, size, present), of_texts(7)
    for sources, factors in (((first, second), (3.0, 1.0)), ((second, first), (1.0, 3.0))):
        ids, found = scored(sum_sources(sources, factors))
        assert ids.tolist() == present.tolist()
        np.testing.assert_allclose(found, (3 * a + b)[present], rtol=1e-4, atol=1e-5)


def test_it_costs_what_both_cost():
    found = sum_sources((of_embeddings(4, 8)[0], of_embeddings(9, 8)[0]), (1.0, 1.0))
    assert found.bytes_per_example == 4 * (4 + 9)
    assert (found.embedding, found.test_start_up) == (Seconds(2, 4), Seconds(14, 16))
    assert found.on_device is None
