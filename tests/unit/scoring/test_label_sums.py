"""Sums of scores by group equal those over every pair of row and test."""

import numpy as np
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import write_table
from workflow_scripts.methods.text_scorer import TextScorer
from workflow_scripts.scoring import label_sums
from workflow_scripts.scoring.label_sums import LabelSums, label_sums_of_embeddings, label_sums_of_texts

ROWS, TESTS = 50, 7
# The third is that of all rows in no other; some rows don't count.
GROUPS = np.where(np.arange(ROWS) % 10 == 0, -1, np.arange(ROWS) % 5 % 3)


def write(path, vectors, ids, element):
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), element), vectors.shape[1])
    write_table(path, pa.table({"example_id": pa.array(ids, pa.int32()), "embedding": column}))
    return path


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("tile_examples", [1, 16, 1000])
def test_sums_of_embeddings_are_those_of_all_pairs(tmp_path, kind, tile_examples):
    rng = np.random.default_rng(0)
    rows, tests = rng.normal(size=(ROWS, 4)).astype(kind), rng.normal(size=(TESTS + 3, 4)).astype(kind)
    element = pa.from_numpy_dtype(kind)
    parts = [write(tmp_path / f"{n}.parquet", rows[n::2], range(n, ROWS, 2), element) for n in (0, 1)]
    asked = write(tmp_path / "tests.parquet", tests, range(TESTS + 3), element)
    test_ids = np.array([8, 0, 3, 5, 1, 9, 2])
    found = label_sums_of_embeddings(parts, [asked], test_ids, GROUPS, tile_examples)
    scores = rows.astype(float) @ tests.astype(float)[test_ids].T
    assert found.counts.tolist() == [15, 20, 10]
    for group in range(3):
        assert found.sums[group] == pytest.approx(scores[group == GROUPS].sum(axis=0), rel=1e-5, abs=1e-5)


def test_sums_of_texts_are_those_of_all_pairs(tmp_path, monkeypatch):
    scores = np.random.default_rng(1).normal(size=(ROWS, TESTS)).astype(np.float32)

    def open_scorer(train, test, seed):
        assert seed == 3
        places = [int(prompt) for prompt in test.prompts]
        return TextScorer(lambda rows, columns: scores[rows][:, places][:, columns], 1.0)

    monkeypatch.setattr(label_sums, "load_text_method", lambda method: open_scorer)
    for name, number in (("train", ROWS), ("test", TESTS)):
        texts = [str(row) for row in range(number)]
        table = {"example_id": pa.array(range(number), pa.int64()), "prompt": texts, "response": texts}
        write_table(tmp_path / f"{name}.parquet", pa.table(table))
    files = (tmp_path / "train.parquet", tmp_path / "test.parquet")
    test_ids = np.array([4, 2, 6])
    found = label_sums_of_texts("tfidf", *files, test_ids, GROUPS, seed=3, tile_examples=8)
    for group in range(3):
        assert found.sums[group] == pytest.approx(scores[group == GROUPS][:, test_ids].sum(axis=0), rel=1e-5)


def test_an_advantage_is_over_all_other_rows_those_left_out_among_them():
    sums = LabelSums(np.array([[6.0], [0.0], [4.0]]), np.array([3, 0, 1]))
    assert sums.means()[:, 0] == pytest.approx([2.0, np.nan, 4.0], nan_ok=True)
    assert sums.advantages()[:, 0] == pytest.approx([2.0 - 4.0, np.nan, 4.0 - 2.0], nan_ok=True)
    whole = LabelSums(np.array([[6.0]]), np.array([3]))
    assert np.isnan(whole.advantages()).all()


def test_a_test_without_an_embedding_is_an_error(tmp_path):
    vectors = np.zeros((3, 4), np.float32)
    path = write(tmp_path / "tests.parquet", vectors, range(3), pa.float32())
    with pytest.raises(StudyError, match=r"lacks 1 of the test examples, e.g. example_id 7"):
        label_sums_of_embeddings([path], [path], np.array([0, 7]), np.zeros(3, int), 8)
