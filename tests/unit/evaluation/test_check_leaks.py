import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.evaluation.check_leaks import check_leaks


def corpus(path, rows):
    prompts, responses = zip(*rows, strict=True)
    hashes = [f"{prompt}|{response}" for prompt, response in rows]
    columns = {"example_id": range(len(rows)), "prompt": prompts, "response": responses, "hash": hashes}
    # The first row of the source was refused.
    columns |= {"source_file": [f"{path.stem}.jsonl"] * len(rows), "source_row": range(2, len(rows) + 2)}
    write_table(path, pa.table({name: list(values) for name, values in columns.items()}))
    return path


def check(tmp_path, seen, tests, chosen, near_duplicate=0.6, lm_corpora=()):
    validation = tmp_path / "held.validation.parquet"
    write_table(validation, pa.table({"fold": [0], "example_ids": [chosen]}))
    leaks = tmp_path / "leaks.parquet"
    check_leaks(
        corpus(tmp_path / "train.parquet", seen),
        [corpus(tmp_path / "tests.parquet", tests)],
        [validation],
        leaks,
        lm_corpora,
        near_duplicate=near_duplicate,
    )
    return read_table(leaks).to_pylist()


SEEN = [("what is the capital of France", "it is Paris"), ("name a colour of the sky", "blue"), ("x", "y")]


def test_an_exact_duplicate_is_refused(tmp_path):
    with pytest.raises(
        StudyError,
        match=r"1 test examples of 'held' occur word for word in 'train'.*row 3 of tests.jsonl is its row 3 of train",
    ):
        check(tmp_path, SEEN, [("new question here", "yes"), SEEN[1]], [0, 1])


def test_an_lm_that_has_read_a_test_is_refused(tmp_path):
    tests = [("new question here", "yes"), ("a", "b"), ("c", "d")]
    read = corpus(tmp_path / "pretraining.parquet", [("c", "d"), ("a", "b")])
    with pytest.raises(StudyError, match="1 test examples of 'held' occur word for word in 'pretraining', which the"):
        check(tmp_path, SEEN, tests, [0, 1], lm_corpora=[read])
    assert check(tmp_path, SEEN, tests, [0], lm_corpora=[read]) == []


def test_a_leaked_row_that_is_no_test_does_not_count(tmp_path):
    assert check(tmp_path, SEEN, [("a new question here", "yes it is"), SEEN[1]], [0]) == []


def test_a_near_duplicate_is_reported_with_its_jaccard_similarity(tmp_path):
    # 8 of 9 words in the same order: 7 triples each, 6 in common, 8 in all.
    tests = [("unrelated words stand in this row", "no"), ("what is the capital of France", "it is Rome")]
    found = check(tmp_path, SEEN, tests, [0, 1])
    assert [(row["evaluation"], row["test_id"], row["example_id"]) for row in found] == [("held", 1, 0)]
    where = {name: found[0][name] for name in ("test_file", "test_row", "example_file", "example_row")}
    assert where == {"test_file": "tests.jsonl", "test_row": 3, "example_file": "train.jsonl", "example_row": 2}
    assert found[0]["similarity"] == pytest.approx(6 / 8)
    assert check(tmp_path, SEEN, tests, [0, 1], near_duplicate=0.8) == []
