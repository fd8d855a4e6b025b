"""Which rows are selected: by best rank and by mean score, within quotas, near duplicates once."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated_study import read_corpus, write_embeddings, write_lines, write_top_lists, write_validation

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, write_table
from workflow_scripts.curation.choosing import choose
from workflow_scripts.curation.select_examples import select_examples
from workflow_scripts.methods.text_scorer import Texts
from workflow_scripts.methods.tfidf import open_scorer
from workflow_scripts.study.curation_section import Curation

ROWS = 40
TESTS = [3, 0, 5]


@pytest.fixture
def folder(tmp_path):
    words = ["river", "stone", "lamp", "wheel", "bread", "north", "glass", "paper"]
    rows = [
        {
            "prompt": f"Tell me of {words[n % 8]} and {words[n // 8]} in year {n}",
            "response": f"It was {words[n % 5]}.",
            "label": ["old", "new", None][n % 3],
        }
        for n in range(ROWS)
    ]
    read_corpus(str(write_lines(tmp_path / "rows.jsonl", rows)), tmp_path / "train.parquet")
    asked = [{"prompt": f"Who has {word}?", "response": f"{word} is here, {word}."} for word in words]
    read_corpus(str(write_lines(tmp_path / "tests.jsonl", asked)), tmp_path / "test.parquet")
    write_validation(tmp_path / "validation.parquet", TESTS)
    rng = np.random.default_rng(1)
    write_embeddings(tmp_path / "train_embeddings.parquet", rng.normal(size=(ROWS, 6)))
    write_embeddings(tmp_path / "test_embeddings.parquet", rng.normal(size=(8, 6)))
    return tmp_path


def vectors(path):
    return np.stack(pq.read_table(path)["embedding"].to_numpy()).astype(np.float32)


def all_scores(folder):
    train, test = (vectors(folder / f"{role}_embeddings.parquet") for role in ("train", "test"))
    return train @ test[TESTS].T


def select(folder, *, scores=None, train_embeddings=None, near_duplicate=None, **keys):
    by_embeddings = scores is None and keys.get("method", "airrep") == "airrep"
    train = [folder / "train_embeddings.parquet"] if train_embeddings is None else train_embeddings
    select_examples(
        folder / "train.parquet",
        folder / "test.parquet",
        folder / "validation.parquet",
        scores,
        train if by_embeddings else [],
        [folder / "test_embeddings.parquet"] if by_embeddings else [],
        folder / "selection.parquet",
        choice=Curation(evaluation="heldout", **keys),
        near_duplicate=near_duplicate,
        seed=1,
        tile_examples=7,
    )
    return pq.read_table(folder / "selection.parquet").to_pylist()


def test_the_mean_score_is_that_of_all_tests_and_the_deciding_test_the_highest(folder):
    scores = all_scores(folder)
    order = np.argsort(-scores.mean(axis=1), kind="stable")[:6]
    found = select(folder, rule="mean_score", size=6)
    assert [row["example_id"] for row in found] == order.tolist()
    np.testing.assert_allclose([row["score"] for row in found], scores.mean(axis=1)[order], rtol=1e-5)
    assert [row["test_id"] for row in found] == [TESTS[column] for column in scores[order].argmax(axis=1)]
    assert [row["rank"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert found[0]["source_row"] == order[0] + 1
    assert found[0]["test_row"] == found[0]["test_id"] + 1
    assert "number 1 from the top of 40 rows; highest for the test in row" in found[0]["reason"]
    entries = read_metadata(folder / "selection.parquet")
    assert (entries["rows"], entries["ranked"], entries["tests"]) == ("40", "40", "3")
    assert json.loads(entries["quantiles"])[-1] == pytest.approx(scores.mean(axis=1).max(), rel=1e-5)


def test_parts_and_tiles_change_nothing(folder):
    whole = select(folder, rule="mean_score", size=10)
    every = vectors(folder / "train_embeddings.parquet")
    halves = [np.r_[0:11, 30:40], np.r_[11:30]]
    files = [write_embeddings(folder / f"part{n}.parquet", every[ids], ids) for n, ids in enumerate(halves)]
    parts = select(folder, rule="mean_score", size=10, train_embeddings=files)
    # Some matrix products round differently with the number of their rows.
    scores = [[row.pop("score") for row in rows] for rows in (parts, whole)]
    assert parts == whole
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_the_most_harmful_have_the_lowest_means(folder):
    scores = all_scores(folder)
    found = select(folder, rule="most_harmful", size=0.1)
    assert [row["example_id"] for row in found] == np.argsort(scores.mean(axis=1), kind="stable")[:4].tolist()
    assert [row["test_id"] for row in found] == [TESTS[scores[row["example_id"]].argmin()] for row in found]
    assert "number 1 from the bottom of 40 rows; lowest for the test in row" in found[0]["reason"]


@pytest.mark.parametrize("method", ["airrep", "tfidf"])
def test_a_mean_over_the_tests_of_a_rows_label(folder, method):
    labels = ["old", "new", "old", "old", "other", None, "new", "old"]
    table = pq.read_table(folder / "test.parquet")
    column = table.column_names.index("label")
    write_table(folder / "test.parquet", table.set_column(column, "label", pa.array(labels)))
    # Tests 3, 0 and 5: two are old, none is new.
    if method == "airrep":
        scores = all_scores(folder)
    else:
        texts = [Texts.read(folder / f"{role}.parquet") for role in ("train", "test")]
        scores = open_scorer(texts[0], texts[1].take(TESTS), 1).score(slice(0, ROWS), slice(0, 3))
    is_old = np.arange(ROWS) % 3 == 0
    # Of the rows with another label, or with none, nothing is known.
    means = np.where(is_old, scores[:, :2].mean(axis=1), np.inf)
    found = select(folder, rule="most_harmful", size=10, tests="same_label", method=method)
    order = np.argsort(means, kind="stable")[:10]
    np.testing.assert_allclose([row["score"] for row in found], means[order], atol=1e-5)
    if method == "airrep":
        assert [row["example_id"] for row in found] == order.tolist()
        lowest = scores[order, :2].argmin(axis=1)
        assert [row["test_id"] for row in found] == [TESTS[place] for place in lowest]
    assert "over the tests of its label, number 1 from the bottom of 40 rows" in found[0]["reason"]
    with pytest.raises(StudyError, match=r"14 can be selected: .* rows whose label no test has aren't ranked"):
        select(folder, rule="most_harmful", size=15, tests="same_label", method=method)


def test_labels_that_no_test_has_are_refused(folder):
    with pytest.raises(StudyError, match=r"no row of .*train.parquet has the label of a test. Write tests: all"):
        select(folder, rule="most_harmful", size=10, tests="same_label")


def test_only_helpful_rows_are_above_zero(folder):
    scores = all_scores(folder).mean(axis=1)
    found = select(folder, rule="helpful_only")
    assert {row["example_id"] for row in found} == set(np.flatnonzero(scores > 0).tolist())
    assert len(select(folder, rule="helpful_only", size=2)) == 2


def test_a_method_of_texts_is_scored_in_full(folder):
    train, test = (Texts.read(folder / f"{role}.parquet") for role in ("train", "test"))
    scores = open_scorer(train, test.take(np.array(TESTS)), 1).score(slice(0, ROWS), slice(0, 3))
    found = select(folder, method="tfidf", rule="mean_score", size=5)
    order = np.argsort(-scores.mean(axis=1), kind="stable")[:5]
    assert [row["example_id"] for row in found] == order.tolist()
    assert [row["test_id"] for row in found] == [TESTS[column] for column in scores[order].argmax(axis=1)]


def test_the_best_rank_counts_and_ties_go_to_the_lower_id(folder):
    lists = [(3, 1, 20, 0.9), (3, 2, 7, 0.8), (3, 3, 4, 0.7), (0, 1, 7, 0.3), (0, 2, 31, 0.2), (0, 3, 4, 0.75)]
    scores = write_top_lists(folder / "scores.parquet", lists)
    found = select(folder, scores=scores, rule="min_rank", size=4)
    # 7 and 20 are first for a test each, 31 is second for one, 4 third for two: the one with the higher score decides.
    assert [(row["example_id"], row["test_id"]) for row in found] == [(7, 0), (20, 3), (31, 0), (4, 0)]
    assert [row["score"] for row in found] == pytest.approx([0.3, 0.9, 0.2, 0.75])


def test_nothing_beyond_the_top_lists_is_ranked(folder):
    scores = write_top_lists(folder / "scores.parquet", [(3, 1, 20, 0.9), (3, 2, 7, 0.8)])
    with pytest.raises(
        StudyError, match=r"3 rows are asked for, and 2 can be selected.*2 distinct.*Raise scoring\.top"
    ):
        select(folder, scores=scores, rule="min_rank", size=3)


@pytest.mark.parametrize(
    ("quotas", "most"),
    [({"old": 2, "*": 6}, {"old": 2, "new": 6, None: 6}), ({"": 1, "new": 0.5}, {"old": 10, "new": 5, None: 1})],
)
def test_quotas_bound_labels_and_the_best_within_them_are_taken(folder, quotas, most):
    order = np.argsort(-all_scores(folder).mean(axis=1), kind="stable")
    labels = [["old", "new", None][n % 3] for n in range(ROWS)]
    room, expected = dict(most), []
    for example in order.tolist():
        if room[labels[example]] and len(expected) < 10:
            room[labels[example]] -= 1
            expected.append(example)
    found = select(folder, rule="mean_score", size=10, quotas=quotas)
    assert [row["example_id"] for row in found] == expected


def test_a_quota_for_no_row_and_quotas_without_room_are_refused(folder):
    with pytest.raises(StudyError, match=r"no row of .* has the label 'ancient'; write one of '', 'new', 'old'"):
        select(folder, rule="mean_score", size=10, quotas={"ancient": 3})
    with pytest.raises(
        StudyError, match="20 rows are asked for, and 15 can be selected: 0 near duplicates and 25 rows"
    ):
        select(folder, rule="mean_score", size=20, quotas={"*": 5})
    with pytest.raises(StudyError, match=r"has the source_file 'other\.jsonl'"):
        select(folder, rule="mean_score", size=2, quota_by="source_file", quotas={"other.jsonl": 3})


def test_near_duplicates_are_folded_into_the_best_ranked(folder):
    long = "The old mill by the river was built of stone and oak in the spring of that year by three brothers"
    texts = [long, "Something else was said there on that evening", long + " indeed", long, "a b", "a b", "c d"]
    rows = [{"prompt": "Tell", "response": text} for text in texts]
    read_corpus(str(write_lines(folder / "twins.jsonl", rows)), folder / "train.parquet")
    write_embeddings(folder / "train_embeddings.parquet", -np.arange(7.0)[:, None])
    write_embeddings(folder / "test_embeddings.parquet", np.ones((8, 1)))
    found = select(folder, rule="mean_score", size=4, near_duplicates="once", near_duplicate=0.8)
    assert [(row["example_id"], row["near_duplicates"]) for row in found] == [(0, 2), (1, 0), (4, 1), (6, 0)]
    with pytest.raises(StudyError, match="5 rows are asked for, and 4 can be selected: 3 near duplicates"):
        select(folder, rule="mean_score", size=5, near_duplicates="once", near_duplicate=0.8)


def test_near_duplicates_are_found_across_blocks(folder, monkeypatch):
    monkeypatch.setattr("workflow_scripts.curation.choosing.ROWS_COMPARED", 4)
    monkeypatch.setattr("workflow_scripts.curation.choosing.ROWS_READ", 10)
    rng = np.random.default_rng(2)
    kinds = rng.integers(0, 9, 60)
    rows = [{"prompt": "Tell", "response": " ".join(f"w{kind}{place}" for place in range(12))} for kind in kinds]
    rows = [{**row, "response": f"{row['response']} x{n}"} for n, row in enumerate(rows)]
    read_corpus(str(write_lines(folder / "twins.jsonl", rows)), folder / "train.parquet")
    write_embeddings(folder / "train_embeddings.parquet", -np.arange(60.0)[:, None])
    write_embeddings(folder / "test_embeddings.parquet", np.ones((8, 1)))
    found = select(folder, rule="mean_score", size=9, near_duplicates="once", near_duplicate=0.7)
    firsts = sorted({int(np.flatnonzero(kinds == kind)[0]) for kind in range(9)})
    assert [row["example_id"] for row in found] == firsts
    # Up to the last row that was needed.
    seen = kinds[: firsts[-1] + 1]
    assert [row["near_duplicates"] for row in found] == [int((seen == kinds[one]).sum()) - 1 for one in firsts]


@pytest.mark.parametrize("rule", ["min_rank", "mean_score"])
def test_rows_that_equal_a_test_are_left_out(folder, rule):
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    rows[7] = json.loads((folder / "tests.jsonl").read_text().splitlines()[TESTS[0]])
    read_corpus(str(write_lines(folder / "rows.jsonl", rows)), folder / "train.parquet")
    lists = write_top_lists(folder / "scores.parquet", [(3, 1, 7, 9.0), (3, 2, 4, 8.0), (0, 1, 5, 7.0)])
    size = {"min_rank": 2, "mean_score": ROWS - 1}[rule]
    found = select(folder, rule=rule, size=size, scores=lists if rule == "min_rank" else None)
    assert len(found) == size
    assert 7 not in {row["example_id"] for row in found}
    assert read_metadata(folder / "selection.parquet")["equal_tests"] == "1"


def test_blocks_of_rows_over_their_quota_are_passed_over(tmp_path):
    labels = ["a"] * 3 + ["b"] * 1500 + ["a"] * 3
    rows = [
        {"prompt": f"Number {n} of many?", "response": f"It is {n}, the {n}th.", "label": label}
        for n, label in enumerate(labels)
    ]
    read_corpus(str(write_lines(tmp_path / "rows.jsonl", rows)), tmp_path / "train.parquet")
    ids = np.arange(len(rows))
    found = choose(tmp_path / "train.parquet", ids, None, quota_by="label", quotas={"b": 5}, near_duplicate=0.9)
    assert found.places.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 1503, 1504, 1505]
    assert found.over_quota == 1495
