"""The base set of an experiment that leaves examples out, and each method's scores of its examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import read_frame
from workflow_scripts.core.parquet import read_table


def read_base(base: Path) -> np.ndarray:
    """Return the example ids of a base set, int32, in the order in which they are fine-tuned on."""
    return read_table(base, ["example_ids"])["example_ids"].combine_chunks().values.to_numpy()


def read_base_scores(groups: Path, base_ids: np.ndarray) -> pd.DataFrame:
    """Read a method's scores of a base set, which are group scores of subsets of one example each.

    With one member, every pooling gives the example's score.

    Parameters
    ----------
    groups: the method's group scores of the base set.
    base_ids: int32 [examples], ids of the base set in its order.

    Returns
    -------
    float32 scores: one row per test, with its id as the index, and one column per example, named by its id.

    Raises
    ------
    StudyError: the file was made for another base set.
    """
    table = read_frame(groups)
    table = table[table["pooling"] == table["pooling"].iloc[0]]
    scores = table.pivot(index="test_id", columns="subset", values="score")
    if scores.columns.tolist() != list(range(len(base_ids))) or scores.isna().any(axis=None):
        raise StudyError(f"{groups} was made for another base set. Delete the file and run again.")
    return scores.set_axis(base_ids, axis=1)
