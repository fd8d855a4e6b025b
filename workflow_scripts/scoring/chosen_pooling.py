"""The file in which `choose_pooling` says how a method's scores are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.scoring.group_scores import ChosenPooling

CHOICE_SCHEMA = pa.schema(
    [
        ("pooling", pa.string()),
        # Null for `mean`, which has none.
        ("scale", pa.float64()),
        # Mean over the held-back folds.
        ("lds", pa.float64()),
        ("chosen", pa.bool_()),
    ]
)


def write_chosen_pooling(path: Path, candidates: Sequence[ChosenPooling], lds: Sequence[float], chosen: int) -> None:
    """Write every candidate with its LDS on the held-back folds, one row each.

    Parameters
    ----------
    path: Parquet file to write.
    candidates: the poolings that were compared.
    lds: the LDS of each.
    chosen: the place of the chosen one.
    """
    columns = {
        "pooling": [one.pooling for one in candidates],
        "scale": [None if one.pooling == "mean" else one.scale for one in candidates],
        "lds": list(lds),
        "chosen": [place == chosen for place in range(len(candidates))],
    }
    write_table(path, pa.table(columns, CHOICE_SCHEMA))


def read_chosen_pooling(path: Path) -> ChosenPooling:
    """Return the chosen pooling of a method.

    Raises
    ------
    StudyError: the file can't be read, or no one row is the chosen one.
    """
    row = read_chosen_row(path, "poolings")
    return ChosenPooling(row["pooling"], 1.0 if row["scale"] is None else row["scale"])


def read_chosen_row(path: Path, candidates: str) -> dict[str, Any]:
    """Return the row of a table of candidates that its column `chosen` marks.

    Parameters
    ----------
    path: the Parquet file.
    candidates: what its rows are, for messages, e.g. `poolings`.

    Raises
    ------
    StudyError: the file can't be read, or no one row is the chosen one.
    """
    rows: list[dict[str, Any]] = [row for row in read_table(path).to_pylist() if row["chosen"]]
    if len(rows) != 1:
        raise StudyError(
            f"{path}: {len(rows)} {candidates} are marked as chosen instead of one. Delete it and run again."
        )
    return rows[0]
