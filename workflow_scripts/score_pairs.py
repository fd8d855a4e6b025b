"""Score every training example and every subset for every test example (paper, sections 3.2 and 4.1)."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workflow_scripts.lib.errors import StudyError
from workflow_scripts.lib.group_scores import Membership
from workflow_scripts.lib.progress import Progress
from workflow_scripts.lib.stage import run_stage
from workflow_scripts.lib.tables import read_metadata, read_table, write_table
from workflow_scripts.lib.tiles import CorpusScores
from workflow_scripts.methods import METHODS, load_text_method
from workflow_scripts.methods.texts import Texts


def score_pairs(
    train: Path,
    test: Path,
    subsets: Path,
    validation: Path,
    train_embeddings: Path | list[Path],
    test_embeddings: Path | list[Path],
    scores: Path,
    groups: Path,
    *,
    method: str,
    evaluation: str,
    seed: int,
    top: int,
    tile_examples: int,
) -> None:
    """Write the top examples of each test to `scores`, and the group scores of all subsets to `groups`.

    Parameters
    ----------
    train, test: corpora of the evaluation.
    subsets: the evaluation's subsets of the training corpus.
    validation: the test examples, as the one row of the evaluation's validation table.
    train_embeddings, test_embeddings: made by the method's encoder; [] for methods that score texts.
    method: a name of `workflow_scripts.methods.METHODS`.
    evaluation: name of the evaluation set, for the progress display.
    seed: of random scores.
    top: how many most helpful and most harmful examples to keep for each test.
    tile_examples: training examples scored at once.

    Raises
    ------
    StudyError: the files don't belong together, or an embedding is damaged.
    """
    start = time.monotonic()
    test_ids = read_table(validation)["example_ids"][0].values.to_numpy()
    subset_table = read_table(subsets, columns=["subset", "example_ids"])
    membership = Membership([ids.values.to_numpy() for ids in subset_table["example_ids"]])
    poolings = METHODS[method].poolings

    if METHODS[method].encoder:
        source = _open_embeddings(train_embeddings, test_embeddings, test_ids, tile_examples)
    else:
        source = _open_texts(method, train, test, test_ids, seed, tile_examples)
    result = CorpusScores(len(test_ids), top, membership, poolings)
    progress = Progress(f"score_pairs {method} {evaluation}", source.examples, "training examples")
    result.add_tiles(source.tiles, source.score, progress.advance)

    write_table(groups, _group_table(result, poolings, test_ids, subset_table["subset"].to_numpy()))
    write_table(
        scores,
        _top_table(result, test_ids),
        seconds=f"{time.monotonic() - start:.3f}",
        embedding_seconds=f"{source.embedding_seconds:.3f}",
        bytes_per_example=f"{source.bytes_per_example:.1f}",
    )


@dataclass(frozen=True)
class _Source:
    """Where scores come from; `tiles` and `score` as `CorpusScores.add_tiles` wants them."""

    tiles: Iterable[tuple[np.ndarray, Any]]
    score: Callable[[Any, slice], np.ndarray]
    examples: int
    bytes_per_example: float
    embedding_seconds: float = 0.0


def _open_embeddings(train: Path, test: Path, test_ids: np.ndarray, tile_examples: int) -> _Source:
    # Imported here: torch takes seconds to load, and methods that score texts do without.
    from workflow_scripts.methods.embeddings import embedding_tiles, inner_products, read_embeddings

    seconds = sum(float(read_metadata(path).get("seconds", 0)) for path in (train, test))
    tests = read_embeddings(test, test_ids)
    file = pq.read_metadata(train)
    embedding = pq.read_schema(train).field("embedding").type
    if embedding.list_size != tests.shape[1]:
        raise StudyError(
            f"{train} has embeddings of {embedding.list_size} numbers and {test} of {tests.shape[1]}: they "
            "come from two encoders. Delete both and run again."
        )
    return _Source(
        tiles=embedding_tiles(train, tile_examples),
        score=inner_products(tests),
        examples=file.num_rows,
        bytes_per_example=embedding.list_size * embedding.value_type.bit_width / 8,
        embedding_seconds=seconds,
    )


def _open_texts(method: str, train: Path, test: Path, test_ids: np.ndarray, seed: int, tile_examples: int) -> _Source:
    examples, tests = Texts.read(train), Texts.read(test).take(test_ids)
    scorer = load_text_method(method)(examples, tests, seed)
    number = len(examples.prompts)
    rows = [slice(start, min(start + tile_examples, number)) for start in range(0, number, tile_examples)]
    return _Source(
        tiles=((examples.example_ids[tile], tile) for tile in rows),
        score=scorer.score,
        examples=number,
        bytes_per_example=scorer.bytes_per_example,
    )


def _top_table(result: CorpusScores, test_ids: np.ndarray) -> pa.Table:
    tables = []
    for sign in ("helpful", "harmful"):
        example_ids, scores = result.top(sign)
        tests, top = example_ids.shape
        columns = {
            "test_id": pa.array(np.repeat(test_ids, top), pa.int32()),
            "sign": pa.array([sign] * (tests * top)),
            "rank": pa.array(np.tile(np.arange(1, top + 1), tests), pa.int32()),
            "example_id": pa.array(example_ids.ravel(), pa.int32()),
            "score": pa.array(scores.ravel(), pa.float32()),
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _group_table(result: CorpusScores, poolings: Iterable[str], test_ids: np.ndarray, subsets: np.ndarray) -> pa.Table:
    tables = []
    for pooling in poolings:
        scores = result.groups(pooling)
        columns = {
            "test_id": pa.array(np.repeat(test_ids, len(subsets)), pa.int32()),
            "subset": pa.array(np.tile(subsets, len(test_ids)), pa.int32()),
            "pooling": pa.array([pooling] * scores.size, pa.string()),
            "score": pa.array(scores.ravel(), pa.float32()),
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


if __name__ == "__main__":
    run_stage(snakemake, score_pairs)  # noqa: F821
