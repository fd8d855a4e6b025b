"""The columns of a prepared corpus and of its rejected rows (docs/artifacts.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import read_batches

CORPUS_SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("label", pa.string()),
        ("source_row", pa.int64()),
        ("source_file", pa.string()),
        ("hash", pa.string()),
    ]
)
REJECTED_SCHEMA = pa.schema([("source_row", pa.int64()), ("source_file", pa.string()), ("reason", pa.string())])
WHERE = ["source_file", "source_row"]
ROWS_AT_ONCE = 100_000


def take_examples(corpus: Path, example_ids: np.ndarray, columns: list[str]) -> pa.Table:
    """Return `columns` of the examples with these ids, one row an id, in their order.

    Memory depends on how many ids there are, and not on the size of the corpus.
    """
    wanted, place = np.unique(example_ids, return_inverse=True)
    found: list[pa.RecordBatch] = []
    start = 0
    for batch in read_batches(corpus, ROWS_AT_ONCE, columns):
        # The ids of a corpus are the places of its rows.
        first, last = np.searchsorted(wanted, [start, start + batch.num_rows])
        # Without ids too there is a table, of no row.
        if first < last or not found:
            found.append(batch.take(pa.array(wanted[first:last] - start)))
        start += batch.num_rows
    return pa.Table.from_batches(found).take(pa.array(place.ravel()))


def row_name(file: str, row: int, several_files: bool) -> str:
    """Return where a row stands, e.g. `row 7`, or `row 7 of b.jsonl` in a source of several files."""
    return f"row {row} of {file}" if several_files else f"row {row}"
