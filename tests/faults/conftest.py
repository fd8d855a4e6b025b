"""What the fault tests share: a straight run to compare with, killed twins, and the table that ends the suite."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

# Children are forked from a process that has torch in it, which a GPU's threads would not survive.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from faults import FaultTable
from tiny_study import SAMPLING, TinyStudy, make_tiny_study
from workspace import Workspace, finished_workspace

from workflow_scripts.core.parquet import read_table
from workflow_scripts.targets.collect_targets import collect_targets
from workflow_scripts.targets.sample_subsets import sample_subsets

TABLE = FaultTable()


@pytest.fixture(scope="session")
def fault_table() -> FaultTable:
    """The table that the suite prints at its end."""
    return TABLE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TABLE.rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(TABLE.text())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_tiny_study(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def straight(tiny: TinyStudy):
    """The losses of two folds x three subsets, computed without a fault."""
    return read_table(tiny.block(tiny.folder / "straight" / "block.parquet"))


@pytest.fixture(scope="session")
def straight_study(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The smoke study, done without a fault."""
    return finished_workspace(tmp_path_factory.mktemp("straight") / "workflow")


@dataclass(frozen=True)
class TrainingFiles:
    """What the encoder is trained on: three folds x four subsets."""

    subsets: Path
    targets: Path


@pytest.fixture(scope="session")
def training_files(tiny: TinyStudy) -> TrainingFiles:
    folder = tiny.folder / "training"
    losses = tiny.block(folder / "block.parquet", folds=[0, 3], indexes=[0, 4])
    sizes = {"folds": 3, "subsets_per_fold": 4}
    files = TrainingFiles(folder / "subsets.parquet", folder / "targets.parquet")
    collect_targets([losses], files.targets, **sizes, seeds=1, max_diverged_share=0.0)
    sample_subsets(tiny.tokens, tiny.tokens, files.subsets, folder / "v.parquet", sampling=SAMPLING, **sizes)
    return files
