"""Tests that the encoder would be trained on: the same row stops the study, a near one is reported."""

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest


@pytest.fixture
def leaky(finished, tmp_path):
    """The smoke study before any fine-tuning, and a way to run it on tests made from the encoder's corpus."""
    workspace = finished.copy(tmp_path / "copy")
    shutil.rmtree(workspace.results / "targets")
    seen = pq.read_table(workspace.results / "corpora" / "train.parquet", columns=["prompt", "response"]).to_pylist()

    def run(*targets, change, **changes):
        rows = [{**row, "response": change(row["response"])} for row in seen[:30]]
        (workspace.folder / "tests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        # One job at a time: what runs before what is seen.
        return workspace, workspace.smoke(*targets, "--cores", "1", corpora__tests={"source": "tests.jsonl"}, **changes)

    return run


def test_a_leaked_row_stops_the_study_before_any_fine_tuning(leaky):
    workspace, done = leaky(change=str)
    assert done.returncode == 1
    message = "error in check_leaks: 20 test examples of 'heldout' occur word for word in 'train', which the encoder"
    assert message in done.stdout
    assert "`without: [<the test corpus>]` under corpora.train" in done.stdout
    assert "Traceback" not in done.stdout
    assert "rule finetune_shard" not in done.stdout
    assert not list(workspace.results.glob("targets/*/*.parquet"))


def test_rows_that_are_nearly_the_same_are_reported(leaky):
    wanted = "results/smoke/evaluation/leaks.parquet"
    workspace, done = leaky(wanted, change=lambda response: response + " indeed", judging__near_duplicate=0.5)
    assert done.returncode == 0, done.stdout
    said = int(re.search(r"check_leaks heldout: (\d+) of 20 tests have a near duplicate in train", done.stdout)[1])
    found = pq.read_table(workspace.folder / wanted).to_pylist()
    assert len(found) == said > 10
    for row in found:
        assert row["example_id"] == row["test_id"]
        assert 0.5 <= row["similarity"] < 1
