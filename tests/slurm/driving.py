"""Drivers in copies of the repository, and what their jobs do: by Slurm's word and by the process table."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from cluster import Cluster, output

from workflow_scripts.study.job_groups import GROUPS

ROOT = Path(__file__).parents[2]
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv", ".snakemake", "results", "shared", "__pycache__", ".*_cache")
GPU_CPUS = 2
EDITS = {
    "AIRREP_ACCOUNT": "lab",
    "AIRREP_PARTITION": "cpu",
    "AIRREP_GPU_PARTITION": "gpu",
    "AIRREP_GPU_CPUS": str(GPU_CPUS),
}
GPU_RULES = {"pretrain_base_lm", "finetune_shard", "init_encoder", "train_encoder", "embed_corpus"}
# The cluster's GPUs are made up.
WITHOUT_GPUS = {"AIRREP_GPU_OPTIONAL": "yes"}
SMOKE = ("--configfile", "configs/smoke.yaml")
# The profile asks Slurm too seldom for jobs of seconds.
SOON = ("--slurm-init-seconds-before-status-checks", "2")
SLOWER = (*SMOKE, "tests/slurm/slower.yaml", *SOON)
GROWN = (*SMOKE, "tests/slurm/grown.yaml", *SOON)
APPENDED = (*SMOKE, "tests/slurm/appended.yaml", *SOON)


class Checkout:
    """A copy of the repository as a user would have it, with results of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.results = folder / "results" / "smoke"

    @classmethod
    def of_repository(cls, folder: Path) -> Checkout:
        """Copy the files of the repository, without results, into the new `folder`."""
        shutil.copytree(ROOT, folder, ignore=LEFT_BEHIND)
        return cls(folder)

    def copy(self, folder: Path) -> Checkout:
        """Copy everything, results and Snakemake's memory of them included, into the new `folder`."""
        shutil.copytree(self.folder, folder)
        return Checkout(folder)

    def start(self, *arguments: str, profile: tuple[str, ...] = ("--profile", "slurm"), **edits: str) -> Driver:
        """Start `snakemake --profile slurm` with `arguments`, and with `edits` of what the environment sets."""
        return Driver(self.folder, [*profile, *arguments], {**EDITS, **edits})

    def run(self, *arguments: str, **options) -> Driver:
        """Run `snakemake --profile slurm` with `arguments` to its good end."""
        driver = self.start(*arguments, **options)
        assert driver.wait() == 0, driver.screen()[-5000:]
        return driver

    def table(self, name: str, *left_out: str) -> pa.Table:
        """Read a table of the results without the columns `left_out`."""
        return pq.read_table(self.results / name).drop_columns(list(left_out)).replace_schema_metadata()

    def log(self, name: str) -> str:
        """Read the log of a rule's last attempt."""
        return (self.results / "logs" / f"{name}.log").read_text()

    def finished_runs(self, block: str, pool: str = "train") -> int:
        """Return how many runs of an unfinished shard are on disk."""
        return len(list((self.results / "targets" / pool).glob(f".{block}.*.runs/*.parquet")))


class Driver:
    """A Snakemake process and what it prints."""

    def __init__(self, folder: Path, arguments: list[str], edits: dict[str, str]):
        self.file = folder / f"screen.{time.monotonic_ns()}.txt"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with open(self.file, "w") as screen:
            self.process = subprocess.Popen(
                ["snakemake", *arguments],
                cwd=folder,
                env={**os.environ, **WITHOUT_GPUS, **edits, "PATH": path},
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float = 1800) -> int:
        """Return the exit code; a driver that hangs is ended and counts as a failure."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def kill(self) -> None:
        """End the driver as `kill -9` does; its jobs run on."""
        self.process.kill()
        self.process.wait()

    def screen(self) -> str:
        return self.file.read_text()

    def submitted(self) -> list[str]:
        """Return the rules of the jobs that went to Slurm, one for each submission: those of a group joined by `_`."""
        names = re.findall(r"submitted with SLURM jobid \d+ \(log: \S*?/(?:rule|group)_(\w+)/", self.screen())
        return [without_group(name) for name in names]

    def job_numbers(self, purpose: str) -> list[str]:
        """Return the numbers of the jobs sent for e.g. `finetune_shard/train_f0000_s0000`, in their order."""
        return re.findall(rf"submitted with SLURM jobid (\d+) \(log: \S*?/rule_{purpose}/", self.screen())


def without_group(name: str) -> str:
    """Return the rules in the name of a submission, which for a group begins with the group's own name."""
    return re.sub(rf"^(?:{'|'.join(GROUPS)})_(?=fit_|embed_|choose_|score_)", "", name)


@dataclass(frozen=True)
class Job:
    """A job that Slurm knows: where it runs and what for, e.g. `rule_finetune_shard_wildcards_train_f0000_s0000`."""

    number: str
    node: str
    purpose: str


def running_jobs(purpose: str) -> list[Job]:
    """Return the running jobs whose comment begins with `purpose`."""
    lines = output("squeue", "--noheader", "--states=RUNNING", "--format=%i|%N|%k").splitlines()
    jobs = [Job(*line.split("|")) for line in lines]
    return [job for job in jobs if job.purpose.startswith(purpose)]


def job_state(job: Job) -> str:
    """Return Slurm's word for the state of a job, e.g. RUNNING, CANCELLED or NODE_FAIL."""
    return output("squeue", "--noheader", "--states=all", f"--jobs={job.number}", "--format=%T")


def stage_processes(cluster: Cluster, job: Job) -> list[psutil.Process]:
    """Return the processes in which the stage of a job runs, without Snakemake's around it."""
    found = []
    for process, environment in cluster.processes():
        with contextlib.suppress(psutil.Error):
            in_stage = "/.snakemake/scripts/" in " ".join(process.cmdline())
            if in_stage and environment.get("SLURM_JOB_ID") == job.number:
                found.append(process)
    return found


def hold(cluster: Cluster, job: Job) -> bool:
    """Hold the stage of a job where it stands, as a hung file system does; say whether there was one."""
    held = stage_processes(cluster, job)
    for process in held:
        process.suspend()
    return bool(held)


class GpuWatch:
    """Looks all the time at which GPUs the processes of running jobs were given.

    `samples` holds, for each look, (job number, node, devices) of every running job; `purposes` what each is for.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.samples: list[set[tuple[str, str, str]]] = []
        self.purposes: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> GpuWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            self.samples.append(
                {
                    (number, environment["SLURMD_NODENAME"], environment.get("CUDA_VISIBLE_DEVICES", ""))
                    for _, environment in self.cluster.processes()
                    if (number := environment.get("SLURM_JOB_ID"))
                }
            )
            lines = output("squeue", "--noheader", "--states=all", "--format=%i|%k").splitlines()
            self.purposes |= dict(line.split("|", 1) for line in lines)

    def devices(self) -> dict[str, set[str]]:
        """Return for each job all that its processes had as CUDA_VISIBLE_DEVICES."""
        found: dict[str, set[str]] = {}
        for number, _, devices in set().union(*self.samples):
            found.setdefault(number, set()).add(devices)
        return found


def finished_jobs(records: Path) -> list[dict[str, str]]:
    """Return Slurm's own records of the jobs that ended, as dicts of e.g. JobId, JobState, NodeList, Account."""
    return [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in records.open()]
