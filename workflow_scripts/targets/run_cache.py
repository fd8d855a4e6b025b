"""Finished runs of the jobs that fine-tune an LM many times: they survive a kill."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.distributed import is_rank_zero
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, read_table, write_table
from workflow_scripts.core.progress import say

Run = tuple[int | str, ...]


class FinishedRuns:
    """The runs of a job that are done: on disk one by one, then as one file.

    `names` are the columns that tell runs apart. A file that is damaged or was made with another `key` counts as
    absent. Of several processes, the first reads and writes.
    """

    def __init__(self, losses: Path, key: str, names: Sequence[str]):
        self.losses, self.key, self.names = Path(losses), key, names
        self.folder = self.losses.with_name(f".{self.losses.stem}.{key}.runs")
        self.tables: dict[Run, pa.Table] = {}
        for path in [self.losses, *sorted(self.folder.glob("*.parquet"))] if is_rank_zero() else []:
            if path.exists():
                self._take(path)

    def _take(self, path: Path) -> None:
        try:
            if read_metadata(path).get("key") != self.key:
                return
            table = read_table(path)
        except StudyError as error:
            say(f"{error} Its runs are done again.")
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
        """Keep a run that has just ended, on disk too."""
        self.tables[run] = table
        if is_rank_zero():
            write_table(self.folder / f"{'_'.join(map(str, run))}.parquet", table, key=self.key)

    def publish(self, runs: Sequence[Run], schema: pa.Schema) -> None:
        """Write all `runs` in order as one file and drop the single ones."""
        if is_rank_zero():
            tables = [self.tables[run] for run in runs] or [schema.empty_table()]
            write_table(self.losses, pa.concat_tables(tables), key=self.key)
            shutil.rmtree(self.folder, ignore_errors=True)
