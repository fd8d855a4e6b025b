"""Order the rows of a corpus for a selection: by their best rank in top lists, or by their mean score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from workflow_scripts.core.parquet import read_schema, read_table
from workflow_scripts.core.progress import Progress
from workflow_scripts.embeddings.tiles import embedding_tiles, inner_products, read_embeddings
from workflow_scripts.experiments.selection import best_ranked
from workflow_scripts.methods.loading import load_text_method
from workflow_scripts.methods.text_scorer import Texts
from workflow_scripts.scoring.same_label import SameLabelTests

# Rows whose scores for all tests are looked at together.
ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Ranking:
    """Rows of a corpus, best first.

    Parameters
    ----------
    example_ids: int64 [rows].
    scores: float32 [rows].
    deciding_tests: takes some of the ids, and returns for each the id of the test for which it ranks best, or has its
        highest or lowest score.
    quantiles: scores of the whole corpus at 0, 10, ..., 100 %; None where only top lists were scored.
    """

    example_ids: np.ndarray
    scores: np.ndarray
    deciding_tests: Callable[[np.ndarray], np.ndarray]
    quantiles: np.ndarray | None = None


def rank_by_best_rank(scores: Path) -> Ranking:
    """Return the rows of the helpful top lists by their best rank for any test (paper, section 4.1).

    Rows beyond the lists have no rank. A row's score is the one for the test where its rank is best; of several such
    tests, the one with the highest score.

    Parameters
    ----------
    scores: `scores/` file of a method.
    """
    table = read_table(scores, ["test_id", "sign", "rank", "example_id", "score"])
    listed = table.filter(pc.equal(table["sign"], "helpful")).drop_columns("sign").to_pandas()
    order = best_ranked(listed["example_id"].to_numpy(), listed["rank"].to_numpy())
    best = listed.sort_values(["rank", "score", "test_id"], ascending=[True, False, True], kind="stable")
    best = best.drop_duplicates("example_id").set_index("example_id")
    deciding = best["test_id"]
    return Ranking(
        order.astype(np.int64),
        best["score"].loc[order].to_numpy(np.float32),
        lambda example_ids: deciding.loc[example_ids].to_numpy(),
    )


def rank_by_mean_score(scores: CorpusMeans, *, lowest: bool) -> Ranking:
    """Return the rows by their mean score over the tests, the highest first, or the lowest; ties go to the lower id.

    Rows without a mean, of whose label there is no test, aren't among them.
    """
    scored = np.flatnonzero(~np.isnan(scores.means))
    means = scores.means[scored]
    order = scored[np.argsort(means if lowest else -means, kind="stable")]
    return Ranking(
        scores.example_ids[order],
        scores.means[order],
        lambda example_ids: scores.extreme_tests(example_ids, lowest),
        np.quantile(means, np.linspace(0, 1, 11)),
    )


@dataclass(frozen=True)
class CorpusMeans:
    """Mean scores of all rows of a corpus.

    Parameters
    ----------
    example_ids: int64 [rows], ascending.
    means: float32 [rows], the mean of a row's scores over the tests, or over those of its label; NaN if there is none.
    extreme_tests: takes ids, int [some], and whether the lowest score counts; returns the id of the test for which each
        has its highest score, or its lowest.
    """

    example_ids: np.ndarray
    means: np.ndarray
    extreme_tests: Callable[[np.ndarray, bool], np.ndarray]


def means_of_embeddings(
    train: Sequence[Path],
    test: Sequence[Path],
    test_ids: np.ndarray,
    tile_examples: int,
    groups: SameLabelTests | None = None,
) -> CorpusMeans:
    """Return the mean scores of a method that embeds: one product with the mean of the tests' embeddings, or with
    the means of those of each label.

    The mean of inner products is the inner product with the mean, so this is exact up to rounding.

    Parameters
    ----------
    train: embeddings of the training corpus, one file or its parts.
    test: embeddings of the test corpus, one file or its parts.
    test_ids: int [tests], ids of the tests.
    tile_examples: how many rows are scored at a time.
    groups: which tests count for each row; None for all of them.

    Raises
    ------
    StudyError: a file is damaged, lacks a test, or has an embedding that is not finite.
    """
    tests = read_embeddings(test, test_ids)
    if groups:
        centers = groups.weights @ tests
    else:
        centers = tests.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    progress = Progress("mean scores", sum(read_schema(path)[1] for path in train), "examples")
    ids, means = [], []
    score = inner_products(centers)
    for path in train:
        for tile_ids, tile in embedding_tiles(path, tile_examples):
            ids.append(tile_ids.astype(np.int64))
            # The next tile's scores take this memory.
            scores = score(tile, slice(None))
            means.append(groups.pick(scores, tile_ids) if groups else scores[:, 0].copy())
            progress.advance(len(tile_ids))
    example_ids, all_means = np.concatenate(ids), np.concatenate(means)
    # Parts have every n-th row group.
    order = np.argsort(example_ids, kind="stable")

    def extreme_tests(wanted: np.ndarray, lowest: bool) -> np.ndarray:
        every_test = inner_products(-tests if lowest else tests)
        found = np.empty(len(wanted), np.int64)
        place = np.argsort(wanted)
        ascending = wanted[place]
        for path in train:
            for tile_ids, tile in embedding_tiles(path, ROWS_AT_ONCE):
                near = np.minimum(np.searchsorted(ascending, tile_ids), len(ascending) - 1)
                rows = np.flatnonzero(ascending[near] == tile_ids)
                if len(rows):
                    scores = every_test(tile[rows], slice(None))
                    if groups:
                        scores = groups.among(scores, tile_ids[rows], -np.inf)
                    found[place[near[rows]]] = scores.argmax(axis=1)
        return test_ids[found]

    return CorpusMeans(example_ids[order], all_means[order], extreme_tests)


def means_of_texts(
    method: str,
    train: Path,
    test: Path,
    test_ids: np.ndarray,
    seed: int,
    tile_examples: int,
    groups: SameLabelTests | None = None,
) -> CorpusMeans:
    """Return the mean scores of a method that scores texts.

    Parameters
    ----------
    method: name of its module.
    train: `corpora/` file of the training examples.
    test: `corpora/` file of the tests.
    test_ids: int [tests], ids of the tests.
    seed: seed of methods that score at random.
    tile_examples: how many rows are scored at a time.
    groups: which tests count for each row; None for all of them.
    """
    examples = Texts.read(train)
    scorer = load_text_method(method)(examples, Texts.read(test).take(test_ids), seed)
    number, tests = len(examples.prompts), len(test_ids)
    means, highest, lowest = (np.empty(number, kind) for kind in (np.float32, np.int64, np.int64))
    progress = Progress(f"mean scores of {method}", number, "examples")
    for tile in _tiles(number, tile_examples):
        scores = scorer.score(tile, slice(0, tests))
        if groups:
            means[tile] = groups.means(scores, tile)
            highest[tile] = groups.among(scores, tile, -np.inf).argmax(axis=1)
            lowest[tile] = groups.among(scores, tile, np.inf).argmin(axis=1)
        else:
            means[tile] = scores.mean(axis=1, dtype=np.float64)
            highest[tile], lowest[tile] = scores.argmax(axis=1), scores.argmin(axis=1)
        progress.advance(len(scores))

    def extreme_tests(wanted: np.ndarray, lowest_counts: bool) -> np.ndarray:
        rows = np.searchsorted(examples.example_ids, wanted)
        return test_ids[(lowest if lowest_counts else highest)[rows]]

    return CorpusMeans(examples.example_ids, means, extreme_tests)


def _tiles(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
