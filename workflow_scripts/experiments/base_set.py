"""The base set of an experiment that leaves examples out, and each method's scores of its examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table


@dataclass(frozen=True)
class ExampleScores:
    """Scores of single examples: float32 [tests, examples], of `test_ids` and `example_ids`."""

    test_ids: np.ndarray
    example_ids: np.ndarray
    scores: np.ndarray

    def of_test(self, test_id: int) -> np.ndarray:
        """Return a test's scores of all examples, float32 [examples]."""
        return self.scores[int(np.flatnonzero(self.test_ids == test_id)[0])]

    def summed(self, groups: Sequence[np.ndarray]) -> np.ndarray:
        """Return the sums of the scores of groups of examples (ids), float64 [tests, groups]."""
        column = {int(example_id): number for number, example_id in enumerate(self.example_ids)}
        columns = [[column[int(example_id)] for example_id in group] for group in groups]
        return np.stack([self.scores[:, chosen].sum(axis=1, dtype=np.float64) for chosen in columns], axis=1)


def read_base(base: Path) -> np.ndarray:
    """Return the example ids of a base set, int32, in the order in which they are fine-tuned on."""
    return read_table(base, ["example_ids"])["example_ids"].combine_chunks().values.to_numpy()


def read_base_scores(groups: Path, base_ids: np.ndarray) -> ExampleScores:
    """Read a method's scores of subsets of one example each; with one member, every pooling gives its score.

    Raises
    ------
    StudyError: the file was made for another base set.
    """
    table = read_table(groups)
    pooling = table["pooling"].to_numpy(zero_copy_only=False)
    first = pooling == pooling[0]
    columns = [table[name].to_numpy()[first] for name in ("test_id", "subset", "score")]
    order = np.lexsort((columns[1], columns[0]))
    tests, subsets, scores = (column[order] for column in columns)
    test_ids = np.unique(tests)
    if not np.array_equal(subsets, np.tile(np.arange(len(base_ids)), len(test_ids))):
        raise StudyError(f"{groups} was made for another base set. Delete the file and run again.")
    return ExampleScores(test_ids, base_ids, scores.reshape(len(test_ids), len(base_ids)))
