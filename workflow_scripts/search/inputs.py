"""Corpora and queries of the user's own, as the command line names them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from workflow_scripts.core.errors import StudyError, UnusableRowError
from workflow_scripts.core.parquet import read_batches, read_table
from workflow_scripts.core.progress import say
from workflow_scripts.corpora.prepare_corpus import TooManyRejectedError, prepare_corpus
from workflow_scripts.corpora.readers import read_rows
from workflow_scripts.corpora.row_formats import read_example
from workflow_scripts.corpora.tables import CORPUS_SCHEMA, ROWS_AT_ONCE, WHERE
from workflow_scripts.search.query import Query
from workflow_scripts.study.messages import explain
from workflow_scripts.study.sections import COLUMN_MEANINGS, Corpus

REJECTED_SHOWN = 10


def prepared_corpus(source: str, folder: Path, **reading: Any) -> Path:
    """Return `source` itself if it is a `corpora/` file of the workflow, else read it into one in `folder`.

    `reading` holds keys of a study's corpus, `columns` and `max_rejected_share` for instance.

    Raises
    ------
    StudyError: the source can't be read, or too many of its rows can't be used; the message names them.
    """
    path = Path(source)
    if path.suffix == ".parquet" and path.exists() and _is_prepared(path):
        return path
    corpus = folder / f"{len(list(folder.iterdir()))}.parquet"
    rejected = corpus.with_suffix(".rejected.parquet")
    try:
        settings = Corpus(source=source, **reading).model_dump(exclude={"without"})
    except ValidationError as error:
        found = "\n".join(explain(one, Corpus) for one in error.errors())
        raise StudyError(f"the corpus can't be read:\n{found}") from None
    try:
        prepare_corpus(corpus, rejected, **settings)
    except TooManyRejectedError as error:
        raise StudyError(
            f"{error.found}\nMend the rows, name their columns by --columns or --query-columns, e.g. "
            "prompt=question,response=reply, or raise --max-rejected-share."
        ) from None
    for row in read_table(rejected).slice(0, REJECTED_SHOWN).to_pylist():
        say(f"{source}: row {row['source_row']} of {row['source_file']} is left out: {row['reason']}")
    return corpus


def _is_prepared(path: Path) -> bool:
    """Return whether a Parquet file is a `corpora/` file, whose ids are its row numbers, and not some rows of one."""
    if not set(CORPUS_SCHEMA.names) <= set(_columns(path)):
        return False
    start = 0
    for batch in read_batches(path, ROWS_AT_ONCE, ["example_id"]):
        if not np.array_equal(batch["example_id"].to_numpy(zero_copy_only=False), start + np.arange(len(batch))):
            say(f"{path} has rows of a prepared corpus, but not all in their order, so it is read as one of your own.")
            return False
        start += len(batch)
    return True


def columns_given(text: str) -> dict[str, str | list[str]]:
    """Return `--columns` as the key `columns` of a study, e.g. `prompt=context,prompt=question,response=answer`.

    Raises
    ------
    argparse.ArgumentTypeError: a part isn't written that way.
    """
    columns: dict[str, str | list[str]] = {}
    for part in text.split(","):
        meaning, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or not name or meaning not in COLUMN_MEANINGS or (meaning in columns and meaning != "prompt"):
            raise argparse.ArgumentTypeError(
                f"{part!r} is not one of {', '.join(COLUMN_MEANINGS)} (each once, but for prompt), '=' and a column's "
                "name"
            )
        before = columns.get(meaning, [])
        columns[meaning] = [*before, name] if meaning == "prompt" else name
    return columns


def _columns(path: Path) -> list[str]:
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise StudyError(f"{path} can't be read as Parquet: {error}") from None


def read_queries(corpus: Path) -> list[Query]:
    """Return every row of a `corpora/` file as a query."""
    table = read_table(corpus, ["prompt", "response", *WHERE])
    return [Query(row["prompt"], row["response"], row["source_row"], row["source_file"]) for row in table.to_pylist()]


def read_query_file(path: Path, most: int) -> tuple[list[Query], list[dict[str, Any]]]:
    """Return the rows of a file as queries, as `prepared_corpus` would read them, and those that can't be used.

    Parameters
    ----------
    path: a file of any kind that corpora are read from.
    most: most rows that it may have.

    Returns
    -------
    The queries, and a dict with `query` (row, from 1) and `reason` for each row that can't be used.

    Raises
    ------
    StudyError: the file can't be read, or it has more rows.
    """
    queries, left_out = [], []
    for count, row in enumerate(read_rows(str(path)), 1):
        if count > most:
            raise StudyError(
                f"{path.name} has more than {most:,} rows; ask about so many by python -m workflow_scripts.attribute "
                f"--queries {path.name}"
            )
        try:
            if row.cells is None:
                raise UnusableRowError(row.reason)
            example = read_example(row.cells, {}, "last")
        except UnusableRowError as error:
            left_out.append({"query": row.number, "reason": str(error)})
        else:
            queries.append(Query(example.prompt, example.response, row.number, row.file))
    return queries, left_out
