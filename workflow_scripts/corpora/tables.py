"""The columns of a prepared corpus and of its rejected rows (docs/artifacts.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
# A row with its text may be a chat of 30 kB.
TEXTS_AT_ONCE = 5_000


def take_examples(corpus: Path, example_ids: np.ndarray, columns: list[str]) -> pa.Table:
    """Return `columns` of the examples with these ids, one row an id, in their order.

    Memory depends on how many ids there are, and not on the size of the corpus.
    """
    wanted, place = np.unique(example_ids, return_inverse=True)
    found: list[pa.RecordBatch] = []
    start = 0
    for batch in read_batches(corpus, TEXTS_AT_ONCE, columns):
        # The ids of a corpus are the places of its rows.
        first, last = np.searchsorted(wanted, [start, start + batch.num_rows])
        # Without ids too there is a table, of no row.
        if first < last or not found:
            found.append(batch.take(pa.array(wanted[first:last] - start)))
        start += batch.num_rows
    return pa.Table.from_batches(found).take(pa.array(place.ravel()))


def equals_a_test(train: Path, test: Path, test_ids: np.ndarray) -> np.ndarray:
    """Return of each row whether its prompt and response are those of one of the tests, bool [rows].

    Such a row ranks first for its test, and what is trained on it can't be judged by that test.

    Parameters
    ----------
    train: `corpora/` file of the rows.
    test: `corpora/` file of the tests; it may be the same.
    test_ids: int [tests], ids of the tests.
    """
    return stands_among(train, take_examples(test, test_ids, ["hash"])["hash"])


def stands_among(corpus: Path, hashes: pa.ChunkedArray) -> np.ndarray:
    """Return of each row of a `corpora/` file whether its hash is one of `hashes`, bool [rows]."""
    wanted = hashes.combine_chunks()
    batches = read_batches(corpus, ROWS_AT_ONCE, ["hash"])
    found = [pc.is_in(batch["hash"], wanted).to_numpy(zero_copy_only=False) for batch in batches]
    return np.concatenate([np.empty(0, bool), *found])


def row_name(file: str, row: int, several_files: bool) -> str:
    """Return where a row stands, e.g. `row 7`, or `row 7 of b.jsonl` in a source of several files."""
    return f"row {row} of {file}" if several_files else f"row {row}"
