"""The removal curve against losses made by hand."""

import numpy as np
import pyarrow as pa
import pytest
from base_set_scores import TESTS, effect, write_scores

from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.experiments.base_set import read_base
from workflow_scripts.experiments.draw_base import draw_base
from workflow_scripts.experiments.draw_removal import draw_removal
from workflow_scripts.experiments.evaluate_removal import evaluate_removal
from workflow_scripts.experiments.removal import RANDOM, WHOLE
from workflow_scripts.experiments.runs import MEASURED_SCHEMA


@pytest.fixture
def files(tiny, tmp_path):
    schema = pa.schema([("fold", pa.int32()), ("example_ids", pa.list_(pa.int32()))])
    write_table(tmp_path / "validation.parquet", pa.table({"fold": [0], "example_ids": [TESTS]}, schema=schema))
    corpora = [tiny.corpus, tiny.corpus, tmp_path / "validation.parquet", tiny.tokens]
    draw_base(*corpora, tmp_path / "base.parquet", seed=1, experiment="removal", base_examples=12)
    base = read_base(tmp_path / "base.parquet")
    scores = [[effect(test, example) for example in base.tolist()] for test in TESTS]
    write_scores(tmp_path / "groups" / "right" / "heldout.parquet", base, scores)
    write_scores(tmp_path / "groups" / "wrong" / "heldout.parquet", base, -np.array(scores))
    draw_removal(
        tmp_path / "base.parquet",
        tmp_path / "validation.parquet",
        [tmp_path / "groups" / method / "heldout.parquet" for method in ("right", "wrong")],
        tmp_path / "runs.parquet",
        seed=1,
        sizes=[1, 3],
        tests=2,
        random_draws=2,
        seeds=2,
    )
    return tmp_path


def test_the_runs_leave_out_each_tests_most_helpful_examples(files):
    rows = [row for row in read_table(files / "runs.parquet").to_pylist() if row["seed"] == 0]
    base = read_base(files / "base.parquet").tolist()
    assert [row["method"] for row in rows] == [WHOLE, *[RANDOM] * 4, *["right"] * 4, *["wrong"] * 4]
    for row in rows:
        if row["method"] == "right":
            best = sorted(base, key=lambda example: (-effect(row["test_id"], example), example))
            assert row["left_out"] == best[: row["size"]]
            assert row["test_ids"] == [row["test_id"]]


def test_a_rise_is_the_loss_without_less_the_loss_with(files):
    rows = read_table(files / "runs.parquet").to_pylist()
    measured = [
        {
            "run": row["run"],
            "seed": row["seed"],
            "test_id": test,
            "loss": 1.0 + row["seed"] + sum(effect(test, example) for example in row["left_out"]),
            "status": "ok",
        }
        for row in rows
        for test in row["test_ids"]
    ]
    write_table(files / "measured.parquet", pa.Table.from_pylist(measured, schema=MEASURED_SCHEMA))
    evaluate_removal(
        files / "runs.parquet",
        [files / "measured.parquet"],
        files / "removal.parquet",
        evaluation="heldout",
        bootstrap=50,
        confidence=0.95,
        seed=1,
        max_diverged_share=0.1,
    )
    found = {
        (row["method"], row["metric"], row["removed"]): row for row in read_table(files / "removal.parquet").to_pylist()
    }
    base = read_base(files / "base.parquet").tolist()
    best = {test: sorted((effect(test, example) for example in base), reverse=True) for test in TESTS}
    for size in (1, 3):
        by_hand = np.mean([sum(best[test][:size]) for test in TESTS])
        drawn = [row["left_out"] for row in rows if row["method"] == RANDOM and row["size"] == size]
        at_random = np.mean([sum(effect(test, example) for example in one) for one in drawn for test in TESTS])
        assert found["right", "loss_rise", size]["value"] == pytest.approx(by_hand, abs=1e-6)
        assert found[RANDOM, "loss_rise", size]["value"] == pytest.approx(at_random, abs=1e-6)
        over = found["right", "loss_rise_over_random", size]
        assert over["value"] == pytest.approx(by_hand - at_random, abs=1e-6)
        assert over["ci_low"] <= over["value"] <= over["ci_high"]
        assert found["wrong", "loss_rise", size]["value"] < found["right", "loss_rise", size]["value"]
