"""Word 3-grams of texts, by which near duplicates are found."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer


def word_triples(table: pa.Table) -> sparse.csr_matrix:
    """Return which word 3-grams each text has, as a sparse matrix of zeros and ones, float32 [texts, 2^22] (hashed).

    Parameters
    ----------
    table: has the columns `prompt` and `response`.
    """
    texts = [
        f"{prompt}\n{response}"
        for prompt, response in zip(table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True)
    ]
    vectorizer = HashingVectorizer(
        ngram_range=(3, 3),
        n_features=2**22,
        binary=True,
        norm=None,
        alternate_sign=False,
        token_pattern=r"\w+",
        dtype=np.float32,
    )
    return vectorizer.transform(texts)
