"""Scores of a study's method for folds of the targets' corpus, each with tests and members of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workflow_scripts.embeddings.tiles import embedding_tiles, inner_products, take_embeddings
from workflow_scripts.methods.loading import load_text_method
from workflow_scripts.scoring.sources import Source, open_texts

# Of a tile: ids of its examples, int [examples], and their scores, float32 [examples, tests].
Scores = Iterator[tuple[np.ndarray, np.ndarray]]
ScoreFold = Callable[[np.ndarray, np.ndarray], Scores]


def load_fold_scorer(
    method: str,
    corpus: Path,
    train_embeddings: Sequence[Path],
    test_embeddings: Sequence[Path],
    *,
    tokens: Path | None,
    language_model: Path | None,
    fitted: Path | None,
    unstored: Mapping[str, Any] | None,
    tests_of_folds: Sequence[np.ndarray],
    seed: int,
    tile_examples: int,
) -> ScoreFold:
    """Load what a method's scores need; return a function that yields those of a fold, tile by tile.

    The function takes the ids of the fold's tests, int [tests], and those of its members, int [examples], each once:
    the examples that occur in its subsets.
    What it yields may hold further examples. The next tile overwrites the scores.

    Stored embeddings are read once and kept in memory, for all folds; of those of tests, which may stand in files of
    their own, the ones that are needed.

    Parameters
    ----------
    method: name of the method, which is that of its module if it scores texts.
    corpus: `corpora/` file that both are drawn from.
    train_embeddings: embeddings of the corpus as training examples, several files where it is split; empty for methods
        that store none.
    test_embeddings: embeddings of the corpus as tests; likewise.
    tokens: `tokens/` file of the corpus, for a method whose embeddings aren't stored.
    language_model: folder of the LM of such a method.
    fitted: file that `fit_method` wrote for it.
    unstored: how it computes its embeddings, see `scoring.unstored.load_unstored`; None for other methods.
    tests_of_folds: for each fold, int [tests], the ids of its tests.
    seed: seed of methods that score at random.
    tile_examples: how many training examples are scored at a time.

    Raises
    ------
    StudyError: a model or file can't be read, or the tests don't fit in memory.
    """
    if tokens and unstored:
        # It loads torch and transformers.
        from workflow_scripts.scoring.unstored import load_unstored, open_unstored

        embedder = load_unstored(
            unstored,
            language_model=language_model,
            fitted=fitted,
            tests=max(map(len, tests_of_folds)),
            method=method,
        )
        return lambda tests, members: _scores(open_unstored(embedder, tokens, tokens, tests, only=members))
    if train_embeddings:
        tests = np.unique(np.concatenate(tests_of_folds))
        return _embedding_scorer(train_embeddings, test_embeddings, tests, tile_examples)
    scorer = load_text_method(method)
    return lambda tests, _: _scores(open_texts(scorer, corpus, corpus, tests, seed, tile_examples))


def _scores(source: Source) -> Scores:
    for example_ids, tile in source.tiles:
        yield example_ids, source.score(tile, slice(None))


def _embedding_scorer(
    train: Sequence[Path], test: Sequence[Path], test_ids: np.ndarray, tile_examples: int
) -> ScoreFold:
    examples = [tile for path in train for tile in embedding_tiles(path, tile_examples)]
    kept = examples
    if list(test) != list(train):
        # Those of tests may be much larger.
        kept = []
        for path in test:
            for ids, tile in embedding_tiles(path, tile_examples):
                rows = np.flatnonzero(np.isin(ids, test_ids))
                kept.append((ids[rows], tile[rows]))

    def score_fold(tests: np.ndarray, members: np.ndarray) -> Scores:
        score = inner_products(take_embeddings(kept, tests, test[0]))
        for example_ids, tile in examples:
            rows = np.flatnonzero(np.isin(example_ids, members))
            if len(rows):
                yield example_ids[rows], score(tile[rows], slice(None))

    return score_fold
