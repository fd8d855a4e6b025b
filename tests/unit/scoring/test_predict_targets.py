"""Predicted targets are group scores by the definition, standardised, and are read as measured ones are."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.scoring.chosen_pooling import write_chosen_pooling
from workflow_scripts.scoring.group_scores import ChosenPooling
from workflow_scripts.scoring.predict_targets import predict_targets
from workflow_scripts.targets.tables import read_folds

EXAMPLES, DIMENSION, FOLDS, SUBSETS, SIZE, TESTS = 60, 5, 3, 4, 7, 6
COSTS = ("seconds", "cpu_seconds", "start_up_seconds", "start_up_cpu_seconds")


class Files:
    """Subsets and validation examples of some folds, and embeddings of their corpus in `parts` files."""

    def __init__(self, folder, parts=1):
        random = np.random.default_rng(7)
        self.folder = folder
        self.embeddings = random.standard_normal((EXAMPLES, DIMENSION)).astype(np.float32)
        drawn = [random.permutation(EXAMPLES) for _ in range(FOLDS)]
        self.tests = [one[:TESTS] for one in drawn]
        self.members = [[random.choice(one[TESTS:], SIZE, replace=False) for _ in range(SUBSETS)] for one in drawn]
        ids = pa.list_(pa.int32())
        write_table(
            folder / "subsets.parquet",
            pa.table(
                {
                    "fold": pa.array(np.repeat(np.arange(FOLDS), SUBSETS), pa.int32()),
                    "subset": pa.array(np.arange(FOLDS * SUBSETS), pa.int32()),
                    "example_ids": pa.array([subset for fold in self.members for subset in fold], ids),
                }
            ),
        )
        folds = {"fold": pa.array(range(FOLDS), pa.int32()), "example_ids": pa.array(self.tests, ids)}
        write_table(folder / "validation.parquet", pa.table(folds))
        self.paths = [
            self._write(f"part{number}", rows) for number, rows in enumerate(np.split(np.arange(EXAMPLES), parts))
        ]

    def _write(self, name, rows):
        values = pa.FixedSizeListArray.from_arrays(pa.array(self.embeddings[rows].ravel()), DIMENSION)
        columns = {"example_id": pa.array(rows, pa.int32()), "hash": ["0" * 16] * len(rows), "embedding": values}
        write_table(self.folder / f"{name}.parquet", pa.table(columns), **dict.fromkeys(COSTS, "1"))
        return self.folder / f"{name}.parquet"

    def predict(self, pooling="mean", train=None, test=None, **given):
        corpus, subsets, validation, targets = (
            self.folder / f"{name}.parquet" for name in ("corpus", "subsets", "validation", "targets")
        )
        values = {"method": "made_up", "pooling": pooling, "seed": 1, "tile_examples": 16}
        embeddings = (train or self.paths, test or self.paths)
        predict_targets(corpus, subsets, validation, *embeddings, targets, **values, **given)
        return targets

    def expected(self, fold, pool):
        """Labels of a fold, float [subsets, tests]; `pool` takes the scores of a subset's members."""
        scores = np.stack(
            [pool(self.embeddings[one] @ self.embeddings[self.tests[fold]].T) for one in self.members[fold]]
        )
        return (scores - scores.mean(axis=0)) / scores.std(axis=0)


def attention(scale):
    def pool(scores):
        weights = np.exp(scale * np.abs(scores))
        return (weights * scores).sum(axis=0) / weights.sum(axis=0)

    return pool


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(
    ("pooling", "pool"), [("mean", lambda scores: scores.mean(axis=0)), ("attention", attention(1.0))]
)
def test_labels_are_standardised_group_scores(tmp_path, pooling, pool, parts):
    files = Files(tmp_path, parts)
    folds = read_folds(tmp_path / "subsets.parquet", files.predict(pooling))
    assert len(folds) == FOLDS
    for number, fold in enumerate(folds):
        np.testing.assert_array_equal(fold.tests, files.tests[number])
        np.testing.assert_array_equal(fold.members, files.members[number])
        np.testing.assert_allclose(fold.labels, files.expected(number, pool), atol=2e-3)


def test_a_chosen_pooling_is_the_one_that_was_chosen(tmp_path):
    files = Files(tmp_path)
    chosen = tmp_path / "chosen.parquet"
    write_chosen_pooling(chosen, [ChosenPooling("mean"), ChosenPooling("attention", 2.5)], [0.1, 0.2], 1)
    folds = read_folds(tmp_path / "subsets.parquet", files.predict("chosen", chosen=chosen))
    for number, fold in enumerate(folds):
        np.testing.assert_allclose(fold.labels, files.expected(number, attention(2.5)), atol=2e-3)


def test_the_last_folds_alone_are_predicted_as_among_all(tmp_path):
    files = Files(tmp_path)
    everything = read_table(files.predict()).to_pandas()
    last = read_table(files.predict(folds=2)).to_pandas()
    assert set(last["fold"]) == {1, 2}
    pd.testing.assert_frame_equal(last, everything[everything["fold"] > 0].reset_index(drop=True))


def test_a_subset_that_helps_more_has_less_of_what_stands_for_a_loss(tmp_path):
    table = read_table(Files(tmp_path).predict()).to_pandas()
    for _, rows in table.groupby(["fold", "example_id"]):
        labels = rows["label"].to_numpy().astype(np.float32)
        assert (np.diff(labels[np.argsort(rows["loss"].to_numpy())]) <= 0).all()


def test_labels_over_all_folds_are_computed_from_it_too(tmp_path):
    targets = Files(tmp_path).predict()
    pooled = read_folds(tmp_path / "subsets.parquet", targets, label_spread="pooled")
    assert all(np.isfinite(fold.labels).all() for fold in pooled)


def test_members_without_an_embedding_are_an_error(tmp_path):
    files = Files(tmp_path, parts=4)
    with pytest.raises(StudyError, match="members of subsets are not among the scored training examples"):
        files.predict(train=files.paths[:3])


def test_validation_examples_without_an_embedding_are_an_error(tmp_path):
    files = Files(tmp_path, parts=4)
    with pytest.raises(StudyError, match=r"lacks .* of the test examples"):
        files.predict(test=files.paths[:1])
