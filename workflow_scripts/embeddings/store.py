"""Write files of embeddings; rows that were embedded before, even by an interrupted run, keep their embeddings."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from workflow_scripts.core.distributed import (
    barrier,
    broadcast_from_rank_zero,
    in_group,
    is_rank_zero,
    sum_over_processes,
)
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import begun_folder, delete_begun, earlier_of
from workflow_scripts.core.parquet import rows_of_groups, table_writer, write_table
from workflow_scripts.core.progress import Progress, say
from workflow_scripts.core.timing import NO_TIME, Seconds, process_seconds, start_work
from workflow_scripts.embeddings.binary import quantize, stored_bytes
from workflow_scripts.embeddings.cache import StoredEmbeddings
from workflow_scripts.models.device import to_host

# Number of blocks that wait between two steps of the work.
BLOCKS_AHEAD = 2
# A larger block (of gradients) is written before the next one is begun, so that memory holds one of them.
MAX_BYTES_WAITING = 1 << 26
FLOAT_BYTES = 4


@dataclass(frozen=True)
class EmbeddingBlock:
    """Rows to embed.

    Parameters
    ----------
    example_ids: int [rows], their ids.
    hashes: their content hashes, 16 hex digits each.
    prepare: function from the indices of some rows, int64, to the input of `embed`, e.g. their tokens. It runs in
        another thread, while other blocks are embedded, so it must not communicate with the other processes.
    embed: function from that input to float32 [rows, dimension], on the CPU or on a GPU.
    """

    example_ids: pa.Array
    hashes: list[str]
    prepare: Callable[[np.ndarray], Any]
    embed: Callable[[Any], np.ndarray | torch.Tensor]


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
    """Write the embedding of every row of some blocks, in their order.

    If `embeddings` or its earlier version (`core.files.earlier_of`) exists and was made with the same `key`, rows with
    the same hash are copied from it, and also from the blocks of an interrupted run, which are kept beside `embeddings`
    until it is complete. In several processes (`core.distributed`) all embed, and rank 0 writes.

    While a block is embedded, the next ones are prepared in a thread and the previous ones written in another. An error
    in either ends the call with that error; blocks that were embedded before it are written.

    Raises
    ------
    StudyError: an embedding is not finite, or not in `precision`.

    Parameters
    ----------
    embeddings: Parquet file to write.
    blocks: the rows, generated block by block.
    stage: name of the stage, for the progress display.
    rows: number of rows of all blocks.
    dimension: size of an embedding.
    precision: `float16` or `float32`, that of the numbers on disk; or `binary`, see `embeddings.binary`.
    key: hash of everything that decides an embedding but the row itself.
    metadata: further entries of the file's metadata, beside what was measured: `seconds` and `cpu_seconds`, the work of
        a full embedding at the measured rate, and `start_up_seconds` and `start_up_cpu_seconds` of this job
        (`core.timing`; whoever calls has loaded its model). Processor time is that of all processes.
    """
    start_up = start_work().start_up
    folder = begun_folder(embeddings, key, "blocks")
    of_interrupted_run = sorted(folder.glob("*.parquet"))
    stored = StoredEmbeddings([earlier_of(embeddings), embeddings, *of_interrupted_run], key)
    # Of a corpus that has changed since, a block of another number may be read after this run has written its own.
    first_number = int(of_interrupted_run[-1].stem) + 1 if of_interrupted_run else 0
    # All processes must see the same files, before the first one writes another.
    barrier()
    element = {"float16": pa.float16(), "float32": pa.float32(), "binary": pa.uint8()}[precision]
    size = stored_bytes(dimension) if precision == "binary" else dimension
    schema = pa.schema(
        [
            ("example_id", pa.int32()),
            ("hash", pa.string()),
            ("embedding", pa.list_(element, size)),
        ]
    )
    title = f"{stage} {embeddings.stem}"
    progress = Progress(title, rows, "examples")
    embedded = 0
    taken = NO_TIME
    # Of all processes; in several, it is known only once all of them have told theirs.
    processor, processor_start_up = (math.nan, math.nan) if in_group() else (None, start_up.processor)
    last = process_seconds()

    def measured() -> dict[str, str]:
        work = Seconds(taken.clock, taken.processor if processor is None else processor)
        full = work * (rows / embedded) if embedded else stored.seconds
        return {**full.texts(), **Seconds(start_up.clock, processor_start_up).texts("start_up")}

    def pass_time(*, counts: bool) -> None:
        nonlocal taken, last
        now = process_seconds()
        taken, last = (taken + (now - last) if counts else taken), now

    def finish(
        number: int, work: _Work, fetch: Callable[[], np.ndarray] | None, write: Callable[[pa.Table], None]
    ) -> None:
        nonlocal embedded
        is_new = fetch is not None
        if fetch:
            computed = fetch()
            # What float16 can't hold is refused.
            with np.errstate(over="ignore"):
                work.vectors[work.new] = quantize(computed) if precision == "binary" else computed
            _require_finite(title, work, computed, precision)
            embedded += len(work.new)
        pass_time(counts=is_new)
        progress.advance(len(work.vectors))
        if not is_rank_zero():
            return
        column = pa.FixedSizeListArray.from_arrays(pa.array(work.vectors.reshape(-1), element), size)
        table = pa.table([work.block.example_ids, work.block.hashes, column], names=schema.names)
        if fetch:
            write_table(folder / f"{first_number + number:06d}.parquet", table.take(work.new), key=key, **measured())
        write(table)
        pass_time(counts=is_new)

    def started() -> Iterator[_Work]:
        for block in blocks:
            vectors = np.empty((len(block.hashes), size), element.to_pandas_dtype())
            # Another job may put the file in place meanwhile.
            new = broadcast_from_rank_zero(stored.fill(block.hashes, vectors))
            prepared = preparing.submit(block.prepare, new) if len(new) else None
            yield _Work(block, vectors, new, prepared, len(block.hashes) * dimension * FLOAT_BYTES)

    writer = table_writer(embeddings, schema, measured, key=key, **metadata) if is_rank_zero() else _writing_nothing()
    with writer as write, _thread() as writing, _thread(cancel=True) as preparing:
        pending: deque[Future[None]] = deque()
        for number, work in enumerate(_ahead(started())):
            fetch = _fetching(work.block.embed(work.prepared.result())) if work.prepared else None
            # A thread doesn't inherit the context variable of `table_metadata`.
            context = contextvars.copy_context()
            pending.append(writing.submit(context.run, finish, number, work, fetch, write))
            while len(pending) > work.blocks_beside:
                pending.popleft().result()
        for written in pending:
            written.result()
        if in_group():
            processor, processor_start_up = map(sum_over_processes, (taken.processor, start_up.processor))
    if is_rank_zero():
        say(f"{title}: {embedded:,} new embeddings, {rows - embedded:,} kept")
    # Nobody reads the blocks any more.
    barrier()
    if is_rank_zero():
        delete_begun(folder)


def _require_finite(title: str, work: _Work, computed: np.ndarray, precision: str) -> None:
    """Raise `StudyError` if a new embedding is not finite, as computed or as stored."""
    ids = work.block.example_ids.to_numpy()[work.new]
    if not (finite := np.isfinite(computed).all(axis=1)).all():
        raise StudyError(
            f"{title}: the embedding of example_id {ids[~finite][0]} is not a finite number. Its text has no token, or "
            "the model is damaged."
        )
    if precision == "float16" and not (finite := np.isfinite(work.vectors[work.new]).all(axis=1)).all():
        raise StudyError(
            f"{title}: the embedding of example_id {ids[~finite][0]} has numbers beyond float16. Write "
            "scoring.embedding_precision: float32."
        )


@dataclass(frozen=True)
class _Work:
    """A block whose rows `new` have to be embedded: `vectors` has all others, `prepared` the input for the new ones."""

    block: EmbeddingBlock
    vectors: np.ndarray
    new: np.ndarray
    prepared: Future[Any] | None
    # Of the embeddings as they are computed.
    nbytes: int

    @property
    def blocks_beside(self) -> int:
        """How many blocks of this size may wait while another one is embedded."""
        return BLOCKS_AHEAD if self.nbytes <= MAX_BYTES_WAITING else 0


def _ahead(items: Iterator[_Work]) -> Iterator[_Work]:
    """Yield `items` in their order, and start the next ones before."""
    waiting: deque[_Work] = deque()
    for item in items:
        waiting.append(item)
        while len(waiting) > item.blocks_beside:
            yield waiting.popleft()
    yield from waiting


@contextlib.contextmanager
def _thread(cancel: bool = False) -> Iterator[ThreadPoolExecutor]:
    """Yield an executor of one thread; the end of the block waits for what was submitted, or cancels it if `cancel`."""
    executor = ThreadPoolExecutor(1)
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=cancel)


def _fetching(vectors: np.ndarray | torch.Tensor) -> Callable[[], np.ndarray]:
    return to_host(vectors) if isinstance(vectors, torch.Tensor) else lambda: vectors


@contextlib.contextmanager
def _writing_nothing() -> Iterator[Callable[[pa.Table], None]]:
    yield lambda table: None


def part_of_rows(path: Path, part: Sequence[int]) -> tuple[list[int], int]:
    """Return the numbers of the row groups in a part of a file, and the number of their rows.

    Parameters
    ----------
    path: Parquet file.
    part: (number of the part from 1, number n of parts). A part has every n-th row group, so appended rows move no
        other row to another part.
    """
    rows = rows_of_groups(path)
    groups = list(range(part[0] - 1, len(rows), part[1]))
    return groups, sum(rows[group] for group in groups)
