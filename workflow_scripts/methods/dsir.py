"""DSIR (Xie et al. 2023): importance of a training text for the distribution of a test's hashed n-grams.

A text is a bag of unigrams and bigrams of words and punctuation, in lower case, hashed to 10,000 buckets. The score
is the logarithm of its importance weight: the sum over its n-grams of log p_test - log p_train, where p_test and
p_train are the shares of the buckets in the test and in the whole training corpus.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import HashingVectorizer

from workflow_scripts.methods.text_scorer import Texts, TextScorer

BUCKETS = 10_000
# Added to every share, as in the authors' code, so that an n-gram that the test lacks has a finite weight.
SMOOTHING = 1e-8


def open_scorer(train: Texts, test: Texts, seed: int) -> TextScorer:
    """Return a scorer of log importance weights; `seed` is not used."""
    vectorizer = HashingVectorizer(
        n_features=BUCKETS,
        ngram_range=(1, 2),
        token_pattern=r"\w+|[^\w\s]+",
        norm=None,
        alternate_sign=False,
        dtype=np.float32,
    )
    examples = csr_array(vectorizer.transform(train.joined()))
    counts = csr_array(vectorizer.transform(test.joined()))
    in_train = np.asarray(examples.sum(axis=0, dtype=np.float64)).ravel()
    missing = np.log(SMOOTHING) - np.log(in_train / in_train.sum() + SMOOTHING)
    # What an example would score if the test had none of its n-grams; those that it has are added pair by pair.
    without = (examples @ missing)[:, None]
    length = np.asarray(counts.sum(axis=1)).ravel()
    share = counts.data / np.repeat(length, np.diff(counts.indptr))
    gained = np.log(share + SMOOTHING) - np.log(SMOOTHING)
    tests = csr_array((gained.astype(np.float32), counts.indices, counts.indptr), counts.shape)

    def score(rows: slice, columns: slice) -> np.ndarray:
        return (without[rows] + (examples[rows] @ tests[columns].T).toarray()).astype(np.float32)

    return TextScorer(score, (examples.data.nbytes + examples.indices.nbytes) / examples.shape[0])
