"""Blends: group scores of two methods, added with a weight that held-back folds choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import write_table
from workflow_scripts.scoring.chosen_pooling import read_chosen_row
from workflow_scripts.targets.labels import standardised_labels

WEIGHT_SCHEMA = pa.schema(
    [
        ("method_a", pa.string()),
        ("pooling_a", pa.string()),
        ("method_b", pa.string()),
        ("pooling_b", pa.string()),
        # Of the first method; that of the second is the rest to 1.
        ("weight", pa.float64()),
        # Root mean square, over the held-back tests, of the spread of a method's group scores over subsets.
        ("scale_a", pa.float64()),
        ("scale_b", pa.float64()),
        # Mean over the held-back folds.
        ("lds", pa.float64()),
        ("chosen", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Blend:
    """A weighted sum of two methods' group scores.

    Scores of two methods have no common unit, and neither do one method's scores for two tests, so both are
    standardised over the subsets (or examples) that a test is evaluated on, as labels are (paper, section 3.1).

    Parameters
    ----------
    methods: names of both methods.
    poolings: which of each method's group scores are added.
    weight: weight of the first method, in [0, 1]; the second has the rest.
    scales: for each method, the usual spread of its group scores over subsets, on the held-back folds.
    """

    methods: Sequence[str]
    poolings: Sequence[str]
    weight: float
    scales: Sequence[float] = (1.0, 1.0)

    @property
    def factors(self) -> tuple[float, float]:
        """What scores of single examples are multiplied by, before they are added.

        Unlike `scores` it has one unit for all tests, so that no other example is needed to score one.
        """
        first, second = (
            weight / scale if scale else 0.0 for weight, scale in zip(self._weights, self.scales, strict=True)
        )
        return first, second

    @property
    def _weights(self) -> tuple[float, float]:
        return self.weight, 1 - self.weight

    def __str__(self) -> str:
        parts = zip(self._weights, self.methods, self.poolings, strict=True)
        return " + ".join(f"{weight:.2f} {method} ({pooling})" for weight, method, pooling in parts)

    def scores(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the blended scores of subsets or examples, float64 [subsets, tests] or [examples, tests].

        Parameters
        ----------
        first: scores of the first method, float [subsets, tests] or [examples, tests].
        second: likewise of the second.
        """
        return self.weight * _standardised(first) + (1 - self.weight) * _standardised(second)


def _standardised(scores: np.ndarray) -> np.ndarray:
    return standardised_labels(-scores[:, None, :])


def write_blend(path: Path, candidates: Sequence[Blend], lds: Sequence[float], chosen: int) -> None:
    """Write every candidate with its LDS on the held-back folds, one row each.

    Parameters
    ----------
    path: Parquet file to write.
    candidates: the blends that were compared.
    lds: the LDS of each.
    chosen: the place of the chosen one.
    """
    rows = [
        (*one.methods, *one.poolings, one.weight, *one.scales, its_lds, place == chosen)
        for place, (one, its_lds) in enumerate(zip(candidates, lds, strict=True))
    ]
    names = ("method_a", "method_b", "pooling_a", "pooling_b", "weight", "scale_a", "scale_b", "lds", "chosen")
    write_table(path, pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)), WEIGHT_SCHEMA))


def read_blend(path: Path) -> Blend:
    """Return the chosen blend of a file that `write_blend` wrote.

    Raises
    ------
    StudyError: the file can't be read, or no one row is the chosen one.
    """
    row = read_chosen_row(path, "weights")
    methods, poolings, scales = ([row[f"{name}_a"], row[f"{name}_b"]] for name in ("method", "pooling", "scale"))
    return Blend(methods, poolings, row["weight"], scales)
