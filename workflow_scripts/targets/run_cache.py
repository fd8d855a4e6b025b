"""What all jobs that fine-tune a LM many times share: the engine, the examples, and runs that survive a kill."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from workflow_scripts.core.distributed import is_first
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, read_table, write_table
from workflow_scripts.core.progress import say
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.losses import TokenizedExample, load_language_model

if TYPE_CHECKING:
    from workflow_scripts.language_model.deepspeed_finetuner import ZeroFinetuner

Run = tuple[int | str, ...]


def open_tuner(
    source: Sequence[Any], *, zero: Mapping[str, Any] | None = None, **settings: Any
) -> Finetuner | ZeroFinetuner:
    """Return the engine that fine-tunes: native, or DeepSpeed with its own settings `zero`.

    `source` is what `load_language_model` takes: folder or hub id, revision, whether remote code is trusted.
    """
    if zero is None:
        return Finetuner(load_language_model(*source, precision=settings["precision"]), **settings)
    try:
        from workflow_scripts.language_model.deepspeed_finetuner import ZeroFinetuner
    except ModuleNotFoundError as error:
        raise StudyError(
            f"finetuning.engine is deepspeed, but {error.name} is not installed: run "
            "`pip install -r envs/requirements-deepspeed.lock` in the workflow's environment, or write engine: native."
        ) from None
    return ZeroFinetuner(load_language_model(*source, device="cpu"), **zero, **settings)


def read_examples(tokens: Path) -> Mapping[int, TokenizedExample]:
    """Return the examples of a `tokens/` file by example id; their tokens share one memory block."""
    table = read_table(tokens, ["example_id", "input_ids", "prompt_tokens"]).combine_chunks()
    column = table["input_ids"].combine_chunks()
    flat, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    return {
        int(example_id): TokenizedExample(flat[offsets[row] : offsets[row + 1]], int(prompt_tokens))
        for row, (example_id, prompt_tokens) in enumerate(
            zip(table["example_id"].to_numpy(), table["prompt_tokens"].to_numpy(), strict=True)
        )
    }


class FinishedRuns:
    """The runs of a job that are done: on disk one by one, then as one file.

    `names` are the columns that tell runs apart. A file that is damaged or was made with another `key` counts as
    absent. Of several processes, the first reads and writes.
    """

    def __init__(self, losses: Path, key: str, names: Sequence[str]):
        self.losses, self.key, self.names = Path(losses), key, names
        self.folder = self.losses.with_name(f".{self.losses.stem}.{key}.runs")
        self.tables: dict[Run, pa.Table] = {}
        for path in [self.losses, *sorted(self.folder.glob("*.parquet"))] if is_first() else []:
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
        columns = [table[name].to_numpy() for name in self.names]
        changes = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
        firsts = np.flatnonzero(np.r_[True, changes]) if table.num_rows else []
        for first, last in zip(firsts, [*firsts[1:], table.num_rows], strict=True):
            run = tuple(table[name][first].as_py() for name in self.names)
            self.tables[run] = table.slice(first, last - first)

    def __contains__(self, run: Run) -> bool:
        return run in self.tables

    def add(self, run: Run, table: pa.Table) -> None:
        """Keep a run that has just ended, on disk too."""
        self.tables[run] = table
        if is_first():
            write_table(self.folder / f"{'_'.join(map(str, run))}.parquet", table, key=self.key)

    def publish(self, runs: Sequence[Run], schema: pa.Schema) -> None:
        """Write all `runs` in order as one file and drop the single ones."""
        if is_first():
            tables = [self.tables[run] for run in runs] or [schema.empty_table()]
            write_table(self.losses, pa.concat_tables(tables), key=self.key)
            shutil.rmtree(self.folder, ignore_errors=True)
