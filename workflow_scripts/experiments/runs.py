"""Fine-tuning runs on explicit lists of examples, and the tables of what they measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import read_frame, write_frame
from workflow_scripts.core.parquet import read_table, spec_hash
from workflow_scripts.core.progress import say

RUN_FIELDS = [
    ("run", pa.string()),
    ("seed", pa.int32()),
    ("example_ids", pa.list_(pa.int32())),
    ("left_out", pa.list_(pa.int32())),
    ("test_ids", pa.list_(pa.int32())),
]
MEASURED_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("seed", pa.int32()),
        ("test_id", pa.int32()),
        ("loss", pa.float32()),
        ("answer", pa.string()),
        ("status", pa.string()),
    ]
)


@dataclass(frozen=True)
class ListedRun:
    """One list of training examples, and the tests to measure after fine-tuning on it.

    Parameters
    ----------
    example_ids: int32 [examples], the list.
    left_out: int32 [left out], those of the list that have no loss. They keep their place in the batches, so that two
        runs of one seed that differ only in them see all other examples in the same order.
    test_ids: int32 [tests].
    """

    example_ids: np.ndarray
    left_out: np.ndarray
    test_ids: np.ndarray

    @property
    def name(self) -> str:
        """16 hex digits: a hash of the three lists, by which the same run, listed twice, is done once."""
        return spec_hash({"run": [part.tolist() for part in (self.example_ids, self.left_out, self.test_ids)]})


def write_runs(
    path: Path,
    rows: Sequence[tuple[Mapping[str, Any], ListedRun]],
    fields: Sequence[tuple[str, pa.DataType]],
    seeds: int,
) -> None:
    """Write one row per run and seed.

    Parameters
    ----------
    path: Parquet file to write.
    rows: for each run, the values of `fields`, which say what the run is for, and its lists.
    fields: names and types of the first columns.
    seeds: number of fine-tuning runs per list.
    """
    listed = pd.DataFrame([{**purpose, "run": run.name, **vars(run)} for purpose, run in rows])
    every_seed = pd.DataFrame({"seed": range(seeds)}).merge(listed, how="cross")
    write_frame(path, every_seed, pa.schema([*fields, *RUN_FIELDS]))


def read_share(path: Path, job: int, jobs: int) -> dict[tuple[str, int], ListedRun]:
    """Return the distinct runs of a job, by (name of the run, number of the seed).

    A run's job depends on its content and the number of jobs, so further runs don't move the others.

    Parameters
    ----------
    path: file that `write_runs` wrote.
    job: number of the job, from 0.
    jobs: number of jobs.
    """
    table = read_table(path, [name for name, _ in RUN_FIELDS])
    share = {}
    for row in range(table.num_rows):
        run, seed = table["run"][row].as_py(), table["seed"][row].as_py()
        if int(run, 16) % jobs == job and (run, seed) not in share:
            ids = (table[name][row].values.to_numpy() for name in ("example_ids", "left_out", "test_ids"))
            share[run, seed] = ListedRun(*ids)
    return share


def read_measured(runs: Path, fields: Sequence[str], paths: Sequence[Path], max_diverged_share: float) -> pd.DataFrame:
    """Return what the runs of an experiment measured, one row per row of `runs` and test, in the order of `runs`.

    Columns are `fields` and those of `MEASURED_SCHEMA`; `loss` is float64, NaN where a run diverged.

    Parameters
    ----------
    runs: file that `write_runs` wrote.
    fields: further columns of it to return.
    paths: files that `finetune_runs` wrote, of all jobs.
    max_diverged_share: largest share of the runs that may diverge, in [0, 1].

    Raises
    ------
    StudyError: more than `max_diverged_share` of the runs diverged, or a run wasn't measured.
    """
    keys = ["run", "seed", "test_id"]
    measured = pd.concat([read_frame(path) for path in paths]).drop_duplicates(keys)
    status = measured.drop_duplicates(["run", "seed"])["status"]
    diverged = (status == "diverged").sum()
    if diverged > max_diverged_share * len(status):
        raise StudyError(
            f"{paths[0].parent}: {diverged:,} of {len(status):,} fine-tuning runs diverged, more than "
            f"finetuning.max_diverged_share ({max_diverged_share:g}). Lower finetuning.learning_rate."
        )
    if diverged:
        say(f"left out: {diverged:,} runs that diverged")
    listed = read_frame(runs, [*fields, "run", "seed", "test_ids"]).rename(columns={"test_ids": "test_id"})
    found = listed.explode("test_id").merge(measured, "left", keys)
    if missing := found["status"].isna().sum():
        raise StudyError(
            f"{paths[0].parent}: {missing:,} of the {len(found):,} losses that {runs} asks for are missing. Delete the "
            "folder and run again."
        )
    return found.astype({"loss": "float64"})


def known_in_all(values: pd.DataFrame) -> pd.DataFrame:
    """Return the columns for which every row has a value, so that the rows' means are over the same tests.

    A row without any value decides nothing: all its runs diverged, and its mean isn't known.

    Parameters
    ----------
    values: float [rows, tests], NaN where a run diverged.

    Raises
    ------
    StudyError: there is no such test.
    """
    measured = values[values.notna().any(axis=1)]
    known = measured.notna().all(axis=0)
    if not known.any():
        raise StudyError(
            "for each test a run diverged, so no two methods can be compared. Lower finetuning.learning_rate, or raise "
            "the experiment's `seeds`."
        )
    if left_out := int((~known).sum()):
        say(f"left out: {left_out:,} of {len(known):,} tests, for which a run diverged")
    return values.loc[:, known]


def loss_rises(measured: pd.DataFrame, whole: pd.Series) -> pd.DataFrame:
    """Return the rows that aren't `whole`, with `rise`: the loss minus that of `whole` for the same seed and test.

    Where the run on the whole set diverged, the mean of the other seeds stands for it, the same for all groups.

    Parameters
    ----------
    measured: result of `read_measured`.
    whole: bool, marks the rows of the run that leaves nothing out.

    Raises
    ------
    StudyError: all runs on the whole set diverged.
    """
    keys = ["seed", "test_id"]
    of_whole = measured.loc[whole, [*keys, "loss"]]
    if of_whole["loss"].isna().all():
        raise StudyError(
            "the fine-tuning runs on the whole base set diverged, so there is nothing to compare with. Lower "
            "finetuning.learning_rate, or raise the experiment's `seeds`."
        )
    means = of_whole.groupby("test_id")["loss"].transform("mean")
    of_whole = of_whole.assign(loss=of_whole["loss"].fillna(means))
    rises = measured[~whole].merge(of_whole, "left", keys, suffixes=("", "_whole"))
    return rises.assign(rise=rises["loss"] - rises["loss_whole"])
