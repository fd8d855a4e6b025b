"""BM25 (bm25s, Lucene's variant): a test's text is the query, the training texts are the documents."""

from __future__ import annotations

import bm25s
import numpy as np
from scipy.sparse import coo_array, csc_array

from workflow_scripts.methods.text_scorer import Texts, TextScorer, without_words


def open_scorer(train: Texts, test: Texts, seed: int) -> TextScorer:
    """Return a scorer with the scores of `bm25s.BM25.get_scores`; `seed` is not used.

    Raises
    ------
    StudyError: no training text has a word.
    """
    index = bm25s.BM25()
    documents = bm25s.tokenize(train.joined(), show_progress=False)
    if not any(documents.ids):
        raise without_words("bm25")
    index.index(documents, show_progress=False)
    queries = bm25s.tokenize(test.joined(), return_ids=False, show_progress=False)

    # bm25s keeps the score of each (document, word); a query's score is the sum over its words.
    shape = (len(train.prompts), len(index.scores["indptr"]) - 1)
    examples = csc_array((index.scores["data"], index.scores["indices"], index.scores["indptr"]), shape).tocsr()
    words = [index.get_tokens_ids(query) for query in queries]
    test_of_word = np.repeat(np.arange(len(words)), [len(ids) for ids in words])
    word = np.concatenate([np.array(ids, np.int64) for ids in words])
    counts = coo_array((np.ones(len(word), np.float32), (word, test_of_word)), (shape[1], len(words))).tocsc()

    def score(rows: slice, columns: slice) -> np.ndarray:
        return (examples[rows] @ counts[:, columns]).toarray()

    return TextScorer(score, (examples.data.nbytes + examples.indices.nbytes) / shape[0])
