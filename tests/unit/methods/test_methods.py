"""Methods that score texts: their libraries' own numbers, whatever the tile; and the registry."""

import bm25s
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from workflow_scripts.core.errors import StudyError
from workflow_scripts.methods.loading import load_text_method
from workflow_scripts.methods.text_scorer import Texts
from workflow_scripts.scoring.group_scores import POOLINGS
from workflow_scripts.study.methods import METHODS

TEXT_METHODS = [name for name, method in METHODS.items() if not (method.encoder or method.own)]
EVERYTHING = slice(None)

TRAIN = Texts(
    np.arange(5),
    ["where do cats sleep", "what barks at night", "", "cats and cats", "add two and two"],
    ["cats sleep on warm mats", "dogs", "silence", "many cats sleep in one house", "four"],
)
TEST = Texts(np.arange(3), ["where do the cats sleep", "unheard words entirely", "cats"], ["on mats", "zzz", "cats"])


def test_methods_pool_in_known_ways():
    assert all(set(method.poolings) <= set(POOLINGS) for method in METHODS.values())


def test_tfidf_gives_scikit_learns_cosine():
    vectorizer = TfidfVectorizer().fit(TRAIN.joined())
    expected = cosine_similarity(vectorizer.transform(TRAIN.joined()), vectorizer.transform(TEST.joined()))
    found = load_text_method("tfidf")(TRAIN, TEST, 0).score(EVERYTHING, EVERYTHING)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("method", ["tfidf", "bm25"])
def test_texts_without_words_are_told(method):
    digits = Texts(np.arange(2), ["2 + 2", "3 + 4"], ["4", "7"])
    with pytest.raises(StudyError, match=f"Leave {method} out of scoring.methods"):
        load_text_method(method)(digits, TEST, 0)
    some = Texts(np.arange(2), ["2 + 2", "cats and mats"], ["4", "7"])
    scores = load_text_method(method)(some, TEST, 0).score(EVERYTHING, EVERYTHING)
    assert (scores[0] == 0).all()
    assert scores[1].max() > 0


def test_bm25_gives_bm25s_scores():
    index = bm25s.BM25()
    index.index(bm25s.tokenize(TRAIN.joined(), show_progress=False), show_progress=False)
    queries = bm25s.tokenize(TEST.joined(), return_ids=False, show_progress=False)
    expected = np.stack([index.get_scores(query) for query in queries], axis=1)
    found = load_text_method("bm25")(TRAIN, TEST, 0).score(EVERYTHING, EVERYTHING)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0, 0] > 0
    assert (found[:, 1] == 0).all()


def test_dsir_is_the_log_importance_weight_by_hand():
    """n-grams of the corpus: red 3 times; cat, `red cat`, `.`, `red red` and `red .` once. The test has three."""
    train = Texts(np.arange(2), ["red", "Red"], ["cat", "red."])
    test = Texts(np.arange(1), ["red"], ["cat"])
    found = load_text_method("dsir")(train, test, 0).score(EVERYTHING, EVERYTHING)
    red, once, lacking = np.log(1 / 3) - np.log(3 / 8), np.log(1 / 3) - np.log(1 / 8), np.log(1e-8) - np.log(1 / 8)
    np.testing.assert_allclose(found, [[red + 2 * once], [2 * red + 3 * lacking]], rtol=1e-5)


def test_length_counts_the_words_of_the_response():
    found = load_text_method("length")(TRAIN, TEST, 0).score(EVERYTHING, EVERYTHING)
    np.testing.assert_allclose(found, np.log([[6] * 3, [2] * 3, [2] * 3, [7] * 3, [2] * 3]), rtol=1e-6)


def test_random_depends_on_the_seed():
    scorers = [load_text_method("random")(TRAIN, TEST, seed) for seed in (0, 0, 1)]
    first, again, other = (scorer.score(EVERYTHING, EVERYTHING) for scorer in scorers)
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_tiles_are_pieces_of_the_whole(method):
    scorer = load_text_method(method)(TRAIN, TEST, 7)
    whole = scorer.score(EVERYTHING, EVERYTHING)
    assert whole.shape == (5, 3)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(scorer.score(slice(1, 4), slice(1, 3)), whole[1:4, 1:3])
    assert scorer.bytes_per_example >= 0


def test_texts_are_taken_in_the_order_asked_for():
    chosen = TRAIN.take(np.array([3, 0]))
    assert chosen.prompts == ["cats and cats", "where do cats sleep"]
    assert chosen.example_ids.tolist() == [3, 0]
    assert chosen.joined()[1] == "where do cats sleep\ncats sleep on warm mats"
