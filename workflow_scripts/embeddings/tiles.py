"""Read stored embeddings, and score by their inner products (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.buffers import scratch
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_batches, read_schema
from workflow_scripts.embeddings.binary import dequantize, stored_dimension

# Numbers in a tile: 512 MiB in float32.
MOST_NUMBERS = 2**27
NOT_FINITE = "is not a finite number: the encoder is damaged. Train it again."


def embedding_tiles(path: Path, examples: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield a file of embeddings in tiles: ids int32 [n], and embeddings as they are stored.

    Embeddings are float16 or float32 [n, dimension], or uint8 where they are quantized; see `as_float`.

    Parameters
    ----------
    path: file of embeddings.
    examples: most examples in a tile; fewer where they have more than 16,384 numbers.

    Raises
    ------
    StudyError: the file is damaged, or its ids don't ascend.
    """
    last = -1
    most = max(min(examples, MOST_NUMBERS // dimension_of(path)), 1)
    for batch in read_batches(path, most, ["example_id", "embedding"]):
        ids = batch["example_id"].to_numpy()
        if ids[0] <= last or (np.diff(ids) <= 0).any():
            raise StudyError(f"{path}: example_id doesn't ascend. Delete the file and run again.")
        last = ids[-1]
        yield ids, batch["embedding"].flatten().to_numpy().reshape(len(ids), -1)


def dimension_of(path: Path) -> int:
    """Return how many numbers the embeddings of a file have.

    Raises
    ------
    StudyError: the file is damaged.
    """
    stored = read_schema(path)[0].field("embedding").type
    return stored_dimension(stored.list_size) if pa.types.is_uint8(stored.value_type) else stored.list_size


def as_float(tile: np.ndarray) -> np.ndarray:
    """Return embeddings as they are stored as float32 [n, dimension]; those of float32 themselves, not a copy."""
    return dequantize(tile) if tile.dtype == np.uint8 else tile.astype(np.float32, copy=False)


def read_embeddings(paths: Sequence[Path], example_ids: np.ndarray) -> np.ndarray:
    """Return the embeddings of some examples, float32 [examples, dimension], in the order given.

    Parameters
    ----------
    paths: file or files with the embeddings of one corpus.
    example_ids: int [examples].

    Raises
    ------
    StudyError: a file is damaged, its ids don't ascend, or an example is in no file or has no finite embedding.
    """
    return take_embeddings((tile for path in paths for tile in embedding_tiles(path, 8192)), example_ids, paths[0])


def take_embeddings(tiles: Iterable[tuple[np.ndarray, np.ndarray]], example_ids: np.ndarray, path: Path) -> np.ndarray:
    """Return the embeddings of some examples, float32 [examples, dimension], in the order given.

    Parameters
    ----------
    tiles: see `embedding_tiles`.
    example_ids: int [examples].
    path: file that the tiles are from, for the message.

    Raises
    ------
    StudyError: an example is in no tile, or its embedding is not finite.
    """
    place = {int(example_id): row for row, example_id in enumerate(example_ids)}
    found: dict[int, np.ndarray] = {}
    for ids, embeddings in tiles:
        for row in np.flatnonzero(np.isin(ids, example_ids)):
            found[place[int(ids[row])]] = as_float(embeddings[row : row + 1])[0].copy()
    if missing := [int(example_id) for example_id in example_ids if place[int(example_id)] not in found]:
        raise StudyError(
            f"{path} lacks {len(missing):,} of the test examples, e.g. example_id {missing[0]}: it was made from "
            "another corpus. Delete the file and run again."
        )
    taken = np.stack([found[row] for row in range(len(example_ids))])
    if not (finite := np.isfinite(taken).all(axis=1)).all():
        raise StudyError(f"{path}: the embedding of example_id {example_ids[~finite][0]} {NOT_FINITE}")
    return taken


def inner_products(tests: np.ndarray) -> Callable[[np.ndarray, slice], np.ndarray]:
    """Return a function that scores a tile of embeddings for a slice of the tests, see `CorpusScores.add_tiles`.

    Scores are computed and summed in float32, whatever the precision of the stored embeddings. The same thread's next
    call overwrites them.

    Parameters
    ----------
    tests: float32 [tests, dimension], embeddings of the tests.

    Raises
    ------
    StudyError: raised by the function that is returned, if an embedding is not finite.
    """

    def score(tile: np.ndarray, columns: slice) -> np.ndarray:
        if tile.dtype == np.float16:
            examples = scratch("examples", tile.shape, np.float32)
            np.copyto(examples, tile)
        else:
            examples = as_float(tile)
        chosen = tests[columns]
        scores = np.matmul(examples, chosen.T, out=scratch("scores", (len(examples), len(chosen)), np.float32))
        # A number that is not finite makes all scores of its example so, even where a test, which is finite, has a 0.
        if not np.isfinite(scores[:, :1].sum()):
            raise StudyError(f"an embedding {NOT_FINITE}")
        return scores

    return score
