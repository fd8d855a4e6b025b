"""Exact search of stored embeddings: top rows and groups, whatever the tiles."""

from pathlib import Path

import numpy as np
import pytest
from curated_study import write_embeddings

from workflow_scripts.core.errors import StudyError
from workflow_scripts.search.embedded import EmbeddedCorpus
from workflow_scripts.search.query import Query
from workflow_scripts.search.stored import group_scores, top_scores


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr("workflow_scripts.search.stored.TILE_EXAMPLES", 7)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(50, 8)).astype(np.float16)
    queries = rng.normal(size=(3, 8)).astype(np.float32)
    path = write_embeddings(tmp_path / "embeddings.parquet", vectors)
    return path, queries, vectors.astype(np.float32) @ queries.T


@pytest.mark.parametrize(("sign", "direction"), [("helpful", -1), ("harmful", 1)])
def test_the_top_rows_are_the_best_of_all(stored, sign, direction):
    path, queries, scores = stored
    ids, values = top_scores(path, queries, 5, sign)
    for query in range(3):
        best = np.argsort(direction * scores[:, query], kind="stable")[:5]
        assert ids[query].tolist() == best.tolist()
        np.testing.assert_allclose(values[query], scores[best, query], rtol=1e-5)


@pytest.mark.parametrize("sign", ["helpful", "harmful"])
def test_groups_have_the_mean_of_all_their_rows_and_their_best(stored, sign):
    path, queries, scores = stored
    groups = np.arange(50) % 4
    found = group_scores(path, queries, groups, 4, sign)
    for group in range(4):
        rows = np.flatnonzero(groups == group)
        assert found.examples[group] == len(rows)
        np.testing.assert_allclose(found.means[group], scores[rows].mean(axis=0), rtol=1e-4)
        best = scores[rows].argmax(axis=0) if sign == "helpful" else scores[rows].argmin(axis=0)
        assert found.best_ids[group].tolist() == rows[best].tolist()
        np.testing.assert_allclose(found.best_scores[group], scores[rows[best], range(3)], rtol=1e-5)


def test_of_equal_rows_the_first_is_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr("workflow_scripts.search.stored.TILE_EXAMPLES", 2)
    path = write_embeddings(tmp_path / "embeddings.parquet", np.ones((6, 2)))
    found = group_scores(path, np.ones((1, 2), np.float32), np.array([0, 1, 0, 1, 0, 1]), 2, "helpful")
    assert found.best_ids.ravel().tolist() == [0, 1]


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.parquet", [[1.0, np.nan]])
    with pytest.raises(StudyError, match="an embedding is not a finite number"):
        top_scores(path, np.ones((1, 2), np.float32), 1, "helpful")


@pytest.mark.parametrize(("view", "expected"), [("split", [1, 1, 0, 0]), ("joint", [1, 1, 1, 1])])
def test_a_question_without_an_answer_is_compared_by_its_prompt(view, expected):
    embedded = EmbeddedCorpus(Path("e.parquet"), lambda texts: np.ones((len(texts), 4), np.float32), view, 256)
    found = embedded.vectors([Query("why", " "), Query("why", "because"), Query("why", "because", contrast="so")])
    assert found.tolist() == [expected, [1, 1, 1, 1], [0, 0, 0, 0]]
