"""A corpus and its embeddings in memory-mapped files, for searches one after the other."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_batches, read_schema
from workflow_scripts.corpora.tables import WHERE
from workflow_scripts.scoring.top_k import Sign, TopScores
from workflow_scripts.search.stored import TILE_EXAMPLES

COLUMNS = ["example_id", "label", "prompt", "response", *WHERE]
ROWS_WRITTEN = 65_536


@dataclass(frozen=True)
class Wanted:
    """Which of the examples found for a query are wanted.

    Parameters
    ----------
    top: how many.
    signs: ends of the scores.
    labels: only examples with one of these, None for those without; all examples if None.
    """

    top: int
    signs: tuple[Sign, ...]
    labels: frozenset[str | None] | None = None


class MappedCorpus:
    """A corpus and its embeddings, of which only the pages that are read take memory.

    Parameters
    ----------
    vectors: float32 [rows, dimension], memory-mapped.
    batches: the corpus's rows, memory-mapped; at least one batch, each of any size.
    labels: number of rows by label, None for those without.
    codes: int32 [rows], place of each row's label in `labels`.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        batches: Sequence[pa.RecordBatch],
        labels: Counter[str | None],
        codes: np.ndarray,
    ):
        self.vectors, self.labels = vectors, labels
        self._batches, self._codes = batches, codes
        self._ends = np.cumsum([batch.num_rows for batch in batches])
        self._places = {label: place for place, label in enumerate(labels)}

    def take(self, example_ids: np.ndarray, columns: list[str]) -> pa.Table:
        """Return `columns` of the examples with these ids, one row an id, in their order."""
        wanted, place = np.unique(example_ids, return_inverse=True)
        found = []
        batch_of = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(batch_of):
            batch = self._batches[number]
            of = wanted[batch_of == number] - (self._ends[number] - batch.num_rows)
            found.append(batch.select(columns).take(pa.array(of)))
        # Without ids too there is a table, of no row.
        found = found or [self._batches[0].select(columns).slice(0, 0)]
        return pa.Table.from_batches(found).take(pa.array(place.ravel()))

    def search(self, vectors: np.ndarray, wanted: Sequence[Wanted]) -> list[dict[Sign, tuple[np.ndarray, np.ndarray]]]:
        """Return for each query, by sign, the ids (int64) and scores (float32) of its best examples, best first.

        All queries are scored in one pass over the embeddings, exactly, as `search.stored.top_scores` does.

        Parameters
        ----------
        vectors: float32 [queries, dimension].
        wanted: what is wanted for each query; an example with another label isn't found.
        """
        asking: dict[Sign, list[int]] = {
            sign: [place for place, one in enumerate(wanted) if sign in one.signs] for sign in ("helpful", "harmful")
        }
        best = {
            sign: TopScores(len(places), max(wanted[place].top for place in places), sign)
            for sign, places in asking.items()
            if places
        }
        codes = {place: self._codes_of(one.labels) for place, one in enumerate(wanted) if one.labels is not None}
        for start in range(0, len(self.vectors), TILE_EXAMPLES):
            ids = np.arange(start, min(start + TILE_EXAMPLES, len(self.vectors)))
            scores = self.vectors[start : start + TILE_EXAMPLES] @ vectors.T
            for place, allowed in codes.items():
                # What is no number is neither above nor below another.
                scores[~np.isin(self._codes[ids], allowed), place] = np.nan
            for sign, lists in best.items():
                places = asking[sign]
                lists.update(ids, scores if len(places) == len(wanted) else np.ascontiguousarray(scores[:, places]))
        found: list[dict[Sign, tuple[np.ndarray, np.ndarray]]] = [{} for _ in wanted]
        for sign, lists in best.items():
            for place, ids, scores in zip(asking[sign], *lists.result(), strict=True):
                there = np.isfinite(scores)
                found[place][sign] = tuple(part[there][: wanted[place].top] for part in (ids, scores))
        return found

    def _codes_of(self, labels: frozenset[str | None]) -> np.ndarray:
        return np.array([self._places[label] for label in labels], np.int32)


@contextmanager
def mapped_corpus(corpus: Path, embeddings: Path) -> Iterator[MappedCorpus]:
    """Yield a corpus and its embeddings, mapped from uncompressed copies in a temporary folder (`TMPDIR`).

    The copies have no name any more once they are mapped, so nothing is left behind however the process ends.

    Parameters
    ----------
    corpus: a `corpora/` file of the workflow.
    embeddings: file of its embeddings, one a row.

    Raises
    ------
    StudyError: a file is damaged, an embedding is not a finite number, or the two have other rows.
    """
    with tempfile.TemporaryDirectory() as temporary:
        vectors = _map_vectors(embeddings, Path(temporary) / "embeddings")
        batches, labels, codes = _map_rows(corpus, Path(temporary) / "rows.arrow")
    if len(vectors) != len(codes):
        raise StudyError(f"{embeddings} has {len(vectors):,} rows and {corpus} {len(codes):,}; they belong to others.")
    yield MappedCorpus(vectors, batches, labels, codes)


def _map_vectors(embeddings: Path, copy: Path) -> np.ndarray:
    schema, rows = read_schema(embeddings)
    size = schema.field("embedding").type.list_size
    start = 0
    with open(copy, "wb") as file:
        for batch in read_batches(embeddings, TILE_EXAMPLES, ["example_id", "embedding"]):
            if not np.array_equal(batch["example_id"].to_numpy(), np.arange(start, start + batch.num_rows)):
                raise StudyError(f"{embeddings}: example_id doesn't count the rows. Delete the file and run again.")
            numbers = batch["embedding"].flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            if not np.isfinite(numbers).all():
                raise StudyError(f"{embeddings}: an embedding is not a finite number. Train the encoder again.")
            file.write(numbers.tobytes())
            start += batch.num_rows
    return np.memmap(copy, np.float32, "r", shape=(rows, size))


def _map_rows(corpus: Path, copy: Path) -> tuple[list[pa.RecordBatch], Counter[str | None], np.ndarray]:
    labels: Counter[str | None] = Counter()
    codes: list[np.ndarray] = []
    places: dict[str | None, int] = {}
    schema = pa.schema([read_schema(corpus)[0].field(name) for name in COLUMNS])
    with pa.OSFile(str(copy), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for read in read_batches(corpus, ROWS_WRITTEN, COLUMNS):
            batch = read.select(COLUMNS).cast(schema)
            writer.write_batch(batch)
            named = batch["label"].to_pylist()
            labels.update(named)
            codes.append(np.array([places.setdefault(label, len(places)) for label in named], np.int32))
    reader = pa.ipc.open_file(pa.memory_map(str(copy)))
    batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    return batches, labels, np.concatenate(codes)
