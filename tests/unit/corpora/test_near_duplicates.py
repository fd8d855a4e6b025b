"""Texts share the three words in a row that they share, and no more."""

import pyarrow as pa

from workflow_scripts.corpora.near_duplicates import word_triples


def test_triples_run_over_prompt_and_response_and_count_once():
    table = pa.table({"prompt": ["one two three", "One, two: THREE!", "a b"], "response": ["four", "five", "a b a b"]})
    triples = word_triples(table)
    shared = (triples @ triples.T).toarray()
    # "one two three", "two three four" | "one two three", "two three five" | "a b a", "b a b", each more than once.
    assert shared.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 2]]


def test_two_words_are_no_triple():
    table = pa.table({"prompt": ["one"], "response": ["two"]})
    assert word_triples(table).nnz == 0
