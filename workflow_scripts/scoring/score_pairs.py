"""Score every training example and every subset for every test example (paper, sections 3.2 and 4.1)."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, read_schema, read_table
from workflow_scripts.core.progress import Progress
from workflow_scripts.core.stage import run_stage
from workflow_scripts.methods.loading import load_text_method
from workflow_scripts.methods.text_scorer import Texts
from workflow_scripts.scoring.corpus_scores import CorpusScores, PartScores
from workflow_scripts.scoring.group_scores import Membership
from workflow_scripts.scoring.tables import write_scores


def score_pairs(
    train: Path,
    test: Path,
    subsets: Path,
    validation: Path,
    train_embeddings: Path | None,
    test_embeddings: list[Path],
    scores: Path,
    groups: Path,
    *,
    method: str,
    poolings: Sequence[str],
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
    train_embeddings: those of the training corpus; None for methods that score texts.
    test_embeddings: those of the test corpus, several files where it is split; [] for methods that score texts.
    method: its name, which is that of its module if it scores texts.
    poolings: how scores of examples become scores of subsets, of `group_scores.POOLINGS`.
    evaluation: name of the evaluation set, for the progress display.
    seed: of random scores.
    top: how many most helpful and most harmful examples to keep for each test.
    tile_examples: training examples scored at once.

    Raises
    ------
    StudyError: the files don't belong together, or an embedding is damaged.
    """
    start = time.monotonic()
    test_ids, subset_ids, membership = read_evaluation(subsets, validation)
    if train_embeddings:
        source = open_embeddings(train_embeddings, test_embeddings, test_ids, tile_examples)
    else:
        source = _open_texts(method, train, test, test_ids, seed, tile_examples)
    result = score_source(source, len(test_ids), top, membership, poolings, f"score_pairs {method} {evaluation}")
    write_scores(
        scores,
        groups,
        result,
        poolings,
        test_ids,
        subset_ids,
        seconds=f"{time.monotonic() - start:.3f}",
        embedding_seconds=f"{source.embedding_seconds + source.test_embedding_seconds:.3f}",
        bytes_per_example=f"{source.bytes_per_example:.1f}",
    )


def read_evaluation(subsets: Path, validation: Path) -> tuple[np.ndarray, np.ndarray, Membership]:
    """Return the ids of the test examples, those of the subsets, and the subsets' members."""
    table = read_table(subsets, columns=["subset", "example_ids"])
    membership = Membership([ids.values.to_numpy() for ids in table["example_ids"]])
    return read_table(validation)["example_ids"][0].values.to_numpy(), table["subset"].to_numpy(), membership


@dataclass(frozen=True)
class Source:
    """Where scores come from; `tiles` and `score` as `CorpusScores.add_tiles` wants them.

    Parameters
    ----------
    on_device: computes all scores on a GPU, where there is one: `device_scores.score_on_device` without the last
        arguments.
    """

    tiles: Iterable[tuple[np.ndarray, Any]]
    score: Callable[[Any, slice], np.ndarray]
    examples: int
    bytes_per_example: float
    embedding_seconds: float = 0.0
    test_embedding_seconds: float = 0.0
    on_device: Callable[..., PartScores] | None = None


def score_source(
    source: Source, tests: int, top: int, membership: Membership, poolings: Collection[str], title: str
) -> CorpusScores:
    """Return the scores of everything in `source`, in one pass; `title` is for the progress display."""
    progress = Progress(title, source.examples, "training examples")
    result = CorpusScores(tests, top, membership, poolings)
    if source.on_device:
        result.merge(source.on_device(top=top, membership=membership, on_tile=progress.advance))
    else:
        result.add_tiles(source.tiles, source.score, progress.advance)
    return result


def open_embeddings(train: Path, test: Sequence[Path], test_ids: np.ndarray, tile_examples: int) -> Source:
    """Return a source of inner products of stored embeddings; those of the tests may be in several files."""
    # Imported here: torch takes seconds to load, and methods that score texts do without.
    from workflow_scripts.embeddings.tiles import embedding_tiles, inner_products, read_embeddings
    from workflow_scripts.language_model.losses import best_device
    from workflow_scripts.scoring.gpu_scores import score_on_device

    seconds = _seconds(train)
    tests = read_embeddings(test, test_ids)
    schema, examples = read_schema(train)
    embedding = schema.field("embedding").type
    if embedding.list_size != tests.shape[1]:
        raise StudyError(
            f"{train} has embeddings of {embedding.list_size} numbers and {test[0]} of {tests.shape[1]}: they "
            "come from two encoders. Delete both and run again."
        )
    tiles, device = embedding_tiles(train, tile_examples), best_device()
    return Source(
        tiles=tiles,
        score=inner_products(tests),
        examples=examples,
        bytes_per_example=embedding.list_size * embedding.value_type.bit_width / 8,
        embedding_seconds=seconds,
        test_embedding_seconds=sum(map(_seconds, test)),
        on_device=None if device.type == "cpu" else partial(score_on_device, tiles, tests, device=device),
    )


def _seconds(embeddings: Path) -> float:
    return float(read_metadata(embeddings).get("seconds", 0))


def _open_texts(method: str, train: Path, test: Path, test_ids: np.ndarray, seed: int, tile_examples: int) -> Source:
    examples, tests = Texts.read(train), Texts.read(test).take(test_ids)
    scorer = load_text_method(method)(examples, tests, seed)
    number = len(examples.prompts)
    rows = [slice(start, min(start + tile_examples, number)) for start in range(0, number, tile_examples)]
    return Source(
        tiles=((examples.example_ids[tile], tile) for tile in rows),
        score=scorer.score,
        examples=number,
        bytes_per_example=scorer.bytes_per_example,
    )


if __name__ == "__main__":
    run_stage(score_pairs)
