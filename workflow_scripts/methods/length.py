"""Length only: longer responses are held to be more helpful, to every test alike."""

from __future__ import annotations

import numpy as np

from workflow_scripts.methods.text_scorer import Texts, TextScorer


def open_scorer(train: Texts, test: Texts, seed: int) -> TextScorer:
    """Return a scorer whose score is log(1 + words of the training response); nothing of it is random."""
    words = np.array([len(response.split()) for response in train.responses], np.float32)
    scores = np.log1p(words)
    tests = len(test.responses)

    def score(rows: slice, columns: slice) -> np.ndarray:
        return np.repeat(scores[rows, None], len(range(tests)[columns]), axis=1)

    return TextScorer(score, scores.itemsize)
