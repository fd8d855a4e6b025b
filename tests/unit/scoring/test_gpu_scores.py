"""What a GPU computes, here on the CPU's memory, is what `CorpusScores` computes."""

import numpy as np
import pytest
import torch

from workflow_scripts.core.errors import StudyError
from workflow_scripts.embeddings.tiles import inner_products
from workflow_scripts.scoring.corpus_scores import TESTS_PER_BLOCK, CorpusScores
from workflow_scripts.scoring.gpu_scores import score_on_device
from workflow_scripts.scoring.group_scores import ChosenPooling, Membership, Weighting

EXAMPLES, DIMENSION, TOP = 300, 8, 7
CPU = torch.device("cpu")
POOLINGS = ("attention", "mean", "sum")


def study(tests, scale=1.0):
    generator = np.random.default_rng(3)
    # Whole numbers: many scores are equal, some are 0, and every sum is exact.
    examples = generator.integers(-2, 3, (EXAMPLES, DIMENSION)).astype(np.float16)
    queries = (generator.integers(-2, 3, (tests, DIMENSION)) * scale).astype(np.float32)
    subsets = [generator.choice(EXAMPLES, 40, replace=False) for _ in range(5)]
    return examples, queries, Membership(subsets)


def tiles(examples, size, part=slice(0, EXAMPLES)):
    for start in range(part.start, part.stop, size):
        ids = np.arange(start, min(start + size, part.stop))
        yield ids, examples[ids[0] : ids[-1] + 1]


def both(examples, queries, membership, size, poolings=POOLINGS, chosen=None):
    expected = CorpusScores(len(queries), TOP, membership, poolings, chosen)
    expected.add_tiles(tiles(examples, size), inner_products(queries))
    found = CorpusScores(len(queries), TOP, membership, poolings, chosen)
    found.merge(score_on_device(tiles(examples, size), queries, TOP, membership, CPU, found.weighting))
    return found, expected


@pytest.mark.parametrize("tests", [3, TESTS_PER_BLOCK + 5])
@pytest.mark.parametrize("size", [5, 64, EXAMPLES])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_equals_the_scores_on_the_cpu(tests, size, scale):
    found, expected = both(*study(tests, scale), size)
    for sign in ("helpful", "harmful"):
        np.testing.assert_array_equal(found.top(sign)[0], expected.top(sign)[0])
        np.testing.assert_array_equal(found.top(sign)[1], expected.top(sign)[1])
    for pooling in POOLINGS:
        # The weighted terms are float32 and partly cancel.
        tolerance = {"rtol": 1e-5, "atol": 1e-5 * scale}
        np.testing.assert_allclose(found.groups(pooling), expected.groups(pooling), **tolerance)


@pytest.mark.parametrize("shift", [0, -100])
@pytest.mark.parametrize(
    ("pooling", "chosen"),
    [
        ("signed", None),
        ("chosen", ChosenPooling("mean")),
        ("chosen", ChosenPooling("attention", 0.1)),
        ("chosen", ChosenPooling("attention", 3.0)),
    ],
)
def test_equals_the_cpu_however_members_are_weighed(pooling, chosen, shift):
    examples, queries, membership = study(3)
    # Every score is below 0, far enough that e^s is 0 in float32.
    examples, queries = np.insert(examples, DIMENSION, 1, 1), np.insert(queries, DIMENSION, shift, 1)
    found, expected = both(examples, queries, membership, 64, (pooling,), chosen)
    np.testing.assert_allclose(found.groups(pooling), expected.groups(pooling), rtol=1e-5, atol=1e-5)


def test_parts_merge():
    examples, queries, membership = study(4)
    whole, _ = both(examples, queries, membership, 50)
    merged = CorpusScores(4, TOP, membership, POOLINGS)
    for start in range(0, EXAMPLES, 60):
        part = tiles(examples, 50, slice(start, start + 60))
        merged.merge(score_on_device(part, queries, TOP, membership, CPU, Weighting()))
    np.testing.assert_array_equal(merged.top("helpful")[0], whole.top("helpful")[0])
    np.testing.assert_allclose(merged.groups("attention"), whole.groups("attention"), rtol=1e-6)


def test_fewer_examples_than_the_top_and_none():
    examples, queries, membership = study(3)
    part = score_on_device(tiles(examples, 2, slice(0, 4)), queries, TOP, membership, CPU, Weighting())
    assert part.helpful[0].shape == part.harmful[1].shape == (3, 4)
    assert score_on_device([], queries, TOP, membership, CPU, Weighting()).helpful[0].shape == (3, 0)


def test_without_subsets_there_are_top_scores():
    examples, queries, _ = study(3)
    part = score_on_device(tiles(examples, 50), queries, TOP, Membership([]), CPU, Weighting())
    assert part.helpful[0].shape == (3, TOP)
    assert part.sums.members.shape == (0,)
    assert part.sums.weighted.shape == (0, 3)


def test_an_embedding_that_is_not_finite_is_an_error():
    examples, queries, membership = study(3)
    examples[17, 2] = np.inf
    with pytest.raises(StudyError, match="not a finite number"):
        score_on_device(tiles(examples, 50), queries, TOP, membership, CPU, Weighting())


def test_tiles_without_members_of_any_subset():
    examples, queries, _ = study(3)
    membership = Membership([np.array([290, 295]), np.array([291])])
    found, expected = both(examples, queries, membership, 50)
    np.testing.assert_allclose(found.groups("attention"), expected.groups("attention"), rtol=1e-5)


def test_nothing_is_computed_in_tf32(monkeypatch):
    examples, queries, membership = study(3)
    seen = []

    def watched():
        for tile in tiles(examples, 100):
            seen.append(torch.get_float32_matmul_precision())
            yield tile

    torch.set_float32_matmul_precision("high")
    try:
        score_on_device(watched(), queries, TOP, membership, CPU, Weighting())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}
