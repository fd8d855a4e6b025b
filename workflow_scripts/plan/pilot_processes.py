"""Processes that the pilot starts: as many side by side as the study's one-core jobs would run here."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import torch

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.gpus import visible_gpus

# More processes side by side slow each other no further, and each costs a start.
MAX_PROCESSES = 8
# A stage without a model and one with: all of either kind import much the same.
LIGHT_STAGE, MODEL_STAGE = "workflow_scripts.targets.sample_subsets", "workflow_scripts.targets.finetune_shard"
STARTS = 2
START = "import importlib, sys, time; importlib.import_module(sys.argv[2]); print(time.time() - float(sys.argv[1]))"


def time_starts() -> dict[str, float]:
    """Return the seconds from a job's start to its first line of work, and what the libraries of a model add to them.

    The shortest of several counts: the first one reads the libraries from the disk.
    """
    light, heavy = (
        min(float(said) for _ in range(STARTS) for said in side_by_side("-c", START, str(time.time()), module))
        for module in (LIGHT_STAGE, MODEL_STAGE)
    )
    return {"job_start": light, "model_start": max(heavy - light, 0.0)}


def side_by_side(*arguments: str) -> list[str]:
    """Return what Python prints in as many processes at a time as the study's one-core jobs would run here."""
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
