"""Rows of a corpus that ask nearly the same as a row, and whether they answer the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import read_batches
from workflow_scripts.corpora.same_text import answer_words
from workflow_scripts.corpora.tables import take_examples

# Smallest Jaccard similarity of the sets of words of two prompts that ask nearly the same.
NEAR_PROMPT = 0.8
ROWS_AT_ONCE = 20_000
ASKED_AT_ONCE = 256


@dataclass(frozen=True)
class NearPrompts:
    """The other rows that ask nearly the same as each of some rows.

    Parameters
    ----------
    rows: int64 [some], how many there are.
    other_answers: int64 [some], how many of them have another answer (`corpora.same_text.answer_words`).
    nearest: int64 [some], id of the most similar one with another answer, -1 if there is none; of equal ones the first.
    """

    rows: np.ndarray
    other_answers: np.ndarray
    nearest: np.ndarray


def find_near_prompts(corpus: Path, example_ids: np.ndarray) -> NearPrompts:
    """Return the rows whose prompts are nearly those of some rows: most of their words are the same.

    Memory grows with the rows that are asked for, and not with the corpus.

    Parameters
    ----------
    corpus: `corpora/` file.
    example_ids: int [some], ids of the rows.
    """
    # It takes a second to load.
    from sklearn.feature_extraction.text import HashingVectorizer

    options = {"n_features": 2**22, "binary": True, "norm": None, "alternate_sign": False, "dtype": np.float32}
    vectorizer = HashingVectorizer(token_pattern=r"\w+", **options)
    own = take_examples(corpus, example_ids, ["prompt", "response"])
    words = vectorizer.transform(own["prompt"].to_pylist())
    sizes = np.asarray(words.sum(axis=1)).ravel()
    answers = _keys(own["response"])
    rows, other_answers = np.zeros((2, len(example_ids)), np.int64)
    nearest, best = np.full(len(example_ids), -1), np.zeros(len(example_ids))
    for batch in read_batches(corpus, ROWS_AT_ONCE, ["example_id", "prompt", "response"]):
        others = vectorizer.transform(batch["prompt"].to_pylist())
        other_sizes = np.asarray(others.sum(axis=1)).ravel()
        ids, keys = batch["example_id"].to_numpy(), _keys(batch["response"])
        # Any two prompts that share a word have an entry in the product.
        for start in range(0, len(example_ids), ASKED_AT_ONCE):
            common = (words[start : start + ASKED_AT_ONCE] @ others.T).tocoo()
            asked = common.row + start
            similarity = common.data / (sizes[asked] + other_sizes[common.col] - common.data)
            near = (similarity >= NEAR_PROMPT) & (ids[common.col] != example_ids[asked])
            place, column, similarity = asked[near], common.col[near], similarity[near]
            differs = answers[place] != keys[column]
            np.add.at(rows, place, 1)
            place, column, similarity = place[differs], column[differs], similarity[differs]
            np.add.at(other_answers, place, 1)
            order = np.lexsort((column, -similarity, place))
            found, first = np.unique(place[order], return_index=True)
            first = order[first]
            better = similarity[first] > best[found]
            best[found[better]] = similarity[first][better]
            nearest[found[better]] = ids[column[first][better]]
    return NearPrompts(rows, other_answers, nearest)


def _keys(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a number for each answer, the same for those that `answer_words` takes for the same."""
    hashes = (hashlib.sha256("\n".join(answer_words(text)).encode()).digest() for text in texts.to_pylist())
    return np.array([int.from_bytes(digest[:8], "big") for digest in hashes], np.uint64)
