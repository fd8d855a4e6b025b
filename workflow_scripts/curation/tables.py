"""The columns of a selection (docs/artifacts.md)."""

import pyarrow as pa

SELECTION_SCHEMA = pa.schema(
    [
        ("rank", pa.int32()),
        ("example_id", pa.int32()),
        ("score", pa.float32()),
        ("near_duplicates", pa.int32()),
        ("label", pa.string()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
        ("hash", pa.string()),
        ("test_id", pa.int32()),
        ("test_file", pa.string()),
        ("test_row", pa.int64()),
        ("reason", pa.string()),
    ]
)
