"""A cache on disk of the finished runs of a fine-tuning job, so that a killed job resumes where it was."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workflow_scripts.core.distributed import is_rank_zero
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import begun_folder, delete_begun, earlier_of
from workflow_scripts.core.parquet import has_other_models, read_metadata, read_table, write_table
from workflow_scripts.core.progress import say

Run = tuple[int | str, ...]


def _file_of(run: Run) -> str:
    return f"{'_'.join(map(str, run))}.parquet"


class FinishedRuns:
    """The finished runs of a job: on disk one file each, then all in one.

    A file that is damaged, or was made with another `key` or another content of a local LM, counts as absent. Of
    several processes, only rank 0 reads and writes.

    Parameters
    ----------
    losses: Parquet file with all runs of the job; its runs, and those of its earlier version, are read if they exist.
        Files of other jobs lie beside it.
    key: hash of everything that decides a run's result, stored in each file.
    names: columns that identify a run; `run in finished` compares their values.
    """

    def __init__(self, losses: Path, key: str, names: Sequence[str]):
        self.losses, self.key, self.names = Path(losses), key, names
        self.folder = begun_folder(self.losses, key, "runs")
        self.tables: dict[Run, pa.Table] = {}
        places = [earlier_of(self.losses), self.losses, *sorted(self.folder.glob("*.parquet"))]
        for path in places if is_rank_zero() else []:
            if path.exists():
                self._take(path)

    def look_for(self, runs: Sequence[Run]) -> None:
        """Take what is missing of `runs` from other jobs, which had them if jobs had another size then.

        Those are files of jobs that are run again now, and single runs of jobs that were interrupted, with the same
        `key`. The latter are looked for by name.
        """
        if not is_rank_zero():
            return
        for folder in self.losses.parent.glob(f".*.{self.key}.runs"):
            for run in runs:
                if run not in self and (path := folder / _file_of(run)).exists():
                    self._take(path)
        again = sorted(self.losses.parent.glob(".*.earlier"))
        # All were made with one key; where it is another one, none is opened in vain.
        if not again or not self._is_ours(again[0]):
            return
        for path in [*again, *sorted(self.losses.parent.glob("[!.]*.parquet"))]:
            missing = {run for run in runs if run not in self}
            if not missing:
                return
            if self._may_hold(path, missing):
                self._take(path, missing)

    def _may_hold(self, path: Path, runs: Collection[Run]) -> bool:
        """Return whether a file may have some of `runs`, by the least and largest values of its columns."""
        try:
            footer = pq.read_metadata(path)
        except (OSError, pa.ArrowException):
            return False
        place = {footer.schema.column(at).path: at for at in range(footer.num_columns)}
        for number, name in enumerate(self.names):
            groups = [footer.row_group(group).column(place[name]) for group in range(footer.num_row_groups)]
            bounds = [(group.statistics.min, group.statistics.max) for group in groups if group.statistics]
            if len(bounds) == len(groups):
                runs = {run for run in runs if any(least <= run[number] <= most for least, most in bounds)}
        return bool(runs)

    def _is_ours(self, path: Path) -> bool:
        """Return whether a file was made with this key and these models; a damaged one says so, and wasn't."""
        try:
            metadata = read_metadata(path)
        except StudyError as error:
            say(f"{error} Its runs are repeated.")
            return False
        return metadata.get("key") == self.key and not has_other_models(metadata)

    def _take(self, path: Path, wanted: Collection[Run] | None = None) -> None:
        if not self._is_ours(path):
            return
        try:
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
            if wanted is None or run in wanted:
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
                write_table(self.folder / _file_of(run), table, key=self.key)

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
            # Also where a job of another size had left them. What stays there are runs of other jobs now.
            for folder in self.losses.parent.glob(f".*.{self.key}.runs"):
                for run in runs:
                    (folder / _file_of(run)).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if not any(self.folder.glob("*.parquet")):
                delete_begun(self.folder)
