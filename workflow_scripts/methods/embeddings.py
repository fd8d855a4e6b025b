"""Scores of encoders: inner products of stored embeddings (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from workflow_scripts.lib.errors import StudyError


def embedding_tiles(path: Path, examples: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids int32 [n], embeddings float32 [n, dimension]) with n <= `examples`, in the file's order.

    Raises
    ------
    StudyError: the file is damaged, its ids don't ascend, or an embedding is not finite.
    """
    last = -1
    try:
        # A small read buffer instead of whole row groups: memory depends on `examples` alone.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(examples, columns=["example_id", "embedding"]):
                ids = batch["example_id"].to_numpy()
                if ids[0] <= last or (np.diff(ids) <= 0).any():
                    raise StudyError(f"{path}: example_id doesn't ascend. Delete the file and run again.")
                last = ids[-1]
                yield ids, _matrix(batch["embedding"], path)
    except (pa.ArrowException, OSError) as error:
        raise StudyError(f"{path} can't be read as embeddings ({error}). Delete it and run again.") from error


def read_embeddings(path: Path, example_ids: np.ndarray) -> np.ndarray:
    """Return the embeddings of these examples, float32 [examples, dimension], in the order asked for.

    Raises
    ------
    StudyError: as `embedding_tiles`, or an example is not in the file.
    """
    order = np.argsort(example_ids)
    wanted = example_ids[order]
    found, parts = [], []
    for ids, embeddings in embedding_tiles(path, 8192):
        rows = np.flatnonzero(np.isin(ids, wanted))
        found.append(ids[rows])
        parts.append(embeddings[rows])
    if missing := set(wanted.tolist()) - set(np.concatenate(found).tolist()):
        raise StudyError(
            f"{path} lacks {len(missing):,} of the test examples, e.g. example_id {min(missing)}: it was "
            "made from another corpus. Delete the file and run again."
        )
    embeddings = np.empty((len(wanted), parts[0].shape[1]), np.float32)
    embeddings[order] = np.concatenate(parts)
    return embeddings


def _matrix(column: pa.FixedSizeListArray, path: Path) -> np.ndarray:
    values = torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy())
    # torch converts half precision several times faster than NumPy.
    matrix = values.float().numpy().reshape(len(column), -1)
    if not np.isfinite(matrix.sum()):
        raise StudyError(f"{path} holds embeddings that are not finite numbers: the encoder is damaged.")
    return matrix
