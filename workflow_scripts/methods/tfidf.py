"""TF-IDF: cosine of scikit-learn's TF-IDF vectors, fitted on the training corpus."""

from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from workflow_scripts.methods.text_scorer import Texts, TextScorer, without_words


def open_scorer(train: Texts, test: Texts, seed: int) -> TextScorer:
    """Return a scorer of the cosine of TF-IDF vectors of prompt and response; `seed` is not used.

    Raises
    ------
    StudyError: no training text has a word.
    """
    vectorizer = TfidfVectorizer(dtype=np.float32)
    texts = train.joined()
    if not any(map(vectorizer.build_analyzer(), texts)):
        raise without_words("tfidf")
    examples = vectorizer.fit_transform(texts)
    tests = vectorizer.transform(test.joined())

    def score(rows: slice, columns: slice) -> np.ndarray:
        return (examples[rows] @ tests[columns].T).toarray()

    return TextScorer(score, (examples.data.nbytes + examples.indices.nbytes) / examples.shape[0])
