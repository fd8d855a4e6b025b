"""A baseline of length only: longer responses get higher scores, the same for every test."""

from __future__ import annotations

import numpy as np

from workflow_scripts.methods.text_scorer import Texts, TextScorer


def open_scorer(train: Texts, test: Texts, seed: int) -> TextScorer:
    """Return a scorer whose score is log(1 + number of words of the training response); `seed` is not used."""
    words = np.array([len(response.split()) for response in train.responses], np.float32)
    scores = np.log1p(words)
    tests = len(test.responses)

    def score(rows: slice, columns: slice) -> np.ndarray:
        return np.repeat(scores[rows, None], len(range(tests)[columns]), axis=1)

    return TextScorer(score, scores.itemsize)
