"""The file in which `choose_pooling` says how a method's scores are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    rows = [row for row in read_table(path).to_pylist() if row["chosen"]]
    if len(rows) != 1:
        raise StudyError(f"{path}: {len(rows)} poolings are marked as chosen instead of one. Delete it and run again.")
    return ChosenPooling(rows[0]["pooling"], 1.0 if rows[0]["scale"] is None else rows[0]["scale"])
