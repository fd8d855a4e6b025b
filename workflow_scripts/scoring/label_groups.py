"""Which tests have the label of a training row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import read_table


@dataclass(frozen=True)
class LabelGroups:
    """Groups of tests: those of each label, and last all of them, for rows whose label no test has.

    Parameters
    ----------
    weights: float32 [groups, tests], 1 / size of the group for its tests, 0 for others: a product with them is a mean.
    group_of: int [rows], the group of each row of the corpus, whose ids are its row numbers.
    """

    weights: np.ndarray
    group_of: np.ndarray

    @classmethod
    def read(cls, train: Path, test: Path, test_ids: np.ndarray) -> LabelGroups:
        """Group the tests of an evaluation by their label.

        Parameters
        ----------
        train: `corpora/` file of the training examples.
        test: `corpora/` file that the tests are drawn from.
        test_ids: int [tests], ids of the tests.
        """
        labels = read_table(test, ["label"])["label"].take(pa.array(test_ids)).to_pylist()
        groups = {label: number for number, label in enumerate(sorted({one for one in labels if one is not None}))}
        everything = len(groups)
        members = np.zeros((everything + 1, len(test_ids)), np.float32)
        members[everything] = 1
        for place, label in enumerate(labels):
            if label is not None:
                members[groups[label], place] = 1
        rows = read_table(train, ["label"])["label"].to_pylist()
        group_of = np.fromiter((groups.get(label, everything) for label in rows), np.int64, len(rows))
        return cls(members / members.sum(axis=1, keepdims=True), group_of)

    @property
    def rows_with_tests(self) -> int:
        """Number of rows whose label a test has."""
        return int(np.count_nonzero(self.group_of < len(self.weights) - 1))
