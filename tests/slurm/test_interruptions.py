"""Jobs and drivers that are lost in mid-work on a real Slurm: same numbers, and nothing finished is done twice.

A stage is held in mid-work before its job is taken away, so that no test depends on how fast the machine is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

import pytest
from cluster import Cluster, output, wait_until
from driving import (
    GPU_CPUS,
    GPU_RULES,
    SLOWER,
    Checkout,
    Driver,
    Job,
    finished_jobs,
    hold,
    job_state,
    running_jobs,
    stage_processes,
)

SHARDS = [f"f000{fold}_s0000" for fold in range(4)]
SHARD = SHARDS[0]
SHARD_FILE = f"targets/train/{SHARD}.parquet"
ONE_SHARD = (*SLOWER, "--", f"results/smoke/{SHARD_FILE}")


@pytest.fixture(scope="module")
def undisturbed(smoke, tmp_path_factory):
    """The slower study, computed on this machine without Slurm while the tests break theirs."""
    checkout = smoke.checkout.copy(tmp_path_factory.mktemp("undisturbed") / "clone")
    # Another number of threads adds in another order: as many as the jobs have that the tests interrupt.
    threads = (f"{rule}={GPU_CPUS}" for rule in sorted(GPU_RULES))
    options = (f"--cores={min(8, os.cpu_count())}", "--set-threads", *threads)
    driver = checkout.start(*SLOWER, *options, "--", "targets", "lds", profile=())
    yield checkout, driver
    driver.kill()


def assert_same(checkout: Checkout, undisturbed: tuple[Checkout, Driver], *names: str) -> None:
    reference, driver = undisturbed
    assert driver.wait() == 0, driver.screen()[-3000:]
    for name in names:
        measured = [column for column in reference.table(name).column_names if column.endswith("seconds")]
        assert checkout.table(name, *measured).equals(reference.table(name, *measured)), f"{name} differs"


def hold_shards(cluster: Cluster, checkout: Checkout, *shards: str) -> dict[str, Job]:
    """Hold each shard as soon as it has finished a run, in whatever order; return their jobs."""
    held: dict[str, Job] = {}

    def hold_those_that_began() -> bool:
        for shard in shards:
            jobs = [] if shard in held else running_jobs(f"rule_finetune_shard_wildcards_train_{shard}")
            if jobs and checkout.finished_runs(shard):
                (held[shard],) = jobs
                assert hold(cluster, held[shard]), f"{shard} ended before it could be held"
        return len(held) == len(shards)

    wait_until(hold_those_that_began, f"a run of each of {', '.join(shards)}", 600)
    return held


def went_on_from(log: str, title: str) -> int:
    """Return how many units of work the last attempt found done, by its log."""
    found = re.search(rf"{title}.*: resuming at (\d+) of \d+", log)
    assert found, f"{title} started over:\n{log}"
    return int(found.group(1))


def memory_mb(record: dict[str, str]) -> float:
    """Return the memory that a job asked for, by Slurm's record of it."""
    number, unit = re.search(r"mem=([\d.]+)([MG])", record["Tres"]).groups()
    return float(number) * {"M": 1, "G": 1024}[unit]


@dataclass
class Losses:
    """What was taken from the study, and how far each shard had come."""

    checkout: Checkout
    driver: Driver
    lost: dict[str, tuple[str, Job]] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)
    steps: int = 0


def wait_for_states(lost: dict[str, tuple[str, Job]]) -> None:
    for shard, (state, job) in lost.items():
        wait_until(lambda state=state, job=job: job_state(job) == state, f"{shard} to be {state}", 120)


@pytest.fixture(scope="module")
def losses(cluster, smoke, undisturbed, tmp_path_factory):
    """The slower study, whose shards and training lose their jobs in every way there is."""
    checkout = smoke.checkout.copy(tmp_path_factory.mktemp("losses") / "clone")
    study = Losses(checkout, checkout.start(*SLOWER, "--", "targets", "lds"))
    jobs = hold_shards(cluster, checkout, *SHARDS)
    study.finished = {shard: checkout.finished_runs(shard) for shard in SHARDS}

    on_node1 = [shard for shard in SHARDS if jobs[shard].node == "node1"]
    on_node2 = [shard for shard in SHARDS if jobs[shard].node == "node2"]
    assert len(on_node1) >= 2, f"the shards are not spread as expected: {jobs}"
    assert on_node2, f"the shards are not spread as expected: {jobs}"
    # The node first, until Slurm knows that it is down: what is sent again before that may be sent there.
    cluster.lose_node("node2")
    study.lost = {shard: ("NODE_FAIL", jobs[shard]) for shard in on_node2}
    wait_for_states(study.lost)
    timed_out, *cancelled = on_node1
    output("scontrol", "update", f"JobId={jobs[timed_out].number}", "EndTime=now+1")
    output("scancel", *(jobs[shard].number for shard in cancelled))
    study.lost[timed_out] = ("TIMEOUT", jobs[timed_out])
    study.lost |= {shard: ("CANCELLED", jobs[shard]) for shard in cancelled}
    wait_for_states(study.lost)
    cluster.start_node("node2")

    state = ".encoder.*.state/state.safetensors"
    wait_until(lambda: any(checkout.results.glob(state)), "a checkpoint of the encoder", 900)
    (training,) = running_jobs("rule_train_encoder")
    assert hold(cluster, training), "the training ended before it could be held"
    output("scancel", training.number)
    assert study.driver.wait() == 0, study.driver.screen()[-5000:]
    return study


def test_every_kind_of_loss_is_sent_again_once(losses):
    assert {state for state, _ in losses.lost.values()} == {"CANCELLED", "TIMEOUT", "NODE_FAIL"}
    for shard, (state, job) in losses.lost.items():
        assert f"SLURM-job '{job.number}' failed" in losses.driver.screen(), f"{shard}: {state} went unnoticed"
        assert len(losses.driver.job_numbers(f"finetune_shard/train_{shard}")) == 2
    assert losses.driver.submitted().count("train_encoder") == 2


def test_a_job_that_is_sent_again_asks_for_more(cluster, losses):
    records = {job["JobId"]: job for job in finished_jobs(cluster.finished_jobs)}
    shard = next(shard for shard, (state, _) in losses.lost.items() if state == "CANCELLED")
    first, second = (records[number] for number in losses.driver.job_numbers(f"finetune_shard/train_{shard}"))
    assert int(second["TimeLimit"]) > int(first["TimeLimit"])
    assert memory_mb(second) > memory_mb(first)


def test_shards_go_on_from_their_last_finished_run(losses):
    for shard in losses.lost:
        log = losses.checkout.log(f"finetune_shard/train/{shard}")
        assert went_on_from(log, "finetune_shard train") >= losses.finished[shard] >= 1


def test_training_goes_on_from_its_last_checkpoint(losses):
    assert went_on_from(losses.checkout.log("train_encoder"), "train_encoder") >= 10


def test_after_all_losses_the_numbers_are_those_of_an_undisturbed_run(losses, undisturbed):
    assert_same(losses.checkout, undisturbed, "targets/train.parquet", "targets/heldout.parquet")
    assert_same(losses.checkout, undisturbed, "evaluation/lds.parquet")


def abandon(cluster: Cluster, checkout: Checkout, *arguments: str) -> Job:
    """Start a driver, kill it while a shard is in mid-work, and return the shard's job, which is held."""
    driver = checkout.start(*arguments)
    job = hold_shards(cluster, checkout, SHARD)[SHARD]
    driver.kill()
    return job


def test_after_a_killed_driver_the_readme_says_what_to_type(cluster, smoke, undisturbed, tmp_path):
    checkout = smoke.checkout.copy(tmp_path / "clone")
    abandon(cluster, checkout, *SLOWER, "--", "targets")
    again = checkout.start(*SLOWER, "--", "targets")
    assert again.wait(300) == 1, "a second driver must not wait for the first one's lock"
    assert "--unlock" in again.screen()
    finished = checkout.finished_runs(SHARD)
    logs = sorted((checkout.folder / ".snakemake" / "log").iterdir())
    run_ids = re.findall(r"SLURM run ID: (\S+)", "".join(log.read_text() for log in logs))
    output("scancel", f"--name={run_ids[-1]}")
    wait_until(lambda: not running_jobs("rule_finetune_shard"), "all jobs of the killed driver to end")
    checkout.run(*SLOWER, "--unlock")
    checkout.run(*SLOWER, "--", "targets")
    assert went_on_from(checkout.log(f"finetune_shard/train/{SHARD}"), "finetune_shard train") >= finished
    assert_same(checkout, undisturbed, "targets/train.parquet")


def test_without_scancel_a_twin_damages_nothing(cluster, smoke, undisturbed, tmp_path):
    checkout = smoke.checkout.copy(tmp_path / "clone")
    job = abandon(cluster, checkout, *ONE_SHARD)
    checkout.run(*SLOWER, "--unlock")
    checkout.run(*ONE_SHARD)
    assert running_jobs("rule_finetune_shard") == [job], "the twin ended too early to show anything"
    before = checkout.table(SHARD_FILE)
    for process in stage_processes(cluster, job):
        process.resume()
    wait_until(lambda: not running_jobs("rule_finetune_shard"), "the twin to end", 600)
    assert checkout.table(SHARD_FILE).equals(before)
    assert checkout.run(*ONE_SHARD).submitted() == []
    assert_same(checkout, undisturbed, SHARD_FILE)


def test_slurm_starts_a_preempted_shard_again_and_it_goes_on(cluster, smoke, undisturbed, tmp_path):
    checkout = smoke.checkout.copy(tmp_path / "clone")
    preemptible = {"AIRREP_GPU_PARTITION": "preemptible", "AIRREP_PREEMPTIBLE": "yes"}
    driver = checkout.start(*ONE_SHARD, **preemptible)
    job = hold_shards(cluster, checkout, SHARD)[SHARD]
    finished = checkout.finished_runs(SHARD)
    urgent = ["--partition=gpu", "--gpus=3", f"--nodelist={job.node}", "--output=/dev/null", "--wrap=sleep 5"]
    output("sbatch", *urgent)
    wait_until(lambda: job_state(job) != "RUNNING", "the shard to be preempted", 60)
    assert driver.wait() == 0, driver.screen()[-5000:]
    assert driver.submitted() == ["finetune_shard"], "Snakemake sent a job that Slurm starts again"
    assert went_on_from(checkout.log(f"finetune_shard/train/{SHARD}"), "finetune_shard train") >= finished
    assert_same(checkout, undisturbed, SHARD_FILE)
