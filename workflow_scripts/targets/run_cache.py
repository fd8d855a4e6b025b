"""A cache on disk of the finished runs of a fine-tuning job, so that a killed job resumes where it was."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.distributed import is_rank_zero
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import earlier_of
from workflow_scripts.core.parquet import has_other_models, read_metadata, read_table, write_table
from workflow_scripts.core.progress import say

Run = tuple[int | str, ...]


class FinishedRuns:
    """The finished runs of a job: on disk one file each, then all in one.

    A file that is damaged, or was made with another `key` or another content of a local LM, counts as absent. Of
    several processes, only rank 0 reads and writes.

    Parameters
    ----------
    losses: Parquet file with all runs of the job; its runs, and those of its earlier version, are read if they exist.
    key: hash of everything that decides a run's result, stored in each file.
    names: columns that identify a run; `run in finished` compares their values.
    """

    def __init__(self, losses: Path, key: str, names: Sequence[str]):
        self.losses, self.key, self.names = Path(losses), key, names
        self.folder = self.losses.with_name(f".{self.losses.stem}.{key}.runs")
        self.tables: dict[Run, pa.Table] = {}
        places = [earlier_of(self.losses), self.losses, *sorted(self.folder.glob("*.parquet"))]
        for path in places if is_rank_zero() else []:
            if path.exists():
                self._take(path)

    def _take(self, path: Path) -> None:
        try:
            metadata = read_metadata(path)
            if metadata.get("key") != self.key or has_other_models(metadata):
                return
            table = read_table(path)
        except StudyError as error:
            say(f"{error} Its runs are repeated.")
            return
        if not table.num_rows:
            return
        columns = [table[name].to_numpy() for name in self.names]
        changes = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
        firsts = np.flatnonzero(np.r_[True, changes])
        for first, last in zip(firsts, [*firsts[1:], table.num_rows], strict=True):
            run = tuple(table[name][first].as_py() for name in self.names)
            self.tables[run] = table.slice(first, last - first)

    def __contains__(self, run: Run) -> bool:
        return run in self.tables

    def add(self, run: Run, table: pa.Table) -> None:
        """Store the table of a run, in memory and on disk.

        Parameters
        ----------
        run: the run's values of the columns `names`.
        table: its rows, with the columns of the job's losses.
        """
        self.tables[run] = table
        if is_rank_zero():
            # Another process with the same job may publish it meanwhile, and delete the folder.
            with contextlib.suppress(FileNotFoundError):
                write_table(self.folder / f"{'_'.join(map(str, run))}.parquet", table, key=self.key)

    def publish(self, runs: Sequence[Run], schema: pa.Schema) -> None:
        """Write all `runs` in this order to the file `losses` and delete the single files.

        Parameters
        ----------
        runs: all runs of the job, each of them added before or read from disk.
        schema: columns of the file if there are no runs.
        """
        if is_rank_zero():
            tables = [self.tables[run] for run in runs] or [schema.empty_table()]
            write_table(self.losses, pa.concat_tables(tables), key=self.key)
            shutil.rmtree(self.folder, ignore_errors=True)
