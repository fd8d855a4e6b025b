"""Writing files of embeddings: rows that were embedded before keep theirs, also those of a stopped run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.distributed import agreed, is_first, wait_for_all
from workflow_scripts.core.parquet import rows_of_groups, write_batches, write_table
from workflow_scripts.core.progress import Progress, say
from workflow_scripts.embeddings.cache import StoredEmbeddings


@dataclass(frozen=True)
class EmbeddingBlock:
    """Rows to embed: ids, content hashes (16 hex digits), and a function from some rows' places to float32
    [rows, dimension]."""

    example_ids: pa.Array
    hashes: list[str]
    embed: Callable[[np.ndarray], np.ndarray]


def write_embeddings(
    embeddings: Path,
    blocks: Iterable[EmbeddingBlock],
    *,
    stage: str,
    rows: int,
    dimension: int,
    precision: str,
    key: str,
    **metadata: str,
) -> None:
    """Write the embedding of every row of `blocks`, `rows` in all, in their order.

    If `embeddings` exists and was made with the same `key`, rows with the same hash are taken from it. So they are
    from the blocks of a run that was stopped, which are kept beside `embeddings` until it is whole. The file's
    metadata holds `metadata`, and `seconds`, the time that a full embedding takes at the rate measured. In several
    processes (`core.distributed`) all embed, and the first one writes.

    Parameters
    ----------
    stage: its name, for the progress display.
    precision: `float16` or `float32`, of the numbers on disk.
    """
    folder = embeddings.with_name(f".{embeddings.stem}.{key}.blocks")
    stored = StoredEmbeddings([embeddings, *sorted(folder.glob("*.parquet"))], key)
    # All processes must see the same files, before the first one writes another.
    wait_for_all()
    element = {"float16": pa.float16(), "float32": pa.float32()}[precision]
    schema = pa.schema(
        [
            ("example_id", pa.int32()),
            ("hash", pa.string()),
            ("embedding", pa.list_(element, dimension)),
        ]
    )
    title = f"{stage} {embeddings.stem}"
    progress = Progress(title, rows, "examples")
    embedded = 0
    seconds = 0.0

    def measured() -> dict[str, str]:
        return {"seconds": f"{seconds * rows / embedded if embedded else stored.seconds:.3f}"}

    def tables() -> Iterator[pa.Table]:
        nonlocal embedded, seconds
        for number, block in enumerate(blocks):
            vectors = np.empty((len(block.hashes), dimension), element.to_pandas_dtype())
            # Another job may put the file in place meanwhile.
            new = agreed(stored.fill(block.hashes, vectors))
            if len(new):
                start = time.monotonic()
                vectors[new] = block.embed(new)
                seconds += time.monotonic() - start
                embedded += len(new)
            progress.advance(len(block.hashes))
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), element), dimension)
            table = pa.table([block.example_ids, block.hashes, column], names=schema.names)
            if len(new) and is_first():
                write_table(folder / f"{number:06d}.parquet", table.take(new), key=key, **measured())
            yield table

    if is_first():
        write_batches(embeddings, schema, tables(), key=key, measured=measured, **metadata)
        say(f"{title}: {embedded:,} new embeddings, {rows - embedded:,} kept")
    else:
        for _ in tables():
            pass
    # Nobody reads the blocks any more.
    wait_for_all()
    if is_first():
        shutil.rmtree(folder, ignore_errors=True)


def part_of_rows(path: Path, part: Sequence[int]) -> tuple[list[int], int]:
    """Return the row groups of a part of a file, and how many rows they have.

    Parameters
    ----------
    part: (number from 1, number of parts). A part has every so-manieth row group, so appended rows move no other row
        to another part.
    """
    rows = rows_of_groups(path)
    groups = list(range(part[0] - 1, len(rows), part[1]))
    return groups, sum(rows[group] for group in groups)
