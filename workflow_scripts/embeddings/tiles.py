"""Scores of encoders: inner products of stored embeddings (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from workflow_scripts.core.buffers import scratch
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_batches


def embedding_tiles(path: Path, examples: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield (ids int32 [n], embeddings as stored [n, dimension]) with n <= `examples`, in the file's order.

    Raises
    ------
    StudyError: the file is damaged, or its ids don't ascend.
    """
    last = -1
    for batch in read_batches(path, examples, ["example_id", "embedding"]):
        ids = batch["example_id"].to_numpy()
        if ids[0] <= last or (np.diff(ids) <= 0).any():
            raise StudyError(f"{path}: example_id doesn't ascend. Delete the file and run again.")
        last = ids[-1]
        yield ids, torch.from_dlpack(batch["embedding"].flatten()).reshape(len(ids), -1)


def read_embeddings(paths: Sequence[Path], example_ids: np.ndarray) -> np.ndarray:
    """Return the embeddings of these examples, float32 [examples, dimension], in the order asked for.

    They stand in the file or files of one corpus.

    Raises
    ------
    StudyError: as `embedding_tiles`, or an example is not in the file.
    """
    place = {int(example_id): row for row, example_id in enumerate(example_ids)}
    found: dict[int, np.ndarray] = {}
    for path in paths:
        for ids, embeddings in embedding_tiles(path, 8192):
            for row in np.flatnonzero(np.isin(ids, example_ids)):
                found[place[int(ids[row])]] = embeddings[row].float().numpy()
    if missing := [int(example_id) for example_id in example_ids if place[int(example_id)] not in found]:
        raise StudyError(
            f"{paths[0]} lacks {len(missing):,} of the test examples, e.g. example_id {missing[0]}: it was made from "
            "another corpus. Delete the file and run again."
        )
    return np.stack([found[row] for row in range(len(example_ids))])


def inner_products(tests: np.ndarray) -> Callable[[torch.Tensor, slice], np.ndarray]:
    """Return a function that scores a tile of embeddings for a slice of `tests`, as `CorpusScores` wants it.

    Scores are computed and summed in float32, whatever the precision of the stored embeddings. They are
    overwritten by the same thread's next call.

    Raises
    ------
    StudyError: an embedding is not finite.
    """

    def score(tile: torch.Tensor, columns: slice) -> np.ndarray:
        examples = scratch("examples", tuple(tile.shape), np.float32)
        # torch converts half precision several times faster than NumPy.
        torch.from_numpy(examples).copy_(tile)
        if not np.isfinite(examples.sum()):
            raise StudyError("an embedding is not a finite number: the encoder is damaged. Train it again.")
        chosen = tests[columns]
        return np.matmul(examples, chosen.T, out=scratch("scores", (len(examples), len(chosen)), np.float32))

    return score
