"""Look at the machine from inside a job: GPUs, driver, torch, free disk, and how fast the shared folder answers."""

import json
import os
import platform
import re
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import atomic_path
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage

DRIVER_FILE = Path("/proc/driver/nvidia/version")
LOW_DISK_GIB = 10
SLOW_FOLDER_SECONDS = 0.2


def check_environment(environment: Path, gpus: int, require_gpu: bool) -> None:
    """Print what a job finds on its machine, and write it to `environment` (JSON).

    Parameters
    ----------
    gpus: how many GPUs the job asked for.
    require_gpu: fail also where the node has no GPU driver at all, as on a cluster with made-up GPUs.

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
    """Return host, Python, torch and the cores that the job may use."""
    return {
        "host": platform.node(),
        "slurm_node": os.environ.get("SLURMD_NODENAME"),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def describe_gpus() -> dict[str, Any]:
    """Return driver, CUDA version of the torch build, the device ids given to the job, and the GPUs torch sees."""
    usable = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "gpus": [
            {
                "name": torch.cuda.get_device_name(device),
                "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
                "bfloat16": torch.cuda.get_device_capability(device) >= (8, 0),
            }
            for device in usable
        ],
    }


def driver_version() -> str | None:
    """Return the NVIDIA driver's version, or None where there is no driver."""
    if not DRIVER_FILE.exists():
        return None
    found = re.search(r"\s(\d+\.[\d.]+)\s", DRIVER_FILE.read_text())
    return found.group(1) if found else "unknown"


def describe_folder(folder: Path) -> dict[str, float]:
    """Return free GiB of the results folder, and the median seconds to write, sync and read a small file there."""
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
    """Return what may go wrong with the results folder, in words."""
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


def gpu_problem(facts: dict[str, Any], gpus: int) -> str | None:
    """Return why a job that asked for `gpus` can't use them and what to change, or None."""
    if not facts["visible_devices"]:
        return (
            f"the job asked for {gpus} GPU(s), but the scheduler named none in CUDA_VISIBLE_DEVICES. If the cluster "
            "wants --gres, write `gres: gpu` in slurm/config.yaml (or set AIRREP_GRES=gpu)."
        )
    if facts["driver"] is None:
        return (
            f"the scheduler gave GPU {facts['visible_devices']}, but {facts['host']} has no NVIDIA driver. Name a "
            "partition with GPUs as gpu_partition in slurm/config.yaml (or set AIRREP_GPU_PARTITION)."
        )
    if facts["cuda"] is None:
        return (
            f"torch {facts['torch']} is a CPU build. Put the CUDA build of the same version in its place: "
            "pip uninstall torch, then pip install -r envs/requirements-torch.lock on a machine "
            "without a CPU-only index."
        )
    if len(facts["gpus"]) < gpus:
        return (
            f"the job asked for {gpus} GPU(s), but torch sees {len(facts['gpus'])}: driver {facts['driver']} may be "
            f"too old for CUDA {facts['cuda']}. Load a newer driver, or install a torch build for an older CUDA."
        )
    return None


if __name__ == "__main__":
    run_stage(snakemake, check_environment)  # noqa: F821
