"""The most helpful or most harmful training examples of each test, updated tile by tile."""

from __future__ import annotations

from typing import Literal

import numpy as np

from workflow_scripts.core.buffers import scratch

Sign = Literal["helpful", "harmful"]

# How many examples are found, for each that is kept, before they are put in order: each time has a cost of its own, but
# until then the threshold doesn't rise.
WAITING = 0.5


class TopScores:
    """The `top` best training examples of each test among those seen so far.

    Best means the largest score for `helpful`, the smallest for `harmful`; of equal scores the lower example
    id wins. The result depends on the scores alone, not on how they were divided into tiles or parts.

    Parameters
    ----------
    tests: number of tests.
    top: how many examples to keep for each.
    sign: `helpful` or `harmful`.
    """

    def __init__(self, tests: int, top: int, sign: Sign):
        self.top, self.sign = top, sign
        # One sortable number per example: the score's order above, the inverted id below. 0 stands for none.
        self._keys = np.zeros((tests, top), np.uint64)
        # Only scores above it can matter, in the order where larger is better.
        self._threshold = np.full(tests, -np.inf, np.float32)
        # Tests, example ids and scores of what was found but isn't among the keys yet, and how many.
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._waiting = 0

    def empty(self) -> TopScores:
        """Return an empty list for later examples, to be merged into this one; it skips scores too low for this one."""
        part = TopScores(len(self._keys), self.top, self.sign)
        part._threshold = self._threshold
        return part

    def update(self, example_ids: np.ndarray, scores: np.ndarray) -> None:
        """Add the scores of a tile.

        Parameters
        ----------
        example_ids: int [examples], ascending over all tiles, below 2**32.
        scores: float32 [examples, tests].
        """
        filled = np.isfinite(self._threshold).all()
        start = 0
        while start < len(example_ids):
            # From an empty list on, each block is as long as all before it: so the threshold has risen
            # before most of the scores are compared with it.
            stop = len(example_ids) if filled else start + max(self.top, start)
            self._find(example_ids[start:stop], scores[start:stop])
            start = stop

    def merge(self, other: TopScores) -> None:
        """Add the top examples of another part of the corpus."""
        if other._keys.any():
            self._keep_best(other._keys)
        for found in other._found:
            self._wait(*found)

    def add(self, example_ids: np.ndarray, scores: np.ndarray) -> None:
        """Add the `result` of another part of the corpus.

        Parameters
        ----------
        example_ids: int [tests, found].
        scores: float32 [tests, found].
        """
        self._keep_best(self._keys_of(example_ids, scores))

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (example ids int64, scores float32), both [tests, min(top, examples)], best first."""
        if self._found:
            self._order()
        found = np.count_nonzero(self._keys, axis=1).max()
        best = np.sort(self._keys, axis=1)[:, ::-1][:, :found]
        example_ids = (np.uint64(0xFFFFFFFF) - (best & np.uint64(0xFFFFFFFF))).astype(np.int64)
        scores = _ordered_float((best >> np.uint64(32)).astype(np.uint32))
        return example_ids, scores if self.sign == "helpful" else np.float32(0) - scores

    def _find(self, example_ids: np.ndarray, scores: np.ndarray) -> None:
        better = scratch("better", scores.shape, np.bool_)
        if self.sign == "helpful":
            np.greater(scores, self._threshold, out=better)
        else:
            np.less(scores, -self._threshold, out=better)
        found = np.flatnonzero(better)
        if not len(found):
            return
        # Faster than `divmod`.
        rows = found // scores.shape[1]
        columns = found - rows * scores.shape[1]
        self._wait(columns, example_ids[rows], scores[rows, columns])

    def _wait(self, columns: np.ndarray, example_ids: np.ndarray, scores: np.ndarray) -> None:
        self._found.append((columns, example_ids, scores))
        self._waiting += len(columns)
        if self._waiting >= self._keys.size * WAITING:
            self._order()

    def _order(self) -> None:
        """Keep the best of what was found and what was kept."""
        columns, example_ids, scores = map(np.concatenate, zip(*self._found, strict=True))
        keys = self._keys_of(example_ids, scores)
        tests = len(self._keys)
        # Of small integers the stable sort is a radix sort.
        by_test = np.argsort(columns.astype(np.min_scalar_type(tests)), kind="stable")
        counts = np.bincount(columns, minlength=tests)
        place = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
        candidates = np.zeros((tests, counts.max()), np.uint64)
        candidates[columns[by_test], place] = keys[by_test]
        self._keep_best(candidates)
        self._found, self._waiting = [], 0

    def _keys_of(self, example_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        # Adding to 0 turns -0.0 into 0.0: the two are equal scores and must have equal keys.
        values = np.float32(0) + scores if self.sign == "helpful" else np.float32(0) - scores
        low = np.uint64(0xFFFFFFFF) - example_ids.astype(np.uint64)
        return (_ordered_integer(values).astype(np.uint64) << np.uint64(32)) | low

    def _keep_best(self, candidates: np.ndarray) -> None:
        surplus = candidates.shape[1]
        joined = np.concatenate([self._keys, candidates], axis=1)
        self._keys = np.partition(joined, surplus, axis=1)[:, surplus:]
        worst = _ordered_float((self._keys.min(axis=1) >> np.uint64(32)).astype(np.uint32))
        self._threshold = np.maximum(worst, self._threshold)


def _ordered_integer(values: np.ndarray) -> np.ndarray:
    """Return uint32 that sort as the float32 `values` do; all are above 0."""
    bits = values.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


def _ordered_float(integers: np.ndarray) -> np.ndarray:
    """Return the float32 of `_ordered_integer`; 0, which stands for none, gives minus infinity."""
    bits = np.where(integers >> 31, integers ^ np.uint32(0x80000000), ~integers)
    return np.where(integers == 0, np.float32(-np.inf), bits.view(np.float32))
