"""Read the rows of a corpus again from its source, with all of their columns."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from workflow_scripts.core.errors import StudyError, UnusableRowError
from workflow_scripts.core.parquet import read_batches
from workflow_scripts.corpora.chat import Turn
from workflow_scripts.corpora.readers import SourceRow, read_rows
from workflow_scripts.corpora.row_formats import Columns, read_example
from workflow_scripts.study.sections import Corpus

ROWS_AT_ONCE = 10_000


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
    corpus: Path, dataset: Path | None, origin: Corpus, last_id: int | None = None
) -> Iterator[OriginalRow]:
    """Yield the rows of a corpus in their order, read again from its source.

    A row counts as the same only if it has the same file, the same number there and the same content: a source that was
    changed since the corpus was read is refused.

    Parameters
    ----------
    corpus: `corpora/` file.
    dataset: hub only, JSON file with the commit that was read; None for other sources.
    origin: the corpus's section of the config: where it was read from, and how.
    last_id: id of the last row that is wanted; None for all.

    Raises
    ------
    StudyError: a row of the corpus isn't in the source any more.
    """
    columns: Columns = {str(meaning): names for meaning, names in origin.columns.items()}
    expected = _corpus_rows(corpus, last_id)
    wanted = next(expected, None)
    with contextlib.closing(_source_rows(origin, dataset)) as rows:
        for row in rows:
            if wanted is None:
                return
            if (row.file, row.number) == wanted[1:3] and _hash_of(row, columns, origin.response_turn) == wanted[3]:
                yield OriginalRow(wanted[0], f"row {row.number} of {row.file}", row.cells or {}, row.schema)
                wanted = next(expected, None)
    if wanted is not None:
        raise StudyError(
            f"row {wanted[2]} of {wanted[1]} isn't what it was when {corpus} was made from {origin.source}. Delete "
            f"{corpus} and run again: the corpus is read again, and what follows from it recomputed."
        )


def _corpus_rows(corpus: Path, last_id: int | None) -> Iterator[tuple[int, str, int, str]]:
    for batch in read_batches(corpus, ROWS_AT_ONCE, ["example_id", "source_file", "source_row", "hash"]):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if last_id is not None and row[0] > last_id:
                return
            yield row


def _source_rows(origin: Corpus, dataset: Path | None) -> Generator[SourceRow, None, None]:
    commit = json.loads(dataset.read_text(encoding="utf-8"))["commit"] if dataset else None
    return read_rows(
        origin.source,
        config_name=origin.config_name,
        split=origin.split,
        revision=origin.revision,
        data_files=origin.data_files,
        commit=commit,
    )


def _hash_of(row: SourceRow, columns: Columns, response_turn: Turn) -> str | None:
    if row.cells is None:
        return None
    try:
        return read_example(row.cells, columns, response_turn).hash
    except UnusableRowError:
        return None


def refuse_clashes(row: OriginalRow, added: Iterable[str]) -> None:
    """Raise `StudyError` if a row has a column of a name that is added."""
    if taken := [name for name in added if name in row.cells]:
        raise StudyError(
            f"{row.name} has a column {taken[0]!r} of its own. Write another `prefix` for this selection, or rename "
            "the column."
        )
