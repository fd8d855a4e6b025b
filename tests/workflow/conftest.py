"""The smoke study in a copy of the workflow, run once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from model_hub import ModelHub
from workspace import FORKS_JOBS, Workspace, finished_workspace, new_workspace


@pytest.fixture
def fresh(tmp_path: Path) -> Workspace:
    """The workflow without results."""
    return new_workspace(tmp_path / "fresh", forks_jobs=FORKS_JOBS)


@pytest.fixture(scope="session")
def unrun(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The workflow without results, for dry runs only."""
    return new_workspace(tmp_path_factory.mktemp("unrun") / "workflow", forks_jobs=FORKS_JOBS)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The finished smoke study, done by new processes: to look at and for dry runs only; what runs takes a `copy`."""
    own = tmp_path_factory.mktemp("smoke") / "workflow"
    if worker_id == "master":
        return replace(finished_workspace(own), forks_jobs=FORKS_JOBS)
    # The first worker that asks runs the study; each has a copy, because dry runs write the config that they read.
    shared = tmp_path_factory.getbasetemp().parent / "smoke"
    with FileLock(shared.with_suffix(".lock")):
        if not shared.exists():
            finished_workspace(own).folder.rename(shared)
    return Workspace(shared, FORKS_JOBS).copy(own)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """A hub that all jobs of the test ask, with a cache of its own."""
    with ModelHub() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        yield made
