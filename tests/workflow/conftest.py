"""The smoke study in a copy of the workflow, run once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
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
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The finished smoke study: to look at and for dry runs only; what runs takes a `copy`."""
    return finished_workspace(tmp_path_factory.mktemp("smoke") / "workflow")
