"""Processes that the pilot starts, as many at a time as the study's one-core jobs would run on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import torch

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.gpus import visible_gpus

# More processes at a time don't slow each other further, and each takes time to start.
MAX_PROCESSES = 8
# A stage without a model and one with a model; all stages of either kind import much the same.
LIGHT_STAGE, MODEL_STAGE = "workflow_scripts.targets.sample_subsets", "workflow_scripts.targets.finetune_shard"
STARTS = 2
START = "import importlib, sys, time; importlib.import_module(sys.argv[2]); print(time.time() - float(sys.argv[1]))"


def time_starts() -> dict[str, float]:
    """Return `job_start`, the seconds from a job's start to its first line of work, and `model_start`.

    The latter is what the libraries of a model add. Each is the shortest of several, because the first reads the
    libraries from the disk.

    Raises
    ------
    StudyError: a process failed.
    """
    light, heavy = (
        min(float(said) for _ in range(STARTS) for said in side_by_side("-c", START, str(time.time()), module))
        for module in (LIGHT_STAGE, MODEL_STAGE)
    )
    return {"job_start": light, "model_start": max(heavy - light, 0.0)}


def side_by_side(*arguments: str) -> list[str]:
    """Return what each of several Python processes prints, as many as one-core jobs would run at a time.

    Parameters
    ----------
    arguments: arguments of Python, the same for each process.

    Raises
    ------
    StudyError: a process failed; with the end of its standard error.
    """
    processes = 1 if visible_gpus() else min(torch.get_num_threads(), MAX_PROCESSES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    running = [
        subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(processes)
    ]
    said = []
    for process in running:
        output, complaints = process.communicate()
        if process.returncode:
            raise StudyError(f"a job of the pilot failed:\n{complaints[-2000:]}")
        said.append(output)
    return said
