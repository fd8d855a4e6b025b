"""Fine-tuning jobs under faults: the numbers are those of a straight run, and no finished run is made twice."""

import os
import random
import resource
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from faults import FLIP_SEED, changed_bytes, flipped, in_twin, killed
from tiny_study import FINETUNING

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, read_table, write_table
from workflow_scripts.core.stage import run_job
from workflow_scripts.language_model import finetuner as finetuning
from workflow_scripts.language_model import losses as language_model
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.report.results import gather_runs
from workflow_scripts.targets import finetune_shard as stage
from workflow_scripts.targets.collect_targets import collect_targets
from workflow_scripts.targets.run_cache import FinishedRuns

# Losses in nats per token, float32: another cut into forward passes adds in another order.
TOLERANCE = 1e-4
SIZES = {"folds": 1, "subsets_per_fold": 3, "seeds": 1}


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


def finished_runs(path):
    return {tuple(map(int, file.stem.split("_"))) for file in path.parent.glob(f".{path.stem}.*.runs/[0-9]*.parquet")}


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_at_random_moments(tiny, tmp_path, straight, trained, fault_table, kills):
    start = time.monotonic()
    tiny.block(tmp_path / "timed.parquet")
    seconds = time.monotonic() - start
    moments = random.Random(kills)
    path, injected, lost, wrong = tmp_path / "block.parquet", 0, 0, 0
    while injected < kills:
        before = finished_runs(path)
        injected += killed(lambda: tiny.block(path), moments.uniform(0, seconds / 2))
        lost += 0 if path.exists() else len(before - finished_runs(path))
        if path.exists() or injected == kills:
            finished = finished_runs(path)
            trained.clear()
            tiny.block(path)
            lost += len(finished & set(trained))
            wrong += not read_table(path).equals(straight)
            path.unlink()
    saw = "resuming at ... runs"
    fault_table.record("kill -9 of a shard at random moments", kills, saw, lost=lost, wrong=wrong)


def other_key(whole):
    """A block of another config, which is whole."""
    path = os.environ["OTHER_BLOCK"]
    with open(path, "rb") as file:
        return file.read()


DAMAGES = {
    "a shard file truncated": [lambda whole: whole[:-40], lambda whole: whole[: len(whole) // 2]],
    "a shard file emptied": [lambda whole: b""],
    "a shard file of zeros": [lambda whole: bytes(len(whole))],
    "a shard file from another config": [other_key],
}


@pytest.fixture(scope="module")
def block(tiny, tmp_path_factory):
    """One fold x three subsets, and the same of another config."""
    folder = tmp_path_factory.mktemp("block")
    path = tiny.block(folder / "block.parquet", folds=[0, 1])
    other = tiny.block(folder / "other.parquet", folds=[0, 1], finetuning={**FINETUNING, "learning_rate": 2e-3})
    os.environ["OTHER_BLOCK"] = str(other)
    return path


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_shard_is_done_again(tiny, block, trained, capsys, fault_table, name):
    expected, wrong, saw = read_table(block), 0, ""
    for damage in DAMAGES[name]:
        with changed_bytes(block, damage):
            collected = None
            try:
                collect_targets([block], block.with_name("t.parquet"), **SIZES, max_diverged_share=0)
            except StudyError as error:
                collected = str(error)
            # Of one block alone nobody can tell that it is of another config; the job that made it can.
            wrong += collected is None and damage is not other_key
            trained.clear()
            tiny.block(block, folds=[0, 1])
            assert len(trained) == 3
            wrong += not read_table(block).equals(expected)
            saw = "its runs are done again" if damage is other_key else collected.replace(str(block.parent), "...")
    fault_table.record(name, len(DAMAGES[name]), saw, wrong=wrong)


def test_a_block_of_another_config_among_others_stops(tiny, block, tmp_path, fault_table):
    other = tmp_path / "other.parquet"
    other.write_bytes(other_key(b""))
    third = tmp_path / "third.parquet"
    third.write_bytes(block.read_bytes())
    with pytest.raises(StudyError, match="made with other settings") as told:
        collect_targets([block, other, third], tmp_path / "t.parquet", **SIZES, max_diverged_share=0)
    fault_table.record("a shard of another config among the others", 1, str(told.value).replace(str(tmp_path), "..."))


def test_every_flipped_bit_is_noticed(block, fault_table):
    """Pages have checksums, the footer a seal; a bit that nothing depends on may go unnoticed."""
    expected, metadata = read_table(block), read_metadata(block)
    bits = random.Random(FLIP_SEED).sample(range(8 * block.stat().st_size), 1500)
    noticed = wrong = 0
    for bit in bits:
        with changed_bytes(block, flipped(bit)):
            try:
                table, found = read_table(block), read_metadata(block)
            except StudyError:
                noticed += 1
                continue
            wrong += not table.equals(expected)
            # Where the metadata is gone, the file is taken for one of another config.
            wrong += found.get("key") not in (None, metadata["key"])
    assert noticed > len(bits) / 2
    saw = f"can't be read as Parquet: {noticed:,} times; the other bits change nothing"
    fault_table.record("a shard file with a flipped bit", len(bits), saw, wrong=wrong)


def test_two_jobs_at_once_on_one_shard(tiny, tmp_path, straight, fault_table):
    path, wrong = tmp_path / "block.parquet", 0
    twin = os.fork()
    if twin == 0:
        try:
            tiny.block(path)
        finally:
            os._exit(0)
    tiny.block(path)
    wrong += not read_table(path).equals(straight)
    os.waitpid(twin, 0)
    wrong += not read_table(path).equals(straight)
    fault_table.record("two jobs at once on one shard", 1, "nothing", wrong=wrong)


def test_a_clock_that_was_set_back_decides_nothing(tiny, tmp_path, straight, trained, fault_table):
    path = tiny.block(tmp_path / "block.parquet", folds=[0, 1], indexes=[0, 2])
    os.utime(path, (4e9, 4e9))
    trained.clear()
    tiny.block(path)
    wrong = not read_table(path).equals(straight)
    fault_table.record("clock set back (files from the future)", 1, "nothing", lost=6 - 2 - len(trained), wrong=wrong)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["GPU", "Python", "CPU"],
)
def test_out_of_memory_gets_smaller_passes(tiny, block, tmp_path, monkeypatch, capsys, fault_table, error):
    expected, failures = read_table(block), []

    def narrow(forward):
        def checked(lm, examples, logits):
            if sum(len(example.tokens) for example in examples) > 100:
                failures.append(1)
                raise error
            return forward(lm, examples, logits)

        return checked

    monkeypatch.setattr(finetuning, "summed_losses", narrow(finetuning.summed_losses))
    monkeypatch.setattr(language_model, "example_losses", narrow(language_model.example_losses))
    monkeypatch.setattr(language_model, "use_packing", lambda lm, precision: setattr(lm, "airrep_packed", False))
    found = read_table(tiny.block(tmp_path / "block.parquet", folds=[0, 1]))
    differences = [np.abs(found[name].to_numpy() - expected[name].to_numpy()).max() for name in ("loss", "base_loss")]
    assert found.drop_columns(["loss", "base_loss"]).equals(expected.drop_columns(["loss", "base_loss"]))
    said = next(line for line in capsys.readouterr().err.splitlines() if "out of memory" in line)
    name = f"out of memory in a shard ({type(error).__name__})"
    fault_table.record(name, len(failures), said, wrong=int(max(differences) > TOLERANCE))


def test_one_example_that_no_memory_holds_is_told(tiny, tmp_path, monkeypatch):
    def full(lm, examples, logits):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(finetuning, "summed_losses", full)
    with pytest.raises(StudyError, match=r"one example of \d+ tokens\. Lower language_model\.max_tokens"):
        tiny.block(tmp_path / "block.parquet")


def test_a_diverging_run_is_recorded_left_out_and_counted(tiny, tmp_path, monkeypatch, fault_table, block):
    finetune = Finetuner.finetune

    def diverging(self, examples, *seed):
        return finetune(self, examples, *seed) and seed[-2] != 1

    monkeypatch.setattr(Finetuner, "finetune", diverging)
    path, targets = tiny.block(tmp_path / "block.parquet", folds=[0, 1]), tmp_path / "train.parquet"
    with pytest.raises(StudyError, match=r"1 of 3 fine-tuning runs diverged.*Lower finetuning\.learning_rate") as told:
        collect_targets([path], targets, **SIZES, max_diverged_share=0.3)
    collect_targets([path], targets, **SIZES, max_diverged_share=0.4)
    (counted,) = gather_runs([targets])
    assert (counted.runs, counted.diverged) == (3, 1)
    table = read_table(targets).to_pandas()
    gone = table[table["status"] == "diverged"]
    assert set(gone["subset"]) == {1}
    assert gone[["loss", "delta", "label"]].isna().all(axis=None)
    kept = read_table(path).filter(pa.array(read_table(path)["index"].to_numpy() != 1))
    whole = read_table(block)
    wrong = not kept.equals(whole.filter(pa.array(whole["index"].to_numpy() != 1)))
    fault_table.record("a diverging run (NaN loss)", 1, str(told.value), wrong=wrong)


def test_a_full_disk_is_one_message_and_costs_no_finished_run(tiny, tmp_path, straight, trained, fault_table):
    """A limit on the size of files stands for the disk: what does not fit is refused by the system alike."""
    path, log = tmp_path / "results" / "block.parquet", tmp_path / "results" / "log"
    tiny.block(path, folds=[0, 1], indexes=[0, 2])
    whole = path.read_bytes()

    def job(losses):
        tiny.block(losses)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        smk = SimpleNamespace(
            input={},
            output={"losses": str(path)},
            params=SimpleNamespace(spec={"version": 1}),
            threads=1,
            resources={},
            log=[str(log)],
            rule="finetune_shard",
        )
        run_job(smk, job)

    assert in_twin(limited) == 1
    said = log.read_text()
    assert "Traceback" not in said
    assert path.read_bytes() == whole
    trained.clear()
    tiny.block(path)
    lost = len({(0, 0, 0), (0, 1, 0)} & set(trained))
    assert [file.name for file in path.parent.iterdir() if file.name.endswith(".tmp")] == []
    message = said[said.index("error in") :].replace(str(tmp_path), "...")
    fault_table.record("disk full in a shard", 1, message, lost=lost, wrong=not read_table(path).equals(straight))


def test_a_run_that_another_job_wrote_half_is_none(tiny, tmp_path, straight, fault_table):
    """What a killed job leaves under a temporary name is never read."""
    path = tmp_path / "block.parquet"
    finished = FinishedRuns(path, "key", stage.SCHEMA.names[:3])
    folder = finished.folder
    table = pa.table({"fold": pa.array([0], pa.int32())})
    write_table(folder / "0_0_0.parquet", table, key="key")
    (folder / ".0_1_0.parquet.host.1.tmp").write_bytes((folder / "0_0_0.parquet").read_bytes()[:50])
    tiny.block(path)
    fault_table.record("half-written runs in the folder", 2, "nothing", wrong=not read_table(path).equals(straight))
