"""Read the rows of a corpus again from its source, with all of their columns."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from workflow_scripts.core.errors import StudyError, UnusableRowError
from workflow_scripts.core.parquet import read_batches
from workflow_scripts.corpora.chat import Turn
from workflow_scripts.corpora.readers import SourceRow, read_rows
from workflow_scripts.corpora.row_formats import Columns, read_example

ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class CorpusSource:
    """Where a corpus was read from, and how; keys of its section in the config.

    Parameters
    ----------
    source: `builtin:mini`, a local file or glob, or a hub dataset id.
    config_name: hub only, the dataset's config name.
    split: hub only, the split.
    revision: hub only, a commit, tag or branch.
    data_files: hub only, file or pattern inside the dataset.
    columns: names of the columns `prompt`, `response`, `messages` and `label`, where they differ.
    response_turn: which assistant turn of a chat is the response, `last` or `first`.
    """

    source: str
    config_name: str | None
    split: str
    revision: str | None
    data_files: str | None
    columns: Columns
    response_turn: Turn

    def rows(self, dataset: Path | None) -> Generator[SourceRow, None, None]:
        """Yield all rows; `dataset` is the JSON file with the commit that `revision` was resolved to."""
        commit = json.loads(dataset.read_text(encoding="utf-8"))["commit"] if dataset else None
        return read_rows(
            self.source,
            config_name=self.config_name,
            split=self.split,
            revision=self.revision,
            data_files=self.data_files,
            commit=commit,
        )


class OriginalRow(NamedTuple):
    """A row of a corpus as its source has it.

    Attributes
    ----------
    example_id: its id in the corpus.
    name: where it stands, for messages.
    cells: values by column.
    schema: columns and types of its file, if that is Parquet; otherwise None.
    """

    example_id: int
    name: str
    cells: Mapping[str, object]
    schema: pa.Schema | None


def original_rows(
    corpus: Path, dataset: Path | None, source: CorpusSource, last_id: int | None = None
) -> Iterator[OriginalRow]:
    """Yield the rows of a corpus in their order, read again from its source.

    A row counts as the same only if it has the same file, the same number there and the same content: a source that was
    changed since the corpus was read is refused.

    Parameters
    ----------
    corpus: `corpora/` file.
    dataset: hub only, JSON file with the commit that was read; None for other sources.
    source: where the corpus was read from.
    last_id: id of the last row that is wanted; None for all.

    Raises
    ------
    StudyError: a row of the corpus isn't in the source any more.
    """
    expected = _corpus_rows(corpus, last_id)
    wanted = next(expected, None)
    with contextlib.closing(source.rows(dataset)) as rows:
        for row in rows:
            if wanted is None:
                return
            if (row.file, row.number) == wanted[1:3] and _hash_of(row, source) == wanted[3]:
                yield OriginalRow(wanted[0], f"row {row.number} of {row.file}", row.cells or {}, row.schema)
                wanted = next(expected, None)
    if wanted is not None:
        raise StudyError(
            f"row {wanted[2]} of {wanted[1]} isn't what it was when {corpus} was made from {source.source}. Delete "
            f"{corpus} and run again: the corpus is read again, and what follows from it recomputed."
        )


def _corpus_rows(corpus: Path, last_id: int | None) -> Iterator[tuple[int, str, int, str]]:
    for batch in read_batches(corpus, ROWS_AT_ONCE, ["example_id", "source_file", "source_row", "hash"]):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if last_id is not None and row[0] > last_id:
                return
            yield row


def _hash_of(row: SourceRow, source: CorpusSource) -> str | None:
    if row.cells is None:
        return None
    try:
        return read_example(row.cells, source.columns, source.response_turn).hash
    except UnusableRowError:
        return None


def refuse_clashes(row: OriginalRow, added: Iterable[str]) -> None:
    """Raise `StudyError` if a row has a column of a name that is added."""
    if taken := [name for name in added if name in row.cells]:
        raise StudyError(
            f"{row.name} has a column {taken[0]!r} of its own. Write another `prefix` for this selection, or rename "
            "the column."
        )
