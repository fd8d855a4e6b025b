"""What methods that score texts are given, and what they return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_scripts.core.parquet import read_table


@dataclass(frozen=True)
class Texts:
    """Prompts and responses of a corpus, in its order; `example_ids` is int64 [examples]."""

    example_ids: np.ndarray
    prompts: list[str]
    responses: list[str]

    @classmethod
    def read(cls, corpus: Path) -> Texts:
        """Read the texts of `corpora/<corpus>.parquet`."""
        table = read_table(corpus, columns=["example_id", "prompt", "response"])
        return cls(table["example_id"].to_numpy(), table["prompt"].to_pylist(), table["response"].to_pylist())

    def take(self, example_ids: np.ndarray) -> Texts:
        """Return the examples of these ids, in the order asked for."""
        place = {int(example_id): row for row, example_id in enumerate(self.example_ids)}
        rows = [place[int(example_id)] for example_id in example_ids]
        return Texts(
            self.example_ids[rows],
            [self.prompts[row] for row in rows],
            [self.responses[row] for row in rows],
        )

    def joined(self) -> list[str]:
        """Return each example as one text: prompt, line break, response."""
        pairs = zip(self.prompts, self.responses, strict=True)
        return [f"{prompt}\n{response}" for prompt, response in pairs]


@dataclass(frozen=True)
class TextScorer:
    """Scores of texts, on demand.

    Parameters
    ----------
    score: gives the scores of a slice of the training examples for a slice of the tests,
        float32 [examples, tests].
    bytes_per_example: what has to be stored of a training example.
    """

    score: Callable[[slice, slice], np.ndarray]
    bytes_per_example: float
