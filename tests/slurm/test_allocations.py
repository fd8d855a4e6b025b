"""Snakemake without the profile, inside allocations of a node (`salloc --gpus=2`): no two jobs share a GPU."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, output, wait_until
from driving import ROOT, WITHOUT_GPUS

SNAKEFILE = Path(__file__).parent / "allocated" / "Snakefile"
SNAKEMAKE = Path(sys.executable).parent / "snakemake"
# Of the node's three GPUs.
ALLOCATIONS = {"first": 2, "second": 1}


def allocate(folder: Path, gpus: int, numbered_anew: bool) -> str:
    """Run Snakemake in an allocation of so many GPUs; `numbered_anew`, as where Slurm shuts the others away."""
    folder.mkdir()
    names = ",".join(map(str, range(gpus)))
    number = f"export CUDA_VISIBLE_DEVICES={names}; " if numbered_anew else ""
    run = f"{SNAKEMAKE} --snakefile {SNAKEFILE} --cores 4 --resources gpu={gpus}"
    options = [
        "--partition=gpu",
        "--nodelist=node1",
        f"--gpus={gpus}",
        "--cpus-per-task=4",
        "--mem=4000",
        f"--chdir={folder}",
    ]
    environment = {**os.environ, **WITHOUT_GPUS, "PYTHONPATH": str(ROOT)}
    exported = ",".join(["ALL", *(f"{name}={environment[name]}" for name in ("PYTHONPATH", *WITHOUT_GPUS))])
    return output("sbatch", "--parsable", f"--export={exported}", *options, f"--wrap={number}{run}")


@pytest.fixture(scope="module", params=[False, True], ids=["numbered through the node", "numbered from 0 in each"])
def numbered_anew(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def seen(
    numbered_anew: bool, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, dict[str, Any]]]:
    """What each job saw, by allocation and name."""
    folder = tmp_path_factory.mktemp("allocations")
    jobs = [allocate(folder / name, gpus, numbered_anew) for name, gpus in ALLOCATIONS.items()]
    waiting = ["squeue", "--noheader", f"--jobs={','.join(jobs)}", "--states=PENDING,RUNNING,COMPLETING"]
    wait_until(lambda: output(*waiting) == "", "both allocations to end", 300)
    screens = "".join(path.read_text() for path in folder.glob("*/slurm-*.out"))
    found = {
        name: {file.stem: json.loads(file.read_text()) for file in (folder / name).glob("*.json")}
        for name in ALLOCATIONS
    }
    assert all(len(jobs) == 5 for jobs in found.values()), screens
    return found


def test_jobs_of_an_allocation_have_a_gpu_of_their_own(seen):
    together = 0
    for name, count in ALLOCATIONS.items():
        on_gpus = [job for number, job in seen[name].items() if number != "none"]
        assert all(job["gpus"].isdecimal() for job in on_gpus)
        assert len({job["gpus"] for job in on_gpus}) == count
        for one, other in itertools.combinations(on_gpus, 2):
            if one["start"] < other["end"] and other["start"] < one["end"]:
                together += 1
                assert one["gpus"] != other["gpus"]
    assert together, "no two jobs ran at a time, so nothing was tried"


def test_a_job_without_a_gpu_sees_none(seen):
    assert {jobs["none"]["gpus"] for jobs in seen.values()} == {""}


def test_allocations_run_side_by_side(seen, numbered_anew):
    first, second = (list(jobs.values()) for jobs in seen.values())
    assert any(one["start"] < other["end"] and other["start"] < one["end"] for one in first for other in second)
    if not numbered_anew:
        of_first, of_second = ({job["gpus"] for job in jobs if job["gpus"]} for jobs in (first, second))
        assert not of_first & of_second
