"""The interface of methods that score texts: `open_scorer(train, test, seed) -> TextScorer` of each method's module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table


@dataclass(frozen=True)
class Texts:
    """Prompts and responses of a corpus, in its order.

    Parameters
    ----------
    example_ids: int64 [examples].
    prompts: the prompt of each example.
    responses: the response of each example.
    """

    example_ids: np.ndarray
    prompts: list[str]
    responses: list[str]

    @classmethod
    def read(cls, corpus: Path) -> Texts:
        """Read the texts of `corpora/<corpus>.parquet`."""
        table = read_table(corpus, columns=["example_id", "prompt", "response"])
        return cls(table["example_id"].to_numpy(), table["prompt"].to_pylist(), table["response"].to_pylist())

    def take(self, example_ids: np.ndarray) -> Texts:
        """Return the examples with these ids, int [examples], in the order given."""
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
    """Computes scores of texts.

    Parameters
    ----------
    score: function from a slice of the training examples and a slice of the tests to float32 [examples, tests].
    bytes_per_example: mean bytes that are stored for a training example.
    """

    score: Callable[[slice, slice], np.ndarray]
    bytes_per_example: float


def without_words(method: str) -> StudyError:
    """Return the error for a training corpus in whose texts a method finds no word, e.g. one of single digits."""
    return StudyError(
        f"{method} compares words, and no text of the training corpus has one that it reads. Leave {method} out of "
        "scoring.methods."
    )
