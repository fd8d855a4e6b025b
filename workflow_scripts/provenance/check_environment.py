"""Report on the machine from inside a job: GPUs, driver, torch, free disk, and the speed of the results folder."""

import json
import os
import platform
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.gpus import gpu_problem, torch_facts
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage

LOW_DISK_GIB = 10
SLOW_FOLDER_SECONDS = 0.2


def check_environment(environment: Path, gpus: int, require_gpu: bool) -> None:
    """Print what a job finds on its machine, and write it.

    Parameters
    ----------
    environment: JSON file to write, in the results folder.
    gpus: how many GPUs the job asked for.
    require_gpu: whether to fail even if the node has no GPU driver at all, as on a test cluster with simulated GPUs.

    Raises
    ------
    StudyError: the job asked for GPUs and can't use them; the message says what to change.
    """
    environment.parent.mkdir(parents=True, exist_ok=True)
    facts = {**describe_machine(), **describe_gpus(), **describe_folder(environment.parent)}
    facts["warnings"] = folder_warnings(facts)
    if gpus and (problem := gpu_problem(facts, gpus)):
        if facts["driver"] or require_gpu:
            raise StudyError(problem)
        facts["warnings"].insert(0, problem)
    for name, value in facts.items():
        say(f"{name}: {value}")
    with atomic_path(environment) as path:
        path.write_text(json.dumps(facts, indent=2) + "\n")


def describe_machine() -> dict[str, Any]:
    """Return `host`, `slurm_node`, `cores` (those that the job may use) and `python` (its version)."""
    return {
        "host": platform.node(),
        "slurm_node": os.environ.get("SLURMD_NODENAME"),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def describe_gpus() -> dict[str, Any]:
    """Return the facts of `core.gpus.torch_facts`, `visible_devices` (CUDA_VISIBLE_DEVICES), and the usable `gpus`."""
    facts = torch_facts()
    return {
        **facts,
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "gpus": [
            {
                "name": torch.cuda.get_device_name(device),
                "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
                "bfloat16": torch.cuda.get_device_capability(device) >= (8, 0),
            }
            for device in range(facts["usable"])
        ],
    }


def describe_folder(folder: Path) -> dict[str, float]:
    """Return a folder's `free_gib`, and `folder_seconds`, the median time to write, sync and read a small file."""
    probe = folder / f".probe.{platform.node()}.{os.getpid()}"
    seconds = []
    try:
        for _ in range(10):
            start = time.perf_counter()
            with open(probe, "w") as file:
                file.write("probe")
                file.flush()
                os.fsync(file.fileno())
            probe.read_text()
            seconds.append(time.perf_counter() - start)
    finally:
        probe.unlink(missing_ok=True)
    return {
        "free_gib": round(shutil.disk_usage(folder).free / 2**30, 1),
        "folder_seconds": round(statistics.median(seconds), 6),
    }


def folder_warnings(facts: dict[str, Any]) -> list[str]:
    """Return what may go wrong in the results folder, as sentences; `facts` are those of `describe_folder`."""
    warnings = []
    if facts["free_gib"] < LOW_DISK_GIB:
        warnings.append(
            f"only {facts['free_gib']} GiB are free in the results folder, and a full disk stops a stage half-way. "
            "Link `results` to a roomier disk."
        )
    if facts["folder_seconds"] > SLOW_FOLDER_SECONDS:
        warnings.append(
            f"a small file takes {facts['folder_seconds']:.2f} s in the results folder: each job writes a few. "
            "Link `results` to the cluster's scratch folder, and raise latency-wait in slurm/config.yaml."
        )
    return warnings


if __name__ == "__main__":
    run_stage(check_environment)
