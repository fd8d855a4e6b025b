"""Embeddings that a former run left, by content hash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from workflow_scripts.lib.errors import StudyError
from workflow_scripts.lib.progress import say
from workflow_scripts.lib.tables import read_metadata


class StoredEmbeddings:
    """Looks embeddings up in an `embeddings/` file made with the same `key`; empty if there is none.

    One row group is in memory at a time: a corpus that only grew is read in its order, each group once.
    """

    def __init__(self, path: Path, key: str):
        self.seconds = 0.0
        self._places: dict[str, tuple[int, int]] = {}
        self._group: tuple[int, np.ndarray] | None = None
        if not path.exists():
            return
        try:
            metadata = read_metadata(path)
        except StudyError as error:
            say(f"embed_corpus: {error} Everything is embedded anew.")
            return
        if metadata.get("key") != key:
            return
        self.seconds = float(metadata.get("seconds", 0))
        self._file = pq.ParquetFile(path)
        for group in range(self._file.num_row_groups):
            hashes = self._file.read_row_group(group, columns=["hash"])["hash"].to_pylist()
            self._places |= {hash_: (group, row) for row, hash_ in enumerate(hashes)}

    def fill(self, hashes: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        """Put the known embeddings into `vectors` [rows, dimension]; return the rows that are not known."""
        places = [self._places.get(hash_) for hash_ in hashes]
        known: dict[int, list[int]] = {}
        for row, place in enumerate(places):
            if place is not None:
                known.setdefault(place[0], []).append(row)
        for group, rows in sorted(known.items()):
            vectors[rows] = self._read(group)[[places[row][1] for row in rows]]
        return np.array([row for row, place in enumerate(places) if place is None], np.int64)

    def _read(self, group: int) -> np.ndarray:
        if self._group is None or self._group[0] != group:
            column = self._file.read_row_group(group, columns=["embedding"])["embedding"].combine_chunks()
            self._group = (group, column.flatten().to_numpy().reshape(len(column), -1))
        return self._group[1]
