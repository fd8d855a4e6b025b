"""The cut into blocks, a kill and a growth change no number."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tiny_study import FINETUNING, SAMPLING

from workflow_scripts.core.files import earlier_of, keep_earlier
from workflow_scripts.core.parquet import read_table
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.study.stage_versions import STAGE_VERSIONS
from workflow_scripts.targets.run_cache import FinishedRuns


@pytest.fixture(scope="module")
def straight(tiny):
    """Two folds x three subsets in one block."""
    return read_table(tiny.block(tiny.folder / "straight.parquet"))


@pytest.fixture(scope="module")
def straight_of_three(tiny):
    """Three folds x two subsets in one block."""
    return read_table(tiny.block(tiny.folder / "straight_of_three.parquet", folds=[0, 3], indexes=[0, 2]))


@pytest.fixture
def trained(monkeypatch):
    """The runs that are really trained, as (fold, index, seed)."""
    runs = []
    finetune = Finetuner.finetune

    def counted(self, examples, *seed):
        runs.append(seed[-3:])
        return finetune(self, examples, *seed)

    monkeypatch.setattr(Finetuner, "finetune", counted)
    return runs


def by_run(tables):
    table = pa.concat_tables(tables)
    return table.sort_by([(name, "ascending") for name in ("fold", "index", "seed")])


def test_block_holds_every_run_and_judged_example(straight):
    runs = {(row["fold"], row["index"], row["seed"]) for row in straight.to_pylist()}
    assert runs == {(fold, index, 0) for fold in range(2) for index in range(3)}
    assert straight.num_rows == 6 * SAMPLING["evaluated_examples"]
    assert set(straight["status"].to_pylist()) == {"ok"}
    base = {(row["fold"], row["example_id"], row["base_loss"]) for row in straight.to_pylist()}
    assert len(base) == 2 * SAMPLING["evaluated_examples"]


@pytest.mark.parametrize(("folds_per_block", "subsets_per_block"), [(1, 1), (1, 3), (2, 2)])
def test_block_size_changes_no_number(tiny, tmp_path, straight, folds_per_block, subsets_per_block):
    blocks = []
    for fold in range(0, 2, folds_per_block):
        for index in range(0, 3, subsets_per_block):
            last_fold, last_index = min(fold + folds_per_block, 2), min(index + subsets_per_block, 3)
            path = tmp_path / f"{fold}_{index}.parquet"
            tiny.block(path, folds=[fold, last_fold], indexes=[index, last_index])
            blocks.append(read_table(path))
    assert by_run(blocks).equals(by_run([straight]))


def test_a_grown_block_keeps_its_runs(tiny, tmp_path, straight, trained):
    path = tiny.block(tmp_path / "block.parquet", folds=[0, 1], indexes=[0, 2])
    assert len(trained) == 2
    trained.clear()
    tiny.block(path)
    assert trained == [(0, 2, 0), (1, 0, 0), (1, 1, 0), (1, 2, 0)]
    assert read_table(path).equals(straight)


def test_runs_of_the_earlier_version_are_kept(tiny, tmp_path, straight, trained):
    path = tiny.block(tmp_path / "block.parquet", folds=[0, 1], indexes=[0, 2])
    path.rename(earlier_of(path))
    trained.clear()
    tiny.block(path)
    assert trained == [(0, 2, 0), (1, 0, 0), (1, 1, 0), (1, 2, 0)]
    assert read_table(path).equals(straight)


def test_a_second_seed_is_another_run_of_the_same_subset(tiny, tmp_path, straight, trained):
    path = tmp_path / "block.parquet"
    table = read_table(tiny.block(path, folds=[0, 1], indexes=[0, 1], seeds=2)).to_pandas()
    one, two = (table[table["seed"] == seed] for seed in (0, 1))
    assert (one["loss"].to_numpy() == straight.to_pandas().query("fold == 0 and index == 0")["loss"].to_numpy()).all()
    assert (one["example_id"].to_numpy() == two["example_id"].to_numpy()).all()
    assert not (one["loss"].to_numpy() == two["loss"].to_numpy()).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"finetuning": {**FINETUNING, "learning_rate": 2e-3}},
        {"sampling": {**SAMPLING, "seed": 2}},
    ],
    ids=["settings", "seed"],
)
def test_runs_made_with_other_values_are_not_taken(tiny, tmp_path, trained, changes):
    path = tiny.block(tmp_path / "block.parquet", folds=[0, 1], indexes=[0, 1])
    tiny.block(path, folds=[0, 1], indexes=[0, 1], **changes)
    assert len(trained) == 2


def test_runs_of_an_older_version_of_the_stage_are_not_taken(tiny, tmp_path, trained, monkeypatch):
    path = tiny.block(tmp_path / "block.parquet", folds=[0, 1], indexes=[0, 1])
    monkeypatch.setitem(STAGE_VERSIONS, "finetune_shard", STAGE_VERSIONS["finetune_shard"] + 1)
    tiny.block(path, folds=[0, 1], indexes=[0, 1])
    assert len(trained) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([(0, 1), (1, 3)], [(0, 3)]),
        ([(0, 3)], [(0, 1), (1, 2), (2, 3)]),
        ([(0, 2), (2, 3)], [(0, 1), (1, 3)]),
    ],
    ids=str,
)
def test_runs_of_jobs_of_another_size_are_taken(tiny, tmp_path, trained, straight_of_three, before, after):
    """As when `folds_per_job` has changed: Snakemake deletes the new blocks, and keeps them as earlier ones."""
    for number, folds in enumerate(before):
        tiny.block(tmp_path / f"f{number:04d}_s0000.parquet", folds=folds, indexes=[0, 2])
    paths = [tmp_path / f"f{number:04d}_s0000.parquet" for number in range(len(after))]
    for path in paths:
        keep_earlier(path)
        path.unlink(missing_ok=True)
    done = len(trained)
    for path, folds in zip(paths, after, strict=True):
        tiny.block(path, folds=folds, indexes=[0, 2])
    assert len(trained) == done
    assert pa.concat_tables([read_table(path) for path in paths]).equals(straight_of_three)


def test_runs_of_an_interrupted_job_of_another_size_are_taken(tiny, tmp_path, trained, straight_of_three, monkeypatch):
    """As when a job doesn't fit its time limit, and `folds_per_job` is lowered."""
    publish = FinishedRuns.publish
    monkeypatch.setattr(FinishedRuns, "publish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny.block(tmp_path / "f0000_s0000.parquet", folds=[0, 2], indexes=[0, 2])
    monkeypatch.setattr(FinishedRuns, "publish", publish)
    trained.clear()
    paths = [tmp_path / f"f{number:04d}_s0000.parquet" for number in range(3)]
    for number, path in enumerate(paths):
        tiny.block(path, folds=[number, number + 1], indexes=[0, 2])
    assert [run[0] for run in trained] == [2, 2]
    assert sorted(tmp_path.iterdir()) == paths
    assert pa.concat_tables([read_table(path) for path in paths]).equals(straight_of_three)


def test_files_that_hold_none_of_the_runs_are_not_read(tiny, tmp_path, trained, monkeypatch):
    paths = [tmp_path / f"f{number:04d}_s0000.parquet" for number in range(3)]
    for number, path in enumerate(paths):
        tiny.block(path, folds=[number, number + 1], indexes=[0, 1])
    keep_earlier(paths[0])
    paths[0].unlink()
    trained.clear()
    read, take = [], FinishedRuns._take
    monkeypatch.setattr(
        FinishedRuns, "_take", lambda self, path, *wanted: read.append(path.name) or take(self, path, *wanted)
    )
    tiny.block(paths[0], folds=[0, 1], indexes=[0, 2])
    assert trained == [(0, 1, 0)]
    assert read == [".f0000_s0000.parquet.earlier"]


def test_a_truncated_file_is_done_again(tiny, tmp_path, straight, trained, capsys):
    path = tiny.block(tmp_path / "block.parquet")
    path.write_bytes(path.read_bytes()[:-40])
    tiny.block(path)
    assert len(trained) == 12
    assert read_table(path).equals(straight)
    assert "block.parquet" in capsys.readouterr().err


def test_a_killed_block_goes_on_to_the_same_numbers(tiny, tmp_path, straight, trained):
    path = tmp_path / "block.parquet"
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tiny_study import TinyStudy
from workflow_scripts.targets.run_cache import FinishedRuns
add = FinishedRuns.add
def slow(self, run, table):
    add(self, run, table)
    time.sleep(0.5)
FinishedRuns.add = slow
folder = Path({str(tiny.folder)!r})
TinyStudy(folder, folder / "train.parquet", folder / "language_model", folder / "tokens.parquet", None).block(
    Path({str(path)!r}))
"""
    job = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while job.poll() is None and len(list(tmp_path.glob(".block.*.runs/[0-9]*.parquet"))) < 3:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not path.exists()
    tiny.block(path)
    assert 1 <= len(trained) <= 3
    assert read_table(path).equals(straight)
    assert list(tmp_path.iterdir()) == [path]


def test_a_diverged_run_is_a_row_with_its_status(tiny, tmp_path):
    path = tmp_path / "block.parquet"
    tiny.block(path, folds=[0, 1], indexes=[0, 2], finetuning={**FINETUNING, "learning_rate": 1e30})
    table = read_table(path)
    assert set(table["status"].to_pylist()) == {"diverged"}
    assert table["loss"].null_count == table.num_rows
    assert np.isfinite(table["base_loss"].to_numpy()).all()


def test_a_faulty_run_is_no_result(tiny, tmp_path, monkeypatch):
    def broken(self, examples, *seed):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Finetuner, "finetune", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        tiny.block(tmp_path / "block.parquet")
    assert not (tmp_path / "block.parquet").exists()


def test_finished_runs_of_a_folder_without_any_are_empty(tmp_path):
    assert (0, 0, 0) not in FinishedRuns(tmp_path / "block.parquet", "key", ("fold", "index", "seed"))


def test_a_finished_run_that_measured_nothing_is_done_again(tmp_path):
    names = ("fold", "index", "seed")
    losses = tmp_path / "block.parquet"
    FinishedRuns(losses, "key", names).add((0, 0, 0), pa.table({name: pa.array([], pa.int32()) for name in names}))
    assert (0, 0, 0) not in FinishedRuns(losses, "key", names)


def test_another_process_that_publishes_the_block_meanwhile_ends_nothing(tiny, tmp_path, straight, monkeypatch):
    """It deletes the folder of single runs while one of them is written there."""
    deleted = []

    def publish(descriptor):
        for folder in tmp_path.glob(".block.*.runs"):
            shutil.rmtree(folder)
            deleted.append(folder)

    monkeypatch.setattr("workflow_scripts.core.files.os.fsync", publish)
    path = tiny.block(tmp_path / "block.parquet")
    assert len(deleted) == 6
    assert read_table(path).equals(straight)
