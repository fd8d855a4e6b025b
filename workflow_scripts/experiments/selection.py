"""Names, tasks and order that the runs on selected training data and their evaluation share."""

from pathlib import Path

import numpy as np
import pandas as pd

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import read_frame
from workflow_scripts.study.choices import FULL_DATA, RANDOM_SELECTION

RANDOM = RANDOM_SELECTION
FULL = FULL_DATA


def group_by_task(corpus: Path, test_ids: np.ndarray, tasks: int | None) -> dict[str, np.ndarray]:
    """Return for each task, which is a class label, the ids of its tests, int32 [tests].

    Parameters
    ----------
    corpus: `corpora/` file of the tests.
    test_ids: int [tests], ids of the test examples.
    tasks: number of tasks, those with most tests first; None for all.

    Raises
    ------
    StudyError: no test has a label.
    """
    # The ids of a corpus are its row numbers.
    labels = read_frame(corpus, ["label"])["label"].iloc[np.sort(test_ids)].dropna()
    if labels.empty:
        raise StudyError(
            f"none of the chosen tests of {corpus} has a label, so there is no task to select data for. Raise the "
            "evaluation's `tests`, or drop experiments.selection."
        )
    largest = labels.value_counts().sort_index().sort_values(ascending=False, kind="stable").index[:tasks]
    return {task: labels.index[labels == task].to_numpy(np.int32) for task in largest}


def best_ranked(example_ids: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return the distinct ids by their best rank, int [examples]; ties go to the lower id.

    Parameters
    ----------
    example_ids: int [pairs], an id may occur several times.
    ranks: int [pairs], the rank of each, from 1.
    """
    return pd.Series(ranks, example_ids).groupby(level=0).min().sort_values(kind="stable").index.to_numpy()
