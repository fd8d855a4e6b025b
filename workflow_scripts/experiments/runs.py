"""Fine-tuning runs on lists of examples that are written down, and what they measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, spec_hash, write_table
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
    """One list of training examples, and the tests to measure after fine-tuning on it; arrays of example ids.

    `left_out` are those of `example_ids` that take no part. They keep their place in the batches, so that two runs
    of one seed that differ in them alone see all other examples in the same order.
    """

    example_ids: np.ndarray
    left_out: np.ndarray
    test_ids: np.ndarray

    @property
    def name(self) -> str:
        """16 hex digits of what is fine-tuned and measured: the same run, asked for twice, is done once."""
        return spec_hash({"run": [part.tolist() for part in (self.example_ids, self.left_out, self.test_ids)]})


def write_runs(
    path: Path,
    rows: Sequence[tuple[Mapping[str, Any], ListedRun]],
    fields: Sequence[tuple[str, pa.DataType]],
    seeds: int,
) -> None:
    """Write one row per run and seed; each begins with the columns `fields`, which say what the run is for."""
    named = [(purpose, run, run.name) for purpose, run in rows]
    columns: dict[str, list[Any]] = {name: [] for name, _ in [*fields, *RUN_FIELDS]}
    for seed in range(seeds):
        for purpose, run, name in named:
            values = {
                **purpose,
                "run": name,
                "seed": seed,
                "example_ids": run.example_ids,
                "left_out": run.left_out,
                "test_ids": run.test_ids,
            }
            for column, value in values.items():
                columns[column].append(value)
    write_table(path, pa.table(columns, schema=pa.schema([*fields, *RUN_FIELDS])))


def read_share(path: Path, job: int, jobs: int) -> dict[tuple[str, int], ListedRun]:
    """Return the distinct runs that fall to a job, by (run, number of the seed).

    A run's job depends on its content and the number of jobs, so more runs leave the others where they are.
    """
    table = read_table(path, [name for name, _ in RUN_FIELDS])
    share = {}
    for row in range(table.num_rows):
        run, seed = table["run"][row].as_py(), table["seed"][row].as_py()
        if int(run, 16) % jobs == job and (run, seed) not in share:
            ids = (table[name][row].values.to_numpy() for name in ("example_ids", "left_out", "test_ids"))
            share[run, seed] = ListedRun(*ids)
    return share


@dataclass(frozen=True)
class MeasuredRuns:
    """What the runs of an experiment measured, by (run, number of the seed, test id)."""

    losses: Mapping[tuple[str, int, int], float]
    answers: Mapping[tuple[str, int, int], str]

    def losses_of(self, run: str, seeds: int, tests: Sequence[int]) -> np.ndarray:
        """Return the losses of a run, float64 [seeds, tests]; NaN where it diverged."""
        return np.array([[self.losses[run, seed, int(test)] for test in tests] for seed in range(seeds)])


def read_measured(paths: Sequence[Path], max_diverged_share: float) -> MeasuredRuns:
    """Read the files of all jobs of an experiment.

    Raises
    ------
    StudyError: more than `max_diverged_share` of the runs diverged.
    """
    table = pa.concat_tables([read_table(path) for path in paths])
    runs = table.group_by(["run", "seed", "status"]).aggregate([])
    diverged = int(pc.sum(pc.equal(runs["status"], "diverged")).as_py() or 0)
    if diverged > max_diverged_share * runs.num_rows:
        raise StudyError(
            f"{paths[0].parent}: {diverged:,} of {runs.num_rows:,} fine-tuning runs diverged, more than "
            f"finetuning.max_diverged_share ({max_diverged_share:g}). Lower finetuning.learning_rate."
        )
    if diverged:
        say(f"left out: {diverged:,} runs that diverged")
    keys = list(zip(*(table[name].to_pylist() for name in ("run", "seed", "test_id")), strict=True))
    losses = table["loss"].to_numpy(zero_copy_only=False).astype(np.float64)
    answers = {key: answer for key, answer in zip(keys, table["answer"].to_pylist(), strict=True) if answer is not None}
    return MeasuredRuns(dict(zip(keys, losses.tolist(), strict=True)), answers)
