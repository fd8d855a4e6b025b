"""Random draws of folds, validation sets and subsets (paper, section 3.1); they depend on seeds alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.seeds import generator
from workflow_scripts.corpora.tables import equals_a_test


@dataclass(frozen=True)
class Fold:
    """One cross-validation instance: two disjoint sets of examples.

    Parameters
    ----------
    pool: int32 [examples], ids of the examples that subsets are drawn from.
    evaluated: int32 [examples], ids of the validation examples whose loss is measured after each run of the fold.
    """

    pool: np.ndarray
    evaluated: np.ndarray


@dataclass(frozen=True)
class Sampling:
    """How the folds and subsets of a pool are drawn; the same values always draw the same examples.

    A fold depends on (seed, pool, fold) and a subset on (seed, pool, fold, index), so more folds or subsets leave those
    drawn before unchanged.

    Parameters
    ----------
    seed: the study's seed.
    pool: `train`, or the name of an evaluation set.
    pool_examples: size of a fold's training pool (N_t); None for the whole corpus.
    validation_examples: size of a fold's validation set (N_v); None for the whole test corpus.
    evaluated_examples: how many of them each subset is evaluated on; None for all.
    subset_examples: size of a subset (n); None where there are no subsets.
    """

    seed: int
    pool: str
    pool_examples: int | None
    validation_examples: int | None
    evaluated_examples: int | None
    subset_examples: int | None

    def fold(self, fold: int, train_ids: np.ndarray, test_ids: np.ndarray | None) -> Fold:
        """Draw one fold.

        Parameters
        ----------
        fold: its number, from 0.
        train_ids: int [examples], ids that the pool is drawn from.
        test_ids: int [examples], ids that the validation set is drawn from; None to draw it from `train_ids`, disjoint
            from the pool.

        Raises
        ------
        StudyError: a corpus is too small.
        """
        shuffled = _shuffled(train_ids, self.seed, self.pool, "fold", fold)
        if test_ids is None:
            if self.validation_examples is None:
                raise StudyError(f"{self.pool}: `tests: null` needs a test corpus of its own; write a number of tests.")
            self._need(len(shuffled), (self.pool_examples or 1) + self.validation_examples, "pool and validation")
            validation, rest = np.split(shuffled, [self.validation_examples])
        else:
            self._need(len(test_ids), self.validation_examples or 1, "test")
            tests = _shuffled(test_ids, self.seed, self.pool, "tests", fold)
            validation, rest = tests[: self.validation_examples], shuffled
        # A subset of the whole pool would be every subset.
        self._need(len(rest), max(self.pool_examples or 1, (self.subset_examples or 0) + 1), "pool")
        return Fold(pool=rest[: self.pool_examples], evaluated=validation[: self.evaluated_examples])

    def subset(self, fold: int, index: int, pool: np.ndarray) -> np.ndarray:
        """Draw one subset of a fold, int32 [subset_examples]: distinct ids of its pool, in random order.

        Parameters
        ----------
        fold: number of the fold, from 0.
        index: number of the subset in the fold, from 0.
        pool: int32 [examples], the `pool` of the fold.
        """
        rng = generator(self.seed, self.pool, "subset", fold, index)
        return pool[rng.choice(len(pool), size=self.subset_examples, replace=False)]

    def _need(self, there: int, needed: int, what: str) -> None:
        if there < needed:
            raise StudyError(
                f"{self.pool}: {needed:,} {what} examples are needed, but the corpus has only {there:,} usable "
                "ones. Lower the sizes under targets or evaluations, use a larger part of the corpus, or raise "
                "language_model.max_tokens where it leaves examples out (tokens/*.rejected.parquet)."
            )


def _shuffled(example_ids: np.ndarray, *seed: int | str) -> np.ndarray:
    return example_ids[generator(*seed).permutation(len(example_ids))].astype(np.int32)


def usable_ids(tokens: Path) -> np.ndarray:
    """Return the ids of all examples in a `tokens/` or `corpora/` file, int32 [examples]."""
    return read_table(tokens, ["example_id"])["example_id"].to_numpy().astype(np.int32)


def trainable_ids(train: Path, train_tokens: Path, test: Path, test_ids: np.ndarray) -> np.ndarray:
    """Return the ids of the usable examples that equal none of the tests, int32 [examples], ascending.

    Parameters
    ----------
    train: `corpora/` file of the pool.
    train_tokens: `tokens/` file of the pool.
    test: `corpora/` file of the tests.
    test_ids: int [tests], ids of the tests.
    """
    usable = usable_ids(train_tokens)
    is_test = equals_a_test(train, test, test_ids)[usable]
    if tests := np.count_nonzero(is_test):
        say(f"left out: {tests:,} rows of {train} that equal a test")
    return usable[~is_test]


def corpus_ids(train_tokens: Path, test_tokens: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the ids of all examples in both files, int32 [examples]; None for the second if they are the same file."""
    train_ids = usable_ids(train_tokens)
    return train_ids, None if Path(train_tokens) == Path(test_tokens) else usable_ids(test_tokens)
