"""The weighted sum of two methods' scores of examples, as a source of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from workflow_scripts.scoring.sources import Source


class _Tile(NamedTuple):
    """A tile of each of two sources, and which of its rows both have."""

    tiles: tuple[Any, Any]
    rows: tuple[np.ndarray, np.ndarray]


def sum_sources(sources: tuple[Source, Source], factors: tuple[float, float]) -> Source:
    """Return a source of the weighted sum of two sources' scores, for the training examples that both have.

    It computes on the CPU, and costs what both cost.

    Parameters
    ----------
    sources: scores of one training corpus for the same tests; the tiles of each may be cut in its own way.
    factors: what the scores of each are multiplied by.
    """
    first, second = sources

    def score(tile: _Tile, columns: slice) -> np.ndarray:
        # Each product is a copy: the next source's scores may overwrite this one's.
        one, other = (
            np.float32(factor) * source.score(own, columns)[rows]
            for source, own, rows, factor in zip(sources, tile.tiles, tile.rows, factors, strict=True)
        )
        return one + other

    return Source(
        tiles=_common_tiles(first.tiles, second.tiles),
        score=score,
        examples=max(first.examples, second.examples),
        bytes_per_example=first.bytes_per_example + second.bytes_per_example,
        embedding=first.embedding + second.embedding,
        test_embedding=first.test_embedding + second.test_embedding,
        start_up=first.start_up + second.start_up,
        test_start_up=first.test_start_up + second.test_start_up,
    )


def _common_tiles(
    first: Iterable[tuple[np.ndarray, Any]], second: Iterable[tuple[np.ndarray, Any]]
) -> Iterator[tuple[np.ndarray, _Tile]]:
    """Yield the ids that two streams of tiles have in common, and the tiles, cut to the same range of ids."""
    streams = iter(first), iter(second)
    waiting: list[tuple[np.ndarray, Any]] = [(np.empty(0, np.int64), None)] * 2
    while True:
        for place, stream in enumerate(streams):
            if not len(waiting[place][0]):
                tile = next(stream, None)
                if tile is None:
                    return
                waiting[place] = tile
        last = min(ids[-1] for ids, _ in waiting)
        heads = []
        for place, (ids, tile) in enumerate(waiting):
            length = int(np.searchsorted(ids, last, "right"))
            heads.append((ids[:length], _cut(tile, 0, length)))
            waiting[place] = ids[length:], _cut(tile, length, len(ids))
        common, *rows = np.intersect1d(heads[0][0], heads[1][0], assume_unique=True, return_indices=True)
        if len(common):
            yield common, _Tile((heads[0][1], heads[1][1]), (rows[0], rows[1]))


def _cut(tile: Any, start: int, stop: int) -> Any:
    """Return some rows of a tile, which are an array or, of a method that scores texts, a slice."""
    if isinstance(tile, slice):
        return slice(tile.start + start, tile.start + stop)
    return tile[start:stop]
