"""The smoke study in a copy of the workflow, run once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from workspace import Workspace, finished_workspace, new_workspace


@pytest.fixture
def fresh(tmp_path: Path) -> Workspace:
    """The workflow without results."""
    return new_workspace(tmp_path / "fresh")


@pytest.fixture(scope="session")
def unrun(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The workflow without results, for dry runs only."""
    return new_workspace(tmp_path_factory.mktemp("unrun") / "workflow")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The finished smoke study: to look at and for dry runs only; what runs takes a `copy`."""
    own = tmp_path_factory.mktemp("smoke") / "workflow"
    if worker_id == "master":
        return finished_workspace(own)
    # The first worker that asks runs the study; each has a copy, because dry runs write the config that they read.
    shared = tmp_path_factory.getbasetemp().parent / "smoke"
    with FileLock(shared.with_suffix(".lock")):
        if not shared.exists():
            finished_workspace(own).folder.rename(shared)
    return Workspace(shared).copy(own)
