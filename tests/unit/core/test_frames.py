"""Data frames at the Parquet border: types, missing values, metadata; and Snakemake parses without pandas."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import read_frame, write_frame
from workflow_scripts.core.parquet import read_metadata, read_table, table_metadata, write_table

SCHEMA = pa.schema(
    [("method", pa.string()), ("tests", pa.int32()), ("value", pa.float64()), ("ids", pa.list_(pa.int32()))]
)


def test_a_frame_is_written_in_the_schemas_types_and_read_back(tmp_path):
    frame = pd.DataFrame(
        {
            "left_out": ["no column of the schema"] * 2,
            "ids": [np.array([3, 4]), np.array([], int)],
            "value": [0.5, np.nan],
            "tests": [7, None],
            "method": ["airrep", None],
        },
        index=[5, 6],
    )
    with table_metadata(spec="abc"):
        write_frame(tmp_path / "table.parquet", frame, SCHEMA, seconds="1")
    table = read_table(tmp_path / "table.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [
        {"method": "airrep", "tests": 7, "value": 0.5, "ids": [3, 4]},
        {"method": None, "tests": None, "value": None, "ids": []},
    ]
    assert {"spec": "abc", "seconds": "1"}.items() <= read_metadata(tmp_path / "table.parquet").items()
    read = read_frame(tmp_path / "table.parquet", ["tests", "ids", "value"])
    assert [str(dtype) for dtype in read.dtypes] == ["int32[pyarrow]", "list<element: int32>[pyarrow]", "float64"]
    assert read["tests"].isna().tolist() == [False, True]


def test_null_and_nan_are_the_same_missing_float(tmp_path):
    write_table(tmp_path / "table.parquet", pa.table({"value": pa.array([1.0, None, float("nan")])}))
    values = read_frame(tmp_path / "table.parquet")["value"]
    assert values.isna().tolist() == [False, True, True]
    assert values.mean() == 1.0


def test_a_table_without_rows_has_its_columns(tmp_path):
    write_frame(tmp_path / "table.parquet", pd.DataFrame([], columns=SCHEMA.names), SCHEMA)
    assert read_table(tmp_path / "table.parquet").equals(SCHEMA.empty_table())


def test_a_missing_column_is_named(tmp_path):
    write_frame(tmp_path / "table.parquet", pd.DataFrame([], columns=SCHEMA.names), SCHEMA)
    with pytest.raises(StudyError, match="has no column label; it has method, tests, value, ids"):
        read_frame(tmp_path / "table.parquet", ["label"])


def test_what_snakemake_reads_imports_no_pandas():
    modules = ("config", "costs", "specs", "plan", "resources")
    imports = "".join(f"import workflow_scripts.study.{module}\n" for module in modules)
    check = imports + "import sys\nprint({'pandas', 'pyarrow', 'numpy', 'torch'} & sys.modules.keys() or '')"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "\n"
