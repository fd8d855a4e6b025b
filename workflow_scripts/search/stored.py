"""Score all rows of a file of embeddings for some queries, tile by tile and exactly, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_batches
from workflow_scripts.scoring.top_k import Sign, TopScores

TILE_EXAMPLES = 8192


def score_tiles(embeddings: Path, vectors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ids of the rows, int32 [rows] ascending, and their scores, float32 [rows, queries], in tiles.

    A score is the inner product of the row's embedding and the query's, computed in float32.

    Parameters
    ----------
    embeddings: file of embeddings.
    vectors: float32 [queries, dimension], embeddings of the queries.

    Raises
    ------
    StudyError: the file is damaged, its ids don't ascend, or an embedding is not a finite number.
    """
    last = -1
    for batch in read_batches(embeddings, TILE_EXAMPLES, ["example_id", "embedding"]):
        ids = batch["example_id"].to_numpy()
        if ids[0] <= last or (np.diff(ids) <= 0).any():
            raise StudyError(f"{embeddings}: example_id doesn't ascend. Delete the file and run again.")
        last = ids[-1]
        numbers = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(len(ids), -1)
        scores = numbers.astype(np.float32, copy=False) @ vectors.T
        if not np.isfinite(scores).all():
            raise StudyError(f"{embeddings}: an embedding is not a finite number. Train the encoder again.")
        yield ids, scores


def top_scores(embeddings: Path, vectors: np.ndarray, top: int, sign: Sign) -> tuple[np.ndarray, np.ndarray]:
    """Return the `top` best rows of each query: (ids int64, scores float32), both [queries, found], best first.

    Parameters
    ----------
    embeddings: file of embeddings.
    vectors: float32 [queries, dimension].
    top: how many rows for each query; all, if the file has fewer.
    sign: `helpful` for the largest scores, `harmful` for the smallest.
    """
    best = TopScores(len(vectors), top, sign)
    for ids, scores in score_tiles(embeddings, vectors):
        best.update(ids, scores)
    return best.result()


@dataclass(frozen=True)
class ScoresByGroup:
    """Scores of groups of rows for each query.

    Parameters
    ----------
    examples: int64 [groups], rows of each.
    means: float64 [groups, queries], the mean score of their rows.
    best_ids: int64 [groups, queries], the row with the highest score, or for `harmful` the lowest.
    best_scores: float32 [groups, queries], its score.
    """

    examples: np.ndarray
    means: np.ndarray
    best_ids: np.ndarray
    best_scores: np.ndarray


def group_scores(embeddings: Path, vectors: np.ndarray, groups: np.ndarray, number: int, sign: Sign) -> ScoresByGroup:
    """Return the scores of groups of rows.

    Parameters
    ----------
    embeddings: file of embeddings.
    vectors: float32 [queries, dimension].
    groups: int [rows of the corpus], the group of each, from 0.
    number: number of groups; each has a row.
    sign: which end of the scores counts as best.
    """
    direction = np.float32(1 if sign == "helpful" else -1)
    shape = (number, len(vectors))
    examples, sums = np.zeros(number, np.int64), np.zeros(shape)
    best_ids, best = np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32)
    for ids, scores in score_tiles(embeddings, vectors):
        of = groups[ids]
        examples += np.bincount(of, minlength=number)
        for query in range(len(vectors)):
            values = scores[:, query] * direction
            sums[:, query] += np.bincount(of, scores[:, query], minlength=number)
            # Of the rows of a group the last one assigned stays: the best, and of equal ones the first.
            rows = len(values) - 1 - np.argsort(values[::-1], kind="stable")
            place = np.full(number, -1)
            place[of[rows]] = rows
            there = np.flatnonzero(place >= 0)
            better = there[values[place[there]] > best[there, query]]
            best[better, query], best_ids[better, query] = values[place[better]], ids[place[better]]
    return ScoresByGroup(examples, sums / examples[:, None], best_ids, best * direction)
