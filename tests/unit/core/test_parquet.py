"""A damaged or changed Parquet file is never read as a whole one."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_batches, read_metadata, read_table, write_table

TABLE = pa.table({"example_id": pa.array(range(1000), pa.int32()), "loss": pa.array([0.25] * 1000, pa.float32())})


@pytest.fixture
def path(tmp_path):
    write_table(tmp_path / "t.parquet", TABLE, key="abc")
    return tmp_path / "t.parquet"


def test_what_is_written_is_read(path):
    assert read_table(path).equals(TABLE)
    assert read_metadata(path)["key"] == "abc"


@pytest.mark.parametrize("place", [0.1, 0.5])
def test_a_damaged_file_is_refused(path, place):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(StudyError, match=r"t\.parquet can't be read as Parquet .* Delete the file and run again"):
        list(read_batches(path, 100))


def test_a_file_that_was_cut_short_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StudyError, match="can't be read as Parquet"):
        read_table(path)


def test_rows_under_the_seal_of_others_are_refused(path):
    metadata = pq.ParquetFile(path).metadata.metadata
    ours = {key: value for key, value in metadata.items() if key.startswith(b"airrep.")}
    with pq.ParquetWriter(path, TABLE.schema) as writer:
        writer.write_table(TABLE.slice(1))
        writer.add_key_value_metadata(ours)
    with pytest.raises(StudyError, match="its footer was changed after it was written"):
        read_table(path)


def test_a_missing_column_is_named(path):
    with pytest.raises(StudyError, match="has no column label; it has example_id, loss"):
        read_table(path, ["label"])
