"""A cache of embeddings from earlier runs, looked up by content hash."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import DAMAGE, has_other_models, open_table, read_metadata
from workflow_scripts.core.progress import say
from workflow_scripts.core.timing import NO_TIME, Seconds


class StoredEmbeddings:
    """Looks embeddings up in Parquet files with the columns `hash` and `embedding`.

    Memory holds 16 bytes per row and one row group; for a corpus that was only appended to, each group is read once.

    Parameters
    ----------
    paths: files to look in; missing and damaged ones are skipped.
    key: hash of everything that decides an embedding; files with another `key` in their metadata, or
        another content of a local model, are skipped.

    Attributes
    ----------
    seconds: what a full embedding takes, from the metadata of the last file; 0 if there is none.
    """

    def __init__(self, paths: Iterable[Path], key: str):
        self.seconds = NO_TIME
        # Not open files: an interrupted run of a long corpus leaves more of them than a process may hold open.
        self._groups: list[tuple[Path, int]] = []
        self._last_read: tuple[int, np.ndarray] | None = None
        hashes, places = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for path in paths:
            for group, found in enumerate(self._hashes_of(path, key)):
                hashes.append(found)
                places.append(np.arange(len(found), dtype=np.uint64) | np.uint64(len(self._groups) << 32))
                self._groups.append((path, group))
        every = np.concatenate(hashes)
        order = np.argsort(every, kind="stable")
        self._hashes, self._places = every[order], np.concatenate(places)[order]

    def _hashes_of(self, path: Path, key: str) -> list[np.ndarray]:
        """Return the hashes in each row group of a file, uint64 [rows]; no group for a file of no use."""
        if not path.exists():
            return []
        try:
            metadata = read_metadata(path)
            if metadata.get("key") != key or has_other_models(metadata):
                return []
            with open_table(path) as file:
                groups = [file.read_row_group(group, columns=["hash"]) for group in range(file.num_row_groups)]
            self.seconds = Seconds.read(metadata)
            return [_numbers(group["hash"].to_pylist()) for group in groups]
        except (StudyError, *DAMAGE) as error:
            say(f"embed_corpus: {path} is damaged ({error}). Its rows are embedded again.")
            return []

    def fill(self, hashes: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        """Fill in the known embeddings; return the indices of the rows that are not known, int64 [unknown rows].

        Parameters
        ----------
        hashes: content hash of each row, 16 hex digits.
        vectors: [rows, dimension], whose known rows are overwritten.
        """
        wanted = _numbers(hashes)
        at = np.searchsorted(self._hashes, wanted)
        known = np.zeros(len(wanted), bool)
        inside = at < len(self._hashes)
        known[inside] = self._hashes[at[inside]] == wanted[inside]
        rows = np.flatnonzero(known)
        places = self._places[at[rows]]
        groups, row_of_group = places >> np.uint64(32), places & np.uint64(0xFFFFFFFF)
        for group in np.unique(groups):
            chosen = groups == group
            try:
                vectors[rows[chosen]] = self._read(int(group))[row_of_group[chosen]]
            except DAMAGE as error:
                known[rows[chosen]] = False
                say(f"embed_corpus: {self._groups[group][0]} is damaged ({error}). Its rows are embedded again.")
        return np.flatnonzero(~known)

    def _read(self, group: int) -> np.ndarray:
        if self._last_read is None or self._last_read[0] != group:
            path, number = self._groups[group]
            with open_table(path) as file:
                column = file.read_row_group(number, columns=["embedding"])["embedding"].combine_chunks()
            self._last_read = (group, column.flatten().to_numpy().reshape(len(column), -1))
        return self._last_read[1]


def _numbers(hashes: Sequence[str]) -> np.ndarray:
    """Return hashes of 16 hex digits as uint64."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), ">u8").astype(np.uint64)
