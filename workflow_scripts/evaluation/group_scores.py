"""Measured losses of an evaluation set, and group scores in the same order of tests and subsets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import read_frame
from workflow_scripts.core.parquet import read_table


@dataclass(frozen=True)
class MeasuredLosses:
    """Losses of the fine-tuning runs that an evaluation set's LDS is computed from.

    Parameters
    ----------
    tests: int32 [tests], ids of the test examples.
    subsets: int32 [subsets], numbers of the subsets with at least one run that didn't diverge.
    by_seed: float64 [tests, subsets, seeds], losses in nats per response token; NaN for a run that diverged.
    diverged: number of runs that diverged, those of left-out subsets included.
    """

    tests: np.ndarray
    subsets: np.ndarray
    by_seed: np.ndarray
    diverged: int

    @property
    def mean(self) -> np.ndarray:
        """Mean losses over the runs of a subset that didn't diverge, float64 [tests, subsets]."""
        return np.nanmean(self.by_seed, axis=2)


def read_losses(targets: Path) -> MeasuredLosses:
    """Read `targets/<evaluation>.parquet`.

    Raises
    ------
    StudyError: the file can't be read, every run diverged, or a run lacks tests.
    """
    table = read_table(targets, columns=["subset", "seed", "example_id", "loss", "status"])
    seeds = len(pc.unique(table["seed"]))
    failed = table.filter(pc.equal(table["status"], "diverged")).group_by(["subset", "seed"]).aggregate([])
    table = table.filter(pc.equal(table["status"], "ok"))
    if table.num_rows == 0:
        raise StudyError(f"{targets}: every fine-tuning run diverged. Lower finetuning.learning_rate.")
    columns = [table[name].to_numpy() for name in ("example_id", "subset", "seed")]
    (tests, test), (subsets, subset), (_, seed) = (np.unique(ids, return_inverse=True) for ids in columns)
    by_seed = np.full((len(tests), len(subsets), seeds), np.nan)
    by_seed[test, subset, seed] = table["loss"].to_numpy()
    missing = np.isnan(by_seed)
    if (missing.any(axis=0) != missing.all(axis=0)).any() or np.isnan(table["loss"].to_numpy()).any():
        raise StudyError(f"{targets}: a fine-tuning run lacks the losses of some tests. Delete the file and run again.")
    return MeasuredLosses(tests, subsets, by_seed, failed.num_rows)


def read_group_scores(groups: Path, measured: MeasuredLosses) -> dict[str, np.ndarray]:
    """Read a method's group scores for the measured tests and subsets.

    Parameters
    ----------
    groups: `groups/<method>/<evaluation>.parquet`.
    measured: gives the tests and subsets, and their order.

    Returns
    -------
    For each pooling, float32 [tests, subsets].

    Raises
    ------
    StudyError: the file lacks a test or a subset that was measured.
    """
    found: dict[str, np.ndarray] = {}
    for pooling, rows in read_frame(groups).groupby("pooling"):
        table = rows.pivot(index="test_id", columns="subset", values="score")
        scores = table.reindex(index=measured.tests, columns=measured.subsets).to_numpy()
        if missing := int(np.isnan(scores).sum()):
            raise StudyError(
                f"{groups}: {missing:,} of the {scores.size:,} pairs of test and subset whose losses were "
                "measured have no score. Delete the file and run again."
            )
        found[str(pooling)] = scores
    return found
