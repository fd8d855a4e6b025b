"""Curated data against random rows: which runs there are, which tests are held back, and losses made by hand."""

import numpy as np
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.experiments.draw_curated_data import draw_curated_data
from workflow_scripts.experiments.evaluate_curated_data import evaluate_curated_data
from workflow_scripts.experiments.runs import MEASURED_SCHEMA
from workflow_scripts.experiments.selection import RANDOM

POOL, TESTS, USED = list(range(0, 60, 2)), 12, [1, 4]
CHOSEN = [10, 4, 4 + 1, 20]  # 5 is no row that the LM can learn


def draw(folder, used=USED, chosen=CHOSEN, of_rows=(), trained_on=None):
    ids = {"train": POOL, "test": [n for n in range(TESTS) if n != 7]}
    for name, some in ids.items():
        write_table(folder / f"{name}_tokens.parquet", pa.table({"example_id": pa.array(some, pa.int32())}))
    # Tests 4 and 9 differ in spaces and capitals alone.
    prompts = [f"Question {n}?" for n in range(TESTS)]
    prompts[9] = "question  4"
    write_table(folder / "test.parquet", pa.table({"prompt": prompts}))
    write_table(folder / "train.parquet", pa.table({"prompt": pa.array(["Row?", *of_rows], pa.string())}))
    validation = pa.table({"fold": [0], "example_ids": pa.array([used], pa.list_(pa.int32()))})
    write_table(folder / "validation.parquet", validation)
    write_table(folder / "best/selection.parquet", pa.table({"example_id": pa.array(chosen, pa.int32())}))
    draw_curated_data(
        [folder / "best/selection.parquet"],
        folder / "train.parquet",
        folder / "test.parquet",
        trained_on,
        folder / "validation.parquet",
        folder / "train_tokens.parquet",
        folder / "test_tokens.parquet",
        folder / "runs.parquet",
        seed=1,
        random_draws=3,
        seeds=2,
    )
    return read_table(folder / "runs.parquet").to_pylist()


def test_a_test_that_the_encoder_learned_from_is_not_held_back(tmp_path):
    write_table(tmp_path / "targets.parquet", pa.table({"prompt": ["Question 8!", "Another?"]}))
    free, held_back = draw(tmp_path), draw(tmp_path, trained_on=tmp_path / "targets.parquet")
    assert set(free[0]["test_ids"]) - set(held_back[0]["test_ids"]) == {8}


def test_random_draws_have_the_size_of_the_selection_and_only_held_back_tests_are_measured(tmp_path):
    rows = draw(tmp_path)
    assert [(row["method"], row["draw"], row["seed"]) for row in rows[:4]] == [
        ("best", 0, 0),
        *[(RANDOM, number, 0) for number in range(3)],
    ]
    assert len(rows) == 2 * 4
    assert rows[0]["example_ids"] == [4, 10, 20]
    for row in rows:
        assert row["examples"] == len(set(row["example_ids"])) == 3
        assert set(row["example_ids"]) <= set(POOL)
        assert row["test_ids"] == [0, 2, 3, 5, 6, 8, 10, 11]
    assert len({row["run"] for row in rows}) == 4


def test_tests_that_are_among_the_rows_are_not_measured(tmp_path, capsys):
    rows = draw(tmp_path, of_rows=["question 3", "Question 8?"])
    assert {tuple(row["test_ids"]) for row in rows} == {(0, 2, 5, 6, 10, 11)}
    assert "2 tests are left out, whose prompts are among the rows of" in capsys.readouterr().err


def test_without_a_held_back_test_or_a_row_to_learn_there_is_no_experiment(tmp_path):
    with pytest.raises(StudyError, match=r"all usable tests of .*test.parquet choose rows, or share a prompt"):
        draw(tmp_path, used=list(range(TESTS)))
    with pytest.raises(StudyError, match="none of its rows has a response that the LM can learn"):
        draw(tmp_path, chosen=[5])


def evaluate(folder, gain, noise, diverged=None, max_diverged_share=0.0):
    rng = np.random.default_rng(0)
    rows = []
    for one in draw(folder):
        lower = gain if one["method"] == "best" else 0.0
        run = rng.normal(0, noise)
        for test in one["test_ids"]:
            loss = 2 + test / 10 - lower + run
            ok = one["method"] != diverged
            measured = {"loss": loss if ok else None, "status": "ok" if ok else "diverged"}
            rows.append({"run": one["run"], "seed": one["seed"], "test_id": test, **measured})
    write_table(folder / "measured.parquet", pa.Table.from_pylist(rows, MEASURED_SCHEMA))
    paths = [folder / "runs.parquet", [folder / "measured.parquet"], folder / "table.parquet"]
    judging = {"evaluation": "heldout", "bootstrap": 400, "confidence": 0.95, "seed": 1}
    evaluate_curated_data(*paths, **judging, max_diverged_share=max_diverged_share)
    rows = read_table(folder / "table.parquet").to_pylist()
    return {(row["method"], row["metric"]): (row["value"], row["ci_low"], row["ci_high"]) for row in rows}


def test_the_gain_is_paired_by_test(tmp_path):
    found = evaluate(tmp_path, gain=0.5, noise=0.0)
    mean = 2 + np.mean([0, 2, 3, 5, 6, 8, 10, 11]) / 10
    assert found["best", "loss"][0] == pytest.approx(mean - 0.5)
    assert found[RANDOM, "loss"][0] == pytest.approx(mean)
    # Tests differ by far more than this, and in both alike.
    assert found["best", "loss_below_random"] == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    assert found["best", "loss"][1] < mean - 0.55


def test_the_interval_knows_that_runs_come_out_differently(tmp_path):
    _, low, high = evaluate(tmp_path, gain=0.0, noise=0.3)["best", "loss_below_random"]
    assert high - low > 0.1


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_a_selection_whose_runs_all_diverged_is_not_known(tmp_path):
    found = evaluate(tmp_path, gain=0.5, noise=0.0, diverged="best", max_diverged_share=0.9)
    assert np.isnan(found["best", "loss"][0] or np.nan)
    assert found[RANDOM, "loss"][0] > 0
