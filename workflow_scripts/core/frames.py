"""Parquet tables as pandas data frames: results, runs and plans, up to some hundred thousand rows.

Targets, embeddings and scores have millions and stay Arrow and NumPy (`core.parquet`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from workflow_scripts.core.parquet import read_table, write_table


def read_frame(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a Parquet file into Arrow-backed columns, floats into NumPy's.

    A missing float is NaN, whether the file has null or NaN there; any other missing value is `pd.NA`.

    Parameters
    ----------
    path: the file.
    columns: which to read; all if None.

    Raises
    ------
    StudyError: as in `read_table`.
    """
    frame: pd.DataFrame = read_table(path, columns).to_pandas(types_mapper=_dtype)
    return frame


def _dtype(column: pa.DataType) -> pd.ArrowDtype | None:
    # Arrow-backed floats would have two missing values, NaN and NA, and count the first as a number.
    return None if pa.types.is_floating(column) else pd.ArrowDtype(column)


def rows_of(frame: pd.DataFrame) -> Iterable[Any]:
    """Return the rows of `frame` as named tuples; the types of its columns are known at run time only."""
    return frame.itertuples()


def write_frame(path: Path, frame: pd.DataFrame, schema: pa.Schema, **metadata: str) -> None:
    """Write a data frame to a Parquet file, whole or not at all; missing values, NaN among them, become null.

    Parameters
    ----------
    path: the file.
    frame: has at least the columns of `schema`; others are left out.
    schema: names, order and types of the file's columns.
    metadata: entries of the file's metadata, see `write_table`.
    """
    write_table(path, pa.Table.from_pandas(frame, schema, preserve_index=False), **metadata)
