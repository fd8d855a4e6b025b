"""Scores by embeddings that are too large to be stored: computed by the LM, tile by tile, as they are scored."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_batches
from workflow_scripts.embeddings.store import part_of_rows
from workflow_scripts.embeddings.tiles import inner_products
from workflow_scripts.language_model.tokens import TokenizedExample, read_examples
from workflow_scripts.methods.embedder import Embedder, load_embedder
from workflow_scripts.models.device import best_device
from workflow_scripts.scoring.gpu_scores import score_on_device
from workflow_scripts.scoring.sources import Source

# Numbers in a tile of embeddings: 64 MiB. There are some more tiles in memory than threads.
TILE_NUMBERS = 2**24
FLOAT_BYTES = 4
CGROUP = Path("/sys/fs/cgroup")
CACHED = ("memory.stat", "inactive_file")


def load_unstored(
    embedding: Mapping[str, Any], *, language_model: Path | None, fitted: Path | None, tests: int, method: str
) -> Embedder:
    """Return the embedder of a method whose embeddings aren't stored.

    Parameters
    ----------
    embedding: `module`, `settings`, `lm_source`, `batch_tokens` and `precision`, see `methods.embedder.load_embedder`.
    language_model: folder of the LM, where the workflow made or fetched it.
    fitted: file that `fit_method` wrote.
    tests: number of tests, whose embeddings are kept in memory.
    method: name of the method, for the message.

    Raises
    ------
    StudyError: a model or file can't be read, the method can't read the LM, or the tests don't fit in memory.
    """
    embedder = load_embedder(**embedding, language_model=language_model, fitted=fitted, for_tests=False)
    device = best_device()
    require_room(method, tests, embedder.dimension, available_memory(device), "GPU" if device.type == "cuda" else "job")
    return embedder


def require_room(method: str, tests: int, numbers: int, available: float, whose: str) -> None:
    """Refuse tests whose embeddings exceed the memory.

    Parameters
    ----------
    method: name of the method.
    tests: number of tests.
    numbers: of one embedding.
    available: bytes that there are.
    whose: `GPU` or `job`, whose memory it is.

    Raises
    ------
    StudyError: tests x numbers x 4 bytes are more than are available.
    """
    needed = tests * numbers * FLOAT_BYTES
    if needed > available:
        raise StudyError(
            f"{method} holds the gradients of all tests in memory: {tests:,} tests x {numbers:,} parameters x 4 bytes "
            f"are {needed / 1e9:,.1f} GB, and the {whose} has {available / 1e9:,.1f} GB. Write ekfac_16384 in its "
            "place in scoring.methods, or lower the evaluation's `tests`."
        )


def available_memory(device: torch.device) -> int:
    """Return how many bytes of memory a job can still take: those of its GPU, else those of its machine or cgroup."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        # Unlike the pages that are free, it counts those that the system only keeps as a cache of files.
        entries = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(entries["MemAvailable"].split()[0]) * 1024
    limit, used, cached = (_cgroup_bytes(*name) for name in (("memory.max",), ("memory.current",), CACHED))
    # What is used includes cached files, which the system gives back.
    return available if limit is None or used is None else min(available, limit - used + (cached or 0))


def _cgroup_bytes(name: str, entry: str = "") -> int | None:
    """Return a number of this process's cgroup, of a file or an entry of it; None where there is none, or `max`."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        text = next(path for folder in (CGROUP / own, CGROUP) if (path := folder / name).exists()).read_text()
    except (OSError, StopIteration):
        return None
    found = re.search(rf"^{entry} ?(\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None


def open_unstored(
    embedder: Embedder,
    train_tokens: Path,
    test_tokens: Path,
    test_ids: np.ndarray,
    part: Sequence[int] = (1, 1),
    only: np.ndarray | None = None,
) -> Source:
    """Return a source of inner products of embeddings that are computed as they are scored.

    Parameters
    ----------
    embedder: result of `load_unstored`.
    train_tokens: `tokens/` file of the training corpus.
    test_tokens: `tokens/` file of the test corpus.
    test_ids: int [tests], ids of the test examples.
    part: (number of the part of the training corpus from 1, number of parts), see `embeddings.store.part_of_rows`.
    only: int [examples], the training examples that are scored; None for all.

    Raises
    ------
    StudyError: a file can't be read, a test has no tokens, or a gradient is not finite.
    """
    tile_examples = max(TILE_NUMBERS // embedder.dimension, 1)
    read = read_examples(test_tokens)
    if missing := [int(one) for one in test_ids if int(one) not in read]:
        raise StudyError(
            f"{test_tokens} lacks {len(missing):,} of the test examples, e.g. example_id {missing[0]}: it was made "
            "from another corpus. Delete the file and run again."
        )
    tests = np.empty((len(test_ids), embedder.dimension), np.float32)
    for first in range(0, len(test_ids), tile_examples):
        ids = test_ids[first : first + tile_examples]
        tests[first : first + len(ids)] = _embedded(embedder, [read[int(one)] for one in ids], ids)
    groups, rows = part_of_rows(train_tokens, part)
    device = best_device()
    tiles = _tiles(embedder, train_tokens, groups, tile_examples, only)
    return Source(
        tiles=tiles,
        score=inner_products(tests),
        examples=rows,
        bytes_per_example=embedder.dimension * FLOAT_BYTES,
        on_device=None if device.type == "cpu" else partial(score_on_device, tiles, tests, device=device),
    )


def _tiles(
    embedder: Embedder, tokens: Path, groups: Sequence[int] | None, examples: int, only: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for batch in read_batches(tokens, examples, ["example_id", "input_ids", "prompt_tokens"], groups):
        if only is not None:
            batch = batch.filter(pa.array(np.isin(batch["example_id"].to_numpy(), only)))
        if not batch.num_rows:
            continue
        ids = batch["example_id"].to_numpy()
        rows = zip(batch["input_ids"], batch["prompt_tokens"].to_pylist(), strict=True)
        read = [TokenizedExample(one.values.to_numpy(), prompt_tokens) for one, prompt_tokens in rows]
        yield ids, _embedded(embedder, read, ids)


def _embedded(embedder: Embedder, examples: Sequence[TokenizedExample], ids: np.ndarray) -> np.ndarray:
    # What scores on a GPU does so in inference mode, where there are no gradients; on a CPU, with one thread per tile.
    with torch.inference_mode(False), threadpool_limits(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)):
        vectors = embedder.embed(examples)
    finite = np.isfinite(vectors.sum(axis=1))
    if not finite.all():
        raise StudyError(
            f"the gradient of example_id {ids[~finite][0]} is not a finite number: the LM has diverged in its warm-up. "
            "Lower warmup.learning_rate."
        )
    return vectors
