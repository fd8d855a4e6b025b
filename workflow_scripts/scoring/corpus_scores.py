"""One pass over tiles of training examples x tests: top scores and group scores, never a dense matrix."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from workflow_scripts.scoring.group_scores import ChosenPooling, GroupScores, GroupSums, Membership, Weighting
from workflow_scripts.scoring.top_k import Sign, TopScores

# Tests are scored in blocks of this size, so that memory depends on a tile's examples alone.
TESTS_PER_BLOCK = 512

Tile = TypeVar("Tile")


class PartScores(NamedTuple):
    """What a part of a corpus adds to the scores of the whole.

    Attributes
    ----------
    helpful: (example ids int64, scores float32), both [tests, found], best first; see `TopScores.result`.
    harmful: as `helpful`.
    sums: group sums of all tests.
    """

    helpful: tuple[np.ndarray, np.ndarray]
    harmful: tuple[np.ndarray, np.ndarray]
    sums: GroupSums


class CorpusScores:
    """The top scores and group scores of a corpus, or of a part of it, for every test.

    Parameters
    ----------
    tests: number of tests.
    top: how many most helpful and most harmful examples to keep for each test.
    membership: the subsets to compute group scores for.
    poolings: how their scores are pooled, of `group_scores.POOLINGS`.
    chosen: what the pooling `chosen` stands for, where it is among them.

    Attributes
    ----------
    weighting: how members of a subset are weighed.
    """

    def __init__(
        self,
        tests: int,
        top: int,
        membership: Membership,
        poolings: Collection[str],
        chosen: ChosenPooling | None = None,
    ):
        self._blocks = []
        for start in range(0, tests, TESTS_PER_BLOCK):
            block = slice(start, min(start + TESTS_PER_BLOCK, tests))
            number = block.stop - block.start
            helpful, harmful = TopScores(number, top, "helpful"), TopScores(number, top, "harmful")
            groups = GroupScores(number, membership, poolings, chosen)
            self._blocks.append(_TestBlock(block, helpful, harmful, groups))
        self.weighting = Weighting.of(poolings, chosen)

    def part(self) -> PartScores:
        """Return what was added so far, to be merged with other parts."""
        members, *arrays = zip(*(block.groups.sums() for block in self._blocks), strict=True)
        sums = GroupSums(members[0], *(np.concatenate(blocks, axis=1) for blocks in arrays))
        return PartScores(self.top("helpful"), self.top("harmful"), sums)

    def merge(self, part: PartScores) -> None:
        """Add another part of the corpus; top scores are exact, group scores the same up to rounding."""
        for block in self._blocks:
            for top, (example_ids, scores) in ((block.helpful, part.helpful), (block.harmful, part.harmful)):
                top.add(example_ids[block.tests], scores[block.tests])
            members, *arrays = part.sums
            block.groups.add(GroupSums(members, *(array[:, block.tests] for array in arrays)))

    def top(self, sign: Sign) -> tuple[np.ndarray, np.ndarray]:
        """Return (example ids int64, scores float32), both [tests, min(top, examples)], best first."""
        results = [getattr(block, sign).result() for block in self._blocks]
        return np.concatenate([ids for ids, _ in results]), np.concatenate([scores for _, scores in results])

    def groups(self, pooling: str) -> np.ndarray:
        """Return the group scores by a pooling, float32 [tests, subsets]; errors as in `GroupScores.result`."""
        return np.concatenate([block.groups.result(pooling).T for block in self._blocks])

    def add_tiles(
        self,
        tiles: Iterable[tuple[np.ndarray, Tile]],
        score: Callable[[Tile, slice], np.ndarray],
        on_tile: Callable[[int], None] = lambda examples: None,
    ) -> None:
        """Score all tiles and add them, as many at a time as there are threads.

        Tiles are merged in order, so the number of threads changes no result.

        Parameters
        ----------
        tiles: pairs of example ids, int [examples], ascending over all tiles, and whatever `score` needs.
        score: takes the latter and a slice of the tests, and returns scores, float32 [examples, tests].
        on_tile: called with the number of examples of each finished tile.
        """
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        pending: deque[tuple[int, list[Future[_TestBlock]]]] = deque()

        def finish_oldest() -> None:
            examples, parts = pending.popleft()
            for block, part in zip(self._blocks, parts, strict=True):
                block.merge(part.result())
            on_tile(examples)

        # One thread per tile scales better than many threads inside each matrix product.
        with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
            for example_ids, tile in tiles:
                parts = [pool.submit(_score_tile, block.empty(), example_ids, tile, score) for block in self._blocks]
                pending.append((len(example_ids), parts))
                if len(pending) > threads:
                    finish_oldest()
            while pending:
                finish_oldest()


@dataclass
class _TestBlock:
    """Top scores and group scores of a slice of the tests."""

    tests: slice
    helpful: TopScores
    harmful: TopScores
    groups: GroupScores

    def empty(self) -> _TestBlock:
        """Return an empty block for a further tile, to be merged into this one."""
        return _TestBlock(self.tests, self.helpful.empty(), self.harmful.empty(), self.groups.empty())

    def merge(self, other: _TestBlock) -> None:
        self.helpful.merge(other.helpful)
        self.harmful.merge(other.harmful)
        self.groups.merge(other.groups)


def _score_tile(
    block: _TestBlock, example_ids: np.ndarray, tile: Tile, score: Callable[[Tile, slice], np.ndarray]
) -> _TestBlock:
    scores = score(tile, block.tests)
    block.helpful.update(example_ids, scores)
    block.harmful.update(example_ids, scores)
    block.groups.update(example_ids, scores)
    return block
