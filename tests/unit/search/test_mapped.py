"""A mapped corpus: the same search as of the files, some rows of it, and only what belongs together."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from curated_study import read_corpus, write_embeddings, write_lines

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.corpora.tables import take_examples
from workflow_scripts.search.mapped import COLUMNS, MappedCorpus, Wanted, mapped_corpus
from workflow_scripts.search.stored import top_scores

ROWS = 50


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("workflow_scripts.search.mapped.ROWS_WRITTEN", 7)
    monkeypatch.setattr("workflow_scripts.search.mapped.TILE_EXAMPLES", 9)
    rng = np.random.default_rng(1)
    rows = [{"prompt": f"p{number}", "response": f"r{number}"} for number in range(ROWS)]
    rows = [row | ({"label": "ab"[number % 2]} if number % 3 else {}) for number, row in enumerate(rows)]
    corpus = read_corpus(str(write_lines(tmp_path / "rows.jsonl", rows)), tmp_path / "corpus.parquet")
    embeddings = write_embeddings(tmp_path / "embeddings.parquet", rng.normal(size=(ROWS, 8)))
    return corpus, embeddings, rng.normal(size=(3, 8)).astype(np.float32)


@pytest.fixture
def mapped(files):
    with mapped_corpus(*files[:2]) as mapped:
        yield mapped


def test_the_rows_found_are_those_of_the_files(files, mapped):
    _, embeddings, queries = files
    wanted = [Wanted(5, ("helpful", "harmful")), Wanted(3, ("harmful",)), Wanted(2 * ROWS, ("helpful",))]
    found = mapped.search(queries, wanted)
    assert [set(one) for one in found] == [set(one.signs) for one in wanted]
    for sign in ("helpful", "harmful"):
        ids, scores = top_scores(embeddings, queries, ROWS, sign)
        for place, one in enumerate(found):
            if sign in one:
                top = min(wanted[place].top, ROWS)
                assert one[sign][0].tolist() == ids[place, :top].tolist()
                np.testing.assert_allclose(one[sign][1], scores[place, :top], rtol=1e-5)


@pytest.mark.parametrize("labels", [{"a"}, {"a", None}, {None}])
def test_of_some_labels_the_best_rows_are_those_of_all_rows_without_the_others(files, mapped, labels):
    corpus, embeddings, queries = files
    label = read_table(corpus, ["label"])["label"].to_pylist()
    # Others that are asked for at once have no filter.
    wanted = [Wanted(ROWS, ("helpful", "harmful"), frozenset(labels)), Wanted(ROWS, ("helpful",))]
    found = mapped.search(queries[:2], wanted)
    for sign in ("helpful", "harmful"):
        ids, _ = top_scores(embeddings, queries[:1], ROWS, sign)
        assert found[0][sign][0].tolist() == [one for one in ids[0] if label[one] in labels]
    assert len(found[1]["helpful"][0]) == ROWS
    assert mapped.labels == {name: label.count(name) for name in set(label)}


def test_rows_are_taken_in_any_order_and_more_than_once(files, mapped):
    ids = np.array([49, 0, 7, 7, 13, 6])
    assert mapped.take(ids, COLUMNS).equals(take_examples(files[0], ids, COLUMNS))
    assert mapped.take(ids[:0], ["prompt"]).num_rows == 0


def test_batches_may_have_any_size():
    rows = pa.record_batch({"prompt": [f"p{number}" for number in range(9)]})
    batches = [rows.slice(0, 2), rows.slice(2, 6), rows.slice(8, 1)]
    mapped = MappedCorpus(np.zeros((9, 1), np.float32), batches, Counter(), np.zeros(9, np.int32))
    ids = np.array([8, 1, 2, 7, 0, 2])
    assert mapped.take(ids, ["prompt"])["prompt"].to_pylist() == [f"p{number}" for number in ids]


def test_files_of_another_number_of_rows_are_refused(files, tmp_path):
    fewer = write_embeddings(tmp_path / "fewer.parquet", np.ones((3, 8)))
    with (
        pytest.raises(StudyError, match=r"fewer\.parquet has 3 rows and .*corpus\.parquet 50"),
        mapped_corpus(files[0], fewer),
    ):
        pass


@pytest.mark.parametrize(
    ("vectors", "ids", "words"),
    [([[np.nan]] * 2, None, "not a finite number"), ([[1.0]] * 2, [0, 2], "doesn't count the rows")],
)
def test_embeddings_that_are_damaged_are_refused(files, tmp_path, vectors, ids, words):
    path = write_embeddings(tmp_path / "bad.parquet", np.array(vectors), ids)
    with pytest.raises(StudyError, match=words), mapped_corpus(files[0], path):
        pass
