"""Runs on written lists: what is left out takes no part, each list is fine-tuned once, a kill costs nothing."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tiny_study import FINETUNING

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import write_frame
from workflow_scripts.core.parquet import read_table
from workflow_scripts.experiments.finetune_runs import finetune_runs
from workflow_scripts.experiments.runs import (
    MEASURED_SCHEMA,
    ListedRun,
    known_in_all,
    loss_rises,
    read_measured,
    read_share,
    write_runs,
)
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.losses import load_language_model
from workflow_scripts.language_model.tokens import TokenizedExample, read_examples
from workflow_scripts.study.sections import Finetuning

FIELDS = [("purpose", pa.string())]


@pytest.fixture(scope="module")
def listed(tiny):
    """Makes a run of the usable examples that stand at some places of the corpus."""
    ids = np.array(list(read_examples(tiny.tokens)), np.int32)

    def make(examples, left_out=(), tests=(70, 71)):
        return ListedRun(*(ids[np.array(part, int)] for part in (examples, left_out, tests)))

    return make


def rows(*runs):
    return [({"purpose": f"run {number}"}, run) for number, run in enumerate(runs)]


@pytest.fixture(scope="module")
def tuner(tiny):
    return Finetuner(load_language_model(tiny.language_model), **{**FINETUNING, "batch_examples": 8})


@pytest.fixture
def trained(monkeypatch):
    """Number of the seed of each run that is really trained."""
    runs = []
    finetune = Finetuner.finetune
    monkeypatch.setattr(Finetuner, "finetune", lambda self, *args: (runs.append(args[-1]), finetune(self, *args))[1])
    return runs


def measure(tiny, runs, measured, **changes):
    spec = {
        "language_model": tiny.language_model,
        "model": "builtin:tiny",
        "revision": None,
        "trust_remote_code": False,
        "experiment": "leave_out",
        "job": 0,
        "jobs": 1,
        "seed": 1,
        "new_tokens": None,
        "finetuning": Finetuning(**FINETUNING),
    }
    finetune_runs(runs, tiny.tokens, tiny.tokens, measured, **{**spec, **changes})
    return read_table(measured)


def test_what_is_left_out_takes_no_part(tiny, tuner):
    """One batch of eight, of which two are left out, is a batch of the other six."""
    examples = list(read_examples(tiny.tokens).values())
    muted = [
        TokenizedExample(one.tokens, len(one.tokens)) if i in (2, 5) else one for i, one in enumerate(examples[:8])
    ]
    assert tuner.finetune(muted, "seed")
    with_muted = tuner.losses(examples[70:])
    assert tuner.finetune([one for i, one in enumerate(examples[:8]) if i not in (2, 5)], "seed")
    np.testing.assert_allclose(with_muted, tuner.losses(examples[70:]), atol=1e-5)


def test_a_batch_of_which_nothing_is_left_is_no_divergence(tiny, tuner):
    examples = list(read_examples(tiny.tokens).values())
    muted = [TokenizedExample(one.tokens, len(one.tokens)) for one in examples[:8]]
    tuner.reset()
    before = tuner.losses(examples[70:])
    assert tuner.finetune(muted, "seed")
    np.testing.assert_array_equal(tuner.losses(examples[70:]), before)


def test_a_list_that_stands_twice_is_fine_tuned_once(tiny, listed, tmp_path, trained):
    one, same, other = listed(range(8)), listed(range(8)), listed(range(8), [3])
    write_runs(tmp_path / "runs.parquet", rows(one, same, other), FIELDS, seeds=2)
    table = measure(tiny, tmp_path / "runs.parquet", tmp_path / "measured.parquet")
    assert sorted(trained) == [0, 0, 1, 1]
    assert table.num_rows == 2 * 2 * 2
    assert set(table["run"].to_pylist()) == {one.name, other.name}
    assert set(table["answer"].to_pylist()) == {None}


def test_the_deal_to_jobs_changes_no_number(tiny, listed, tmp_path):
    runs = [listed(range(8), [left_out]) for left_out in range(5)]
    write_runs(tmp_path / "runs.parquet", rows(*runs), FIELDS, seeds=1)
    whole = measure(tiny, tmp_path / "runs.parquet", tmp_path / "whole.parquet")
    parts = [measure(tiny, tmp_path / "runs.parquet", tmp_path / f"{job}.parquet", job=job, jobs=3) for job in range(3)]
    order = [("run", "ascending"), ("test_id", "ascending")]
    assert pa.concat_tables(parts).sort_by(order).equals(whole.sort_by(order))
    assert sum(len(read_share(tmp_path / "runs.parquet", job, 3)) for job in range(3)) == 5


def test_runs_that_ended_before_a_kill_and_those_still_asked_for_are_kept(tiny, listed, tmp_path, trained, monkeypatch):
    runs, measured = tmp_path / "runs.parquet", tmp_path / "measured.parquet"
    write_runs(runs, rows(listed(range(8)), listed(range(9)), listed(range(10))), FIELDS, seeds=1)
    losses = Finetuner.losses

    def killed(self, examples):
        if len(trained) == 3:
            raise KeyboardInterrupt
        return losses(self, examples)

    monkeypatch.setattr(Finetuner, "losses", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(tiny, runs, measured)
    assert not measured.exists()
    monkeypatch.setattr(Finetuner, "losses", losses)
    trained.clear()
    measure(tiny, runs, measured)
    assert len(trained) == 1
    write_runs(runs, rows(listed(range(9)), listed(range(11))), FIELDS, seeds=1)
    trained.clear()
    table = measure(tiny, runs, measured)
    assert len(trained) == 1
    assert set(table["run"].to_pylist()) == {listed(range(9)).name, listed(range(11)).name}
    assert list(tmp_path.glob(".*")) == []


def test_a_job_without_a_run_is_an_empty_table(tiny, listed, tmp_path):
    one = listed(range(8))
    write_runs(tmp_path / "runs.parquet", rows(one), FIELDS, seeds=1)
    job = (int(one.name, 16) + 1) % 2
    assert measure(tiny, tmp_path / "runs.parquet", tmp_path / "none.parquet", job=job, jobs=2).num_rows == 0


def test_answers_are_written_where_asked_for(tiny, listed, tmp_path):
    write_runs(tmp_path / "runs.parquet", rows(listed(range(8))), FIELDS, seeds=1)
    table = measure(tiny, tmp_path / "runs.parquet", tmp_path / "measured.parquet", new_tokens=3)
    assert all(isinstance(answer, str) for answer in table["answer"].to_pylist())


def test_runs_that_diverge_are_told_or_stop_the_study(tmp_path):
    runs, path = tmp_path / "runs.parquet", tmp_path / "measured" / "0.parquet"
    one, other = (ListedRun(np.array([example]), np.array([], int), np.array([1])) for example in (5, 6))
    write_runs(runs, rows(one, other, one), FIELDS, seeds=1)
    rows_ = [(one.name, 0, 1, 2.0, None, "ok"), (other.name, 0, 1, None, None, "diverged")]
    measured = pd.DataFrame(rows_, columns=MEASURED_SCHEMA.names)
    write_frame(path, measured, MEASURED_SCHEMA)
    found = read_measured(runs, ["purpose"], [path], 0.5)
    assert found["purpose"].tolist() == ["run 0", "run 1", "run 2"]
    np.testing.assert_array_equal(found["loss"], [2.0, np.nan, 2.0])
    with pytest.raises(StudyError, match=r"1 of 2 fine-tuning runs diverged, more than .* \(0.4\)"):
        read_measured(runs, [], [path], 0.4)
    write_frame(path, measured[:1], MEASURED_SCHEMA)
    with pytest.raises(StudyError, match=r"1 of the 3 losses that .*runs\.parquet asks for are missing"):
        read_measured(runs, [], [path], 0.5)


def test_the_other_seeds_stand_for_a_whole_run_that_diverged():
    losses = pd.DataFrame(
        [("w", 0, 7, 1.0), ("w", 1, 7, np.nan), ("w", 2, 7, 2.0), ("a", 1, 7, 4.0), ("b", 1, 7, 3.0)],
        columns=["run", "seed", "test_id", "loss"],
    )
    rises = loss_rises(losses, losses["run"] == "w").set_index("run")["rise"]
    assert rises.to_dict() == {"a": 2.5, "b": 1.5}
    losses.loc[losses["run"] == "w", "loss"] = np.nan
    with pytest.raises(StudyError, match="the whole base set diverged"):
        loss_rises(losses, losses["run"] == "w")


def test_what_is_known_in_all_rows_is_kept():
    values = pd.DataFrame([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0], [np.nan] * 3], columns=[5, 6, 7])
    assert known_in_all(values).columns.tolist() == [5, 7]
    with pytest.raises(StudyError, match="for each test a run diverged"):
        known_in_all(pd.DataFrame([[1.0, np.nan], [np.nan, 2.0]]))
