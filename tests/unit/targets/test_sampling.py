"""Who is in which subset: disjoint, unique, and the same however many there are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.targets.sample_subsets import sample_subsets
from workflow_scripts.targets.sampling import Sampling

IDS = np.arange(0, 400, 2, dtype=np.int32)


def sampling(**changes):
    return Sampling(
        **{
            "seed": 1,
            "pool": "train",
            "pool_examples": 50,
            "validation_examples": 20,
            "evaluated_examples": 10,
            "subset_examples": 12,
            **changes,
        }
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10), st.integers(0, 1000), st.integers(0, 1000))
def test_pool_and_evaluated_examples_are_disjoint_and_subsets_unique(seed, fold, index):
    draw = sampling(seed=seed)
    drawn = draw.fold(fold, IDS, None)
    subset = draw.subset(fold, index, drawn.pool)
    assert (len(drawn.pool), len(drawn.evaluated), len(subset)) == (50, 10, 12)
    for ids in (drawn.pool, drawn.evaluated, subset):
        assert len(set(ids.tolist())) == len(ids)
        assert set(ids.tolist()) <= set(IDS.tolist())
    assert not set(drawn.pool.tolist()) & set(drawn.evaluated.tolist())
    assert set(subset.tolist()) <= set(drawn.pool.tolist())


def test_tests_are_drawn_where_there_are_no_subsets():
    drawn = sampling(pool_examples=None, validation_examples=7, evaluated_examples=7, subset_examples=None).fold(
        0, IDS, IDS
    )
    assert len(set(drawn.evaluated.tolist())) == 7


def test_seed_pool_fold_and_index_each_draw_anew():
    def members(seed=1, pool="train", fold=0, index=0):
        draw = sampling(seed=seed, pool=pool)
        return tuple(draw.subset(fold, index, draw.fold(fold, IDS, None).pool))

    assert len({members(), members(seed=2), members(pool="other"), members(fold=1), members(index=1)}) == 5
    assert members() == members()


def test_every_example_is_drawn_about_equally_often():
    draw = sampling()
    pool = draw.fold(0, IDS, None).pool
    counts = np.bincount(np.concatenate([draw.subset(0, index, pool) for index in range(2000)]))[pool]
    # Binomial: mean 480, standard deviation 19.
    assert abs(counts - 480).max() < 100


def test_tests_of_another_corpus_leave_the_whole_pool():
    drawn = sampling(pool_examples=None).fold(0, IDS, np.arange(1000, 1040, dtype=np.int32))
    assert sorted(drawn.pool) == IDS.tolist()
    assert (drawn.evaluated >= 1000).all()


def test_more_folds_and_subsets_leave_the_earlier_ones(tiny, tmp_path):
    values = {name: getattr(sampling(pool_examples=40, subset_examples=6), name) for name in Sampling.__annotations__}

    def drawn(name, folds, subsets):
        paths = tmp_path / f"{name}.parquet", tmp_path / f"{name}.validation.parquet"
        sample_subsets(tiny.tokens, tiny.tokens, *paths, sampling=values, folds=folds, subsets_per_fold=subsets)
        return [read_table(path).to_pylist() for path in paths]

    (few, few_validation), (more_folds, validation), (more_subsets, _) = (
        drawn("a", 2, 3),
        drawn("b", 4, 3),
        drawn("c", 2, 5),
    )
    assert more_folds[:6] == few
    assert validation[:2] == few_validation
    assert [row["subset"] for row in more_folds] == list(range(12))
    of_first = [[row["example_ids"] for row in rows if row["fold"] == 0] for rows in (few, more_subsets)]
    assert of_first[1][:3] == of_first[0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"pool_examples": 190}, "210 pool and validation examples are needed, but the corpus has only 200"),
        ({"pool_examples": None, "subset_examples": 180}, "181 pool examples are needed"),
    ],
)
def test_a_corpus_that_is_too_small_is_refused(sizes, message):
    with pytest.raises(StudyError, match=message):
        sampling(**sizes).fold(0, IDS, None)


def test_too_few_tests_are_refused():
    with pytest.raises(StudyError, match="20 test examples are needed, but the corpus has only 7"):
        sampling().fold(0, IDS, IDS[:7])
