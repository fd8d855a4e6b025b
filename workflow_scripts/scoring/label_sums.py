"""Sums of a method's scores over groups of training rows, without a score of every pair where embeddings are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_scripts.core.parquet import read_schema
from workflow_scripts.core.progress import Progress
from workflow_scripts.embeddings.tiles import as_float, embedding_tiles, read_embeddings
from workflow_scripts.methods.loading import load_text_method
from workflow_scripts.scoring.corpus_scores import TESTS_PER_BLOCK
from workflow_scripts.scoring.sources import open_texts


@dataclass(frozen=True)
class LabelSums:
    """Sums of scores over groups of training rows; the last group is that of all rows in no other.

    Parameters
    ----------
    sums: float64 [groups, tests].
    counts: int64 [groups], number of rows that were scored.
    """

    sums: np.ndarray
    counts: np.ndarray

    def means(self) -> np.ndarray:
        """Return the mean score of each group's rows, float64 [groups, tests]; NaN for a group without a row."""
        return _divide(self.sums, self.counts)

    def advantages(self) -> np.ndarray:
        """Return by how much each group's mean is above that of all other rows, float64 [groups, tests]."""
        others = _divide(self.sums.sum(axis=0) - self.sums, self.counts.sum() - self.counts)
        return self.means() - others


def _divide(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    counted = counts[:, None]
    return np.divide(sums, counted, out=np.full(sums.shape, np.nan), where=counted > 0)


def label_sums_of_embeddings(
    train: Sequence[Path], test: Sequence[Path], test_ids: np.ndarray, groups: np.ndarray, tile_examples: int
) -> LabelSums:
    """Return the sums of inner products of stored embeddings: those of the groups' summed embeddings.

    Parameters
    ----------
    train: embeddings of the training corpus, one file or its parts.
    test: embeddings of the test corpus, one file or its parts.
    test_ids: int [tests], ids of the tests.
    groups: int [rows], the group of each row of the training corpus, by its id; -1 for rows that don't count.
    tile_examples: how many rows are read at a time.

    Raises
    ------
    StudyError: a file is damaged, or lacks a test.
    """
    tests = read_embeddings(test, test_ids)
    number = int(groups.max()) + 1
    sums, counts = np.zeros((number, tests.shape[1])), np.zeros(number, np.int64)
    progress = Progress("sums by label", sum(read_schema(path)[1] for path in train), "examples")
    for path in train:
        for example_ids, tile in embedding_tiles(path, tile_examples):
            _add(sums, groups[example_ids], as_float(tile))
            counts += _count(groups[example_ids], number)
            progress.advance(len(example_ids))
    return LabelSums(sums @ tests.T.astype(np.float64), counts)


def label_sums_of_texts(
    method: str,
    train: Path,
    test: Path,
    test_ids: np.ndarray,
    groups: np.ndarray,
    *,
    seed: int,
    tile_examples: int,
) -> LabelSums:
    """Return the sums of the scores of a method that scores texts.

    Parameters
    ----------
    method: name of its module.
    train: `corpora/` file of the training examples.
    test: `corpora/` file of the tests.
    test_ids: int [tests], ids of the tests.
    groups: int [rows], the group of each row of the training corpus, by its id; -1 for rows that don't count.
    seed: seed of methods that score at random.
    tile_examples: how many rows are scored at a time.
    """
    source = open_texts(load_text_method(method), train, test, test_ids, seed, tile_examples)
    number = int(groups.max()) + 1
    sums, counts = np.zeros((number, len(test_ids))), np.zeros(number, np.int64)
    progress = Progress(f"sums by label of {method}", source.examples, "examples")
    for example_ids, tile in source.tiles:
        for start in range(0, len(test_ids), TESTS_PER_BLOCK):
            block = slice(start, min(start + TESTS_PER_BLOCK, len(test_ids)))
            _add(sums[:, block], groups[example_ids], source.score(tile, block))
        counts += _count(groups[example_ids], number)
        progress.advance(len(example_ids))
    return LabelSums(sums, counts)


def _add(sums: np.ndarray, groups: np.ndarray, values: np.ndarray) -> None:
    for group in np.unique(groups[groups >= 0]):
        sums[group] += values[groups == group].sum(axis=0, dtype=np.float64)


def _count(groups: np.ndarray, number: int) -> np.ndarray:
    return np.bincount(groups[groups >= 0], minlength=number)
