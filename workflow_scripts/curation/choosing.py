"""Take rows in the order of their rank, within quotas and without near duplicates of rows taken before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.corpora.tables import take_examples

if TYPE_CHECKING:
    from scipy import sparse

# Texts are read for so many rows at a time, in one pass over the corpus each.
ROWS_READ = 20_000
ROWS_COMPARED = 512
# Any other label or source file.
OTHERS = "*"
LABELS_SHOWN = 20


@dataclass
class Chosen:
    """Rows that were taken.

    Parameters
    ----------
    places: int [rows], where each stands in the ranking, ascending.
    near_duplicates: int [rows], how many later rows were folded into each.
    over_quota: number of rows that were passed over because their quota was full.
    """

    places: np.ndarray
    near_duplicates: np.ndarray
    over_quota: int


def number_of_rows(size: int | float, rows: int) -> int:
    """Return how many of `rows` a size stands for: itself, or a share of them, one at least."""
    return size if isinstance(size, int) else max(round(size * rows), 1)


def choose(
    corpus: Path,
    example_ids: np.ndarray,
    most: int | None,
    *,
    quota_by: str,
    quotas: Mapping[str, int | float],
    near_duplicate: float | None,
) -> Chosen:
    """Return the first rows of a ranking that the quotas allow and that are no near duplicates of earlier ones.

    A row whose quota is full is passed over, and takes no near duplicates with it.

    Parameters
    ----------
    corpus: `corpora/` file of the rows.
    example_ids: int64 [rows], best first.
    most: how many rows are taken; None for all that can be.
    quota_by: column that quotas are for, `label` or `source_file`.
    quotas: most rows of each of its values, as a number or as a share of `most`; `*` for each other value.
    near_duplicate: smallest Jaccard similarity of near duplicates; None to take them all.

    Raises
    ------
    StudyError: a quota is for a value that no row of the corpus has.
    """
    limit = len(example_ids) if most is None else most
    room = _Room(corpus, quota_by, quotas, limit) if quotas else None
    if room is None and near_duplicate is None:
        taken = min(limit, len(example_ids))
        return Chosen(np.arange(taken), np.zeros(taken, np.int32), 0)
    twins = _Twins(corpus, example_ids, near_duplicate) if near_duplicate is not None else None
    places: list[int] = []
    copies: list[int] = []
    over_quota = 0
    for place in range(len(example_ids)):
        if len(places) == limit:
            break
        if room and not room.has(int(example_ids[place])):
            over_quota += 1
            continue
        twin = twins.of(place) if twins else None
        if twin is not None:
            copies[twin] += 1
            continue
        if twins:
            twins.keep(place, len(places))
        if room:
            room.take(int(example_ids[place]))
        places.append(place)
        copies.append(0)
    return Chosen(np.array(places, np.int64), np.array(copies, np.int32), over_quota)


class _Room:
    """How many rows each quota has room for."""

    def __init__(self, corpus: Path, quota_by: str, quotas: Mapping[str, int | float], size: int):
        column = read_table(corpus, [quota_by])[quota_by].combine_chunks().dictionary_encode()
        names = column.dictionary.to_pylist()
        there = {*names, *([""] if column.null_count else [])}
        if "" not in names:
            names.append("")
        if missing := [name for name in quotas if name not in {*there, OTHERS}]:
            known = ", ".join(map(repr, sorted(there)[:LABELS_SHOWN]))
            raise StudyError(
                f"quotas: no row of {corpus} has the {quota_by} {missing[0]!r}; write one of {known}, or {OTHERS!r} "
                "for each that isn't named"
            )
        self._groups = column.indices.fill_null(names.index("")).to_numpy()
        limits = [quotas.get(name, quotas.get(OTHERS, size)) for name in names]
        self._left = [number_of_rows(limit, size) for limit in limits]

    def has(self, example_id: int) -> bool:
        return self._left[self._groups[example_id]] > 0

    def take(self, example_id: int) -> None:
        self._left[self._groups[example_id]] -= 1


@dataclass
class _Block:
    """Rows whose word 3-grams are compared together; `kept` has their places among the rows taken, -1 for others."""

    start: int
    grams: sparse.csr_matrix
    sizes: np.ndarray
    hashes: list[str]
    kept: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.kept = np.full(len(self.hashes), -1)


class _Twins:
    """Which of the rows taken is a near duplicate of a row: the most similar one.

    Texts of fewer than three words have no 3-grams, and are compared exactly.
    """

    def __init__(self, corpus: Path, example_ids: np.ndarray, smallest: float):
        self._blocks = _blocks(corpus, example_ids)
        self._smallest = smallest
        self._by_hash: dict[str, int] = {}
        self._taken: list[tuple[sparse.csr_matrix, np.ndarray, np.ndarray]] = []
        self._block: _Block | None = None

    def of(self, place: int) -> int | None:
        """Return the number of the row taken that the row at `place` nearly repeats; None if there is none."""
        # Rows whose quota is full aren't asked for, so whole blocks may be passed over.
        while self._block is None or place >= self._block.start + len(self._block.hashes):
            self._next_block()
        block = self._block
        assert block is not None
        row = place - block.start
        if (same := self._by_hash.get(block.hashes[row])) is not None:
            return same
        best, twin = self._before[row]
        start, stop = self._within.indptr[row : row + 2]
        for other, similarity in zip(self._within.indices[start:stop], self._within.data[start:stop], strict=True):
            if similarity > best and other < row and block.kept[other] >= 0:
                best, twin = float(similarity), int(block.kept[other])
        return twin if best >= self._smallest else None

    def keep(self, place: int, number: int) -> None:
        """Note that the row at `place` is taken, as the row `number`."""
        assert self._block is not None
        self._block.kept[place - self._block.start] = number
        self._by_hash[self._block.hashes[place - self._block.start]] = number

    def _next_block(self) -> None:
        if self._block is not None:
            taken = np.flatnonzero(self._block.kept >= 0)
            self._add(self._block.grams[taken], self._block.sizes[taken], self._block.kept[taken])
        block = self._block = next(self._blocks)
        self._within = _jaccard(block.grams, block.sizes, block.grams, block.sizes, self._smallest)
        self._before = [(0.0, -1)] * len(block.hashes)
        for grams, sizes, numbers in self._taken:
            near = _jaccard(block.grams, block.sizes, grams, sizes, self._smallest)
            for row in np.flatnonzero(np.diff(near.indptr)):
                start, stop = near.indptr[row : row + 2]
                at = start + int(near.data[start:stop].argmax())
                if near.data[at] > self._before[row][0]:
                    self._before[row] = (float(near.data[at]), int(numbers[near.indices[at]]))

    def _add(self, grams: sparse.csr_matrix, sizes: np.ndarray, numbers: np.ndarray) -> None:
        """Add rows that were taken, merging blocks so that there are few."""
        from scipy import sparse

        while self._taken and len(self._taken[-1][1]) <= len(sizes) and len(sizes) < ROWS_READ:
            earlier, earlier_sizes, earlier_numbers = self._taken.pop()
            grams = sparse.vstack([earlier, grams], "csr")
            sizes = np.concatenate([earlier_sizes, sizes])
            numbers = np.concatenate([earlier_numbers, numbers])
        self._taken.append((grams, sizes, numbers))


def _blocks(corpus: Path, example_ids: np.ndarray) -> Iterator[_Block]:
    # scikit-learn takes a second to load.
    from workflow_scripts.corpora.near_duplicates import word_triples

    for start in range(0, len(example_ids), ROWS_READ):
        wanted = example_ids[start : start + ROWS_READ]
        texts = take_examples(corpus, wanted, ["prompt", "response", "hash"])
        for first in range(0, texts.num_rows, ROWS_COMPARED):
            part: pa.Table = texts.slice(first, ROWS_COMPARED)
            grams = word_triples(part)
            sizes = np.asarray(grams.sum(axis=1)).ravel()
            yield _Block(start + first, grams, sizes, part["hash"].to_pylist())


def _jaccard(
    left: sparse.csr_matrix, left_sizes: np.ndarray, right: sparse.csr_matrix, right_sizes: np.ndarray, smallest: float
) -> sparse.csr_matrix:
    """Return the Jaccard similarities of at least `smallest` as a sparse matrix [left, right]."""
    from scipy import sparse

    common = (left @ right.T).tocoo()
    either = left_sizes[common.row] + right_sizes[common.col] - common.data
    similarity = common.data / either
    close = similarity >= smallest
    found = sparse.csr_matrix((similarity[close], (common.row[close], common.col[close])), shape=common.shape)
    return found
