"""Selection by ranks, and what it gains, against numbers made by hand."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.experiments.draw_selection import draw_selection
from workflow_scripts.experiments.evaluate_selection import TaskMeans, evaluate_selection
from workflow_scripts.experiments.runs import MEASURED_SCHEMA
from workflow_scripts.experiments.selection import FULL, RANDOM

LABELS = ["a", "b", None, "a", "b", "b", "c"]
RESPONSES = ["red", "blue", "x", "green grass", "blue", "the sky", "c"]
JUDGING = {"evaluation": "heldout", "bootstrap": 50, "confidence": 0.95, "seed": 1, "max_diverged_share": 0.1}


@pytest.fixture
def files(tmp_path):
    """Seven tests of three tasks, a pool of ten examples of which 0 can't be used, and one method's ranks."""
    corpus = {"example_id": range(len(LABELS)), "label": LABELS, "response": RESPONSES, "hash": list("0123456")}
    write_table(tmp_path / "test.parquet", pa.table(corpus))
    write_table(tmp_path / "train.parquet", pa.table({"hash": list("abcdefghij")}))
    schema = pa.schema([("fold", pa.int32()), ("example_ids", pa.list_(pa.int32()))])
    tests = {"fold": [0], "example_ids": [[6, 5, 4, 3, 2, 1, 0]]}
    write_table(tmp_path / "validation.parquet", pa.table(tests, schema=schema))
    write_table(tmp_path / "tokens.parquet", pa.table({"example_id": pa.array(range(1, 10), pa.int32())}))
    # Each test's first, second and third example.
    ranked = {0: [0, 3, 4], 3: [7, 3, 1], 1: [2, 8, 9], 4: [2, 9, 8], 5: [5, 2, 1], 2: [1, 2, 3], 6: [1, 2, 3]}
    rows = [
        {"test_id": test, "sign": sign, "rank": rank + 1, "example_id": example}
        for sign in ("helpful", "harmful")
        for test, examples in ranked.items()
        for rank, example in enumerate(examples if sign == "helpful" else [9, 9, 9])
    ]
    write_table(tmp_path / "scores" / "mine" / "heldout.parquet", pa.Table.from_pylist(rows))
    return tmp_path


def select(files, **changes):
    values = {"seed": 1, "examples": 2, "tasks": 2, "full_data": True, "seeds": 1, **changes}
    draw_selection(
        files / "train.parquet",
        files / "test.parquet",
        files / "validation.parquet",
        files / "tokens.parquet",
        [files / "scores" / "mine" / "heldout.parquet"],
        files / "runs.parquet",
        **values,
    )
    return read_table(files / "runs.parquet").to_pylist()


def test_each_task_gets_its_best_ranked_usable_examples(files):
    rows = {(row["method"], row["task"]): row for row in select(files)}
    assert rows["mine", "b"]["example_ids"] == [2, 5]  # both first for a test
    assert rows["mine", "a"]["example_ids"] == [7, 3]  # 0 is first too, but can't be used
    assert rows["mine", "a"]["test_ids"] == [0, 3]
    assert rows[FULL, None]["example_ids"] == list(range(1, 10))
    assert sorted(rows[FULL, None]["test_ids"]) == [0, 1, 3, 4, 5]
    assert len(set(rows[RANDOM, "a"]["example_ids"])) == 2
    assert (FULL, None) not in {(row["method"], row["task"]) for row in select(files, full_data=False)}


def test_a_row_that_equals_a_test_is_never_trained_on(files):
    write_table(files / "train.parquet", pa.table({"hash": list("ab5defghij")}))  # 2 is test 5
    rows = {(row["method"], row["task"]): row for row in select(files)}
    assert rows["mine", "b"]["example_ids"] == [5, 8]
    assert rows[FULL, None]["example_ids"] == [1, *range(3, 10)]
    assert 2 not in {example for row in rows.values() for example in row["example_ids"]}


def test_too_few_ranks_are_told(files):
    with pytest.raises(StudyError, match=r"ranks only 4 usable examples for the task 'a'.*Raise scoring.top"):
        select(files, examples=5)


def test_f1_is_the_mean_over_tasks_of_the_mean_over_tests(files):
    rows = select(files)
    # The method answers a right and b wrong, but for one word; random is always wrong.
    answers = {"mine": {0: "red", 3: "green", 1: "no", 4: "Blue!", 5: "no"}}
    measured = [
        {
            "run": row["run"],
            "seed": 0,
            "test_id": test,
            "loss": {"mine": 1.0, RANDOM: 2.0, FULL: 0.5}[row["method"]],
            "answer": answers.get(row["method"], {}).get(test, "nothing"),
            "status": "ok",
        }
        for row in rows
        for test in row["test_ids"]
    ]
    write_table(files / "measured.parquet", pa.Table.from_pylist(measured, schema=MEASURED_SCHEMA))
    evaluate_selection(
        files / "runs.parquet", files / "test.parquet", [files / "measured.parquet"], files / "table.parquet", **JUDGING
    )
    found = {(row["method"], row["metric"]): row for row in read_table(files / "table.parquet").to_pylist()}
    by_hand = ((1 + 2 / 3) / 2 + (0 + 1 + 0) / 3) / 2
    assert found["mine", "f1"]["value"] == pytest.approx(by_hand)
    assert found["mine", "f1_over_random"]["value"] == pytest.approx(by_hand)
    assert found[RANDOM, "f1"]["value"] == 0
    assert found[FULL, "loss"]["value"] == 0.5
    assert {metric for method, metric in found if method == RANDOM} == {
        "f1",
        "loss",
        "f1_over_first",
        "loss_below_first",
    }
    assert found["mine", "loss_below_random"]["value"] == 1.0
    assert found[FULL, "loss_below_first"]["value"] == 0.5
    assert found[FULL, "f1_over_first"]["value"] == pytest.approx(-by_hand)
    assert found[RANDOM, "f1_over_first"] == {**found[FULL, "f1_over_first"], "method": RANDOM}  # the same draws
    assert found["mine", "f1"]["ci_low"] <= by_hand <= found["mine", "f1"]["ci_high"]


def test_a_test_whose_run_diverged_is_left_out_of_all_rows(files):
    rows = [row for row in select(files) if row["method"] != FULL]
    measured = [
        {
            "run": row["run"],
            "seed": 0,
            "test_id": test,
            "loss": None if (row["method"], row["task"]) == ("mine", "b") else {"a": 1.0, "b": 9.0}[row["task"]],
            "answer": "red",
            "status": "diverged" if (row["method"], row["task"]) == ("mine", "b") else "ok",
        }
        for row in rows
        for test in row["test_ids"]
    ]
    write_table(files / "measured.parquet", pa.Table.from_pylist(measured, schema=MEASURED_SCHEMA))
    write_table(files / "runs.parquet", read_table(files / "runs.parquet").slice(0, len(rows)))
    paths = [files / "runs.parquet", files / "test.parquet", [files / "measured.parquet"], files / "table.parquet"]
    evaluate_selection(*paths, **{**JUDGING, "max_diverged_share": 0.5})
    found = {(row["method"], row["metric"]): row["value"] for row in read_table(files / "table.parquet").to_pylist()}
    assert found["mine", "loss"] == found[RANDOM, "loss"] == 1.0


def test_a_test_that_is_not_known_is_left_out():
    means = TaskMeans([np.array([0, 1]), np.array([2])], 20, np.random.default_rng(0))
    value, draws = means(pd.Series({0: 1.0, 1: np.nan, 2: 0.0}))
    assert value == 0.5
    assert draws.shape == (20,)
    assert set(np.round(draws[np.isfinite(draws)], 6)) <= {0.0, 0.5, 1.0}
