"""The columns of a prepared corpus and of its rejected rows (docs/artifacts.md)."""

from __future__ import annotations

import pyarrow as pa

CORPUS_SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("label", pa.string()),
        ("source_row", pa.int64()),
        ("hash", pa.string()),
    ]
)
REJECTED_SCHEMA = pa.schema([("source_row", pa.int64()), ("source_file", pa.string()), ("reason", pa.string())])
