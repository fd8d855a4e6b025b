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
    """Read a method's scores of subsets of one example each; with one member, every pooling gives its score.

    Returns
    -------
    Scores, float32: one row per test, its id in the index, and one column per example, named by its id.

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
