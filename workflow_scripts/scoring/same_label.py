"""Which tests have the label of a training row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import read_table

NO_TEST = -1


@dataclass(frozen=True)
class SameLabelTests:
    """The tests of each label.

    Parameters
    ----------
    weights: float32 [labels, tests], 1 / number of the label's tests for these, 0 for others: a product with them is a
        mean.
    group_of: int [rows], the place of each row's label in `weights`, `NO_TEST` for a row whose label no test has. The
        ids of a corpus are its row numbers.
    """

    weights: np.ndarray
    group_of: np.ndarray

    @classmethod
    def read(cls, train: Path, test: Path, test_ids: np.ndarray) -> SameLabelTests:
        """Group the tests of an evaluation by their label.

        Parameters
        ----------
        train: `corpora/` file of the training examples.
        test: `corpora/` file that the tests are drawn from.
        test_ids: int [tests], ids of the tests.
        """
        labels = read_table(test, ["label"])["label"].take(pa.array(test_ids)).to_pylist()
        places = {label: place for place, label in enumerate(sorted({one for one in labels if one is not None}))}
        members = np.zeros((len(places), len(test_ids)), np.float32)
        for test_place, label in enumerate(labels):
            if label is not None:
                members[places[label], test_place] = 1
        rows = read_table(train, ["label"])["label"].to_pylist()
        group_of = np.fromiter((places.get(label, NO_TEST) for label in rows), np.int64, len(rows))
        return cls(members / members.sum(axis=1, keepdims=True), group_of)

    def means(self, scores: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        """Return the mean score of each row over the tests of its label, float32 [rows]; NaN where there is none.

        Parameters
        ----------
        scores: float32 [rows, tests].
        rows: the rows' ids.
        """
        return self.pick(scores @ self.weights.T, rows)

    def pick(self, by_label: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        """Return of each row the value of its label, float32 [rows]; NaN where no test has it.

        Parameters
        ----------
        by_label: float32 [rows, labels].
        rows: the rows' ids.
        """
        groups = self.group_of[rows]
        if not len(self.weights):
            return np.full(len(groups), np.nan, np.float32)
        return np.where(groups == NO_TEST, np.float32(np.nan), by_label[np.arange(len(groups)), groups])

    def among(self, scores: np.ndarray, rows: np.ndarray | slice, fill: float) -> np.ndarray:
        """Return `scores` with `fill` for the tests of other labels than the row's; parameters as in `means`."""
        return np.where(self.weights[self.group_of[rows]] > 0, scores, np.float32(fill))
