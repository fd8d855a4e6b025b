"""Read the subsets and targets of a pool into arrays, fold by fold."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.targets.labels import pooled_labels


@dataclass(frozen=True)
class FoldTargets:
    """The subsets and labels of one fold.

    Parameters
    ----------
    tests: int [examples], ids of the evaluated examples.
    members: int [subsets, size], ids of the examples in each subset.
    labels: float32 [subsets, examples], r(x, S); NaN for a run that diverged.
    """

    tests: np.ndarray
    members: np.ndarray
    labels: np.ndarray


def read_tests(validation: Path) -> np.ndarray:
    """Return the ids of an evaluation's test examples, int32 [tests], from the file with them in one row."""
    return read_table(validation)["example_ids"][0].values.to_numpy()


def read_folds(
    subsets: Path, targets: Path, label_spread: str = "fold", label_clip: float | None = None
) -> list[FoldTargets]:
    """Return the folds of a pool, in order.

    Parameters
    ----------
    subsets: file that `sample_subsets` wrote.
    targets: file that `collect_targets` or `predict_targets` wrote; a fold that it has no rows of has no tests.
    label_spread: `fold` for the labels of `targets`, `pooled` to compute them from its losses by `pooled_labels`.
    label_clip: labels are clipped to [-label_clip, label_clip]; None for no clipping.

    Raises
    ------
    StudyError: a file can't be read, or the rows of the targets are not those of the subsets, in the order of
        `collect_targets`.
    """
    members_table = read_table(subsets, ["fold", "subset", "example_ids"])
    numbers = members_table["subset"].to_numpy()
    members_fold = members_table["fold"].to_numpy()
    ids = members_table["example_ids"].combine_chunks()
    members = ids.values.to_numpy().reshape(len(members_fold), -1)
    table = read_table(targets, ["fold", "subset", "seed", "example_id", "label"])
    seeds = pc.max(table["seed"]).as_py() + 1
    target_fold = table["fold"].to_numpy()
    starts = np.searchsorted(target_fold, np.arange(target_fold.max() + 2))
    folds = []
    for fold, (first, last) in enumerate(itertools.pairwise(starts)):
        part = table.slice(first, last - first)
        own = members_fold == fold
        tests = _tests_of_runs(part, numbers[own], seeds)
        if tests is None:
            raise StudyError(
                f"{targets}: its rows of fold {fold} are not those of the subsets in {subsets}, so labels would go to "
                "other subsets or examples than their own. Delete both files and run again."
            )
        labels = part["label"].to_numpy().reshape(own.sum(), seeds, len(tests))[:, 0].astype(np.float32)
        folds.append(FoldTargets(tests=tests, members=members[own], labels=labels))
    if label_spread == "pooled":
        losses = read_table(targets, ["loss"])["loss"].to_numpy().reshape(len(folds), *_runs(folds, targets))
        labels = pooled_labels(losses, [fold.tests for fold in folds])
        folds = [replace(fold, labels=one.astype(np.float32)) for fold, one in zip(folds, labels, strict=True)]
    if label_clip is not None:
        folds = [replace(fold, labels=fold.labels.clip(-label_clip, label_clip)) for fold in folds]
    return folds


def _tests_of_runs(part: pa.Table, numbers: np.ndarray, seeds: int) -> np.ndarray | None:
    """Return the ids of the evaluated examples of a fold, int32 [examples]; None if a run is missing or out of order.

    Parameters
    ----------
    part: the fold's targets.
    numbers: int32 [subsets], the numbers of its subsets.
    seeds: number of runs per subset.
    """
    runs = len(numbers) * seeds
    if runs == 0 or len(part) % runs:
        return None
    subset, seed, ids = (
        part[name].to_numpy().reshape(len(numbers), seeds, -1) for name in ("subset", "seed", "example_id")
    )
    in_order = (subset == numbers[:, None, None]).all() and (seed == np.arange(seeds)[:, None]).all()
    return ids[0, 0] if in_order and (ids == ids[0, 0]).all() else None


def _runs(folds: list[FoldTargets], targets: Path) -> tuple[int, int, int]:
    """Return (subsets, seeds, examples) of a fold, in the order of the rows of its targets."""
    subsets, examples = folds[0].labels.shape
    return subsets, pq.read_metadata(targets).num_rows // (len(folds) * subsets * examples), examples
