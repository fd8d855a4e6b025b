"""Sources of scores (stored embeddings, or a text method), and one pass over a source."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.gpus import is_promised
from workflow_scripts.core.parquet import read_metadata, read_schema, read_table
from workflow_scripts.core.progress import Progress
from workflow_scripts.core.timing import NO_TIME, Seconds, WorkTimer, total
from workflow_scripts.embeddings.tiles import dimension_of, embedding_tiles, inner_products, read_embeddings
from workflow_scripts.methods.text_scorer import Texts, TextScorer
from workflow_scripts.scoring.corpus_scores import CorpusScores, PartScores
from workflow_scripts.scoring.group_scores import ChosenPooling, Membership
from workflow_scripts.scoring.tables import costs
from workflow_scripts.targets.tables import read_tests


def read_evaluation(subsets: Path, validation: Path) -> tuple[np.ndarray, np.ndarray, Membership]:
    """Read which tests and subsets an evaluation has.

    Parameters
    ----------
    subsets: file with the evaluation's subsets.
    validation: file with the ids of the test examples, in one row.

    Returns
    -------
    Ids of the test examples, int32 [tests]; numbers of the subsets, int32 [subsets]; and the subsets' members.
    """
    table = read_table(subsets, columns=["subset", "example_ids"])
    membership = Membership([ids.values.to_numpy() for ids in table["example_ids"]])
    return read_tests(validation), table["subset"].to_numpy(), membership


@dataclass(frozen=True)
class Source:
    """Scores of training examples for the tests of an evaluation.

    Parameters
    ----------
    tiles: pairs of example ids and whatever `score` needs, see `CorpusScores.add_tiles`.
    score: scores of a tile for a slice of the tests, float32 [examples, tests].
    examples: number of training examples.
    bytes_per_example: what the method stores for each training example.
    embedding: what it took to embed the training examples.
    test_embedding: what it took to embed the tests.
    start_up: start-up of the jobs that embedded the training examples.
    test_start_up: start-up of the jobs that embedded the tests.
    on_device: computes all scores on a GPU, `gpu_scores.score_on_device` with its first arguments bound; None where
        there is no GPU, and for methods that score texts.
    """

    tiles: Iterable[tuple[np.ndarray, Any]]
    score: Callable[[Any, slice], np.ndarray]
    examples: int
    bytes_per_example: float
    embedding: Seconds = NO_TIME
    test_embedding: Seconds = NO_TIME
    start_up: Seconds = NO_TIME
    test_start_up: Seconds = NO_TIME
    on_device: Callable[..., PartScores] | None = None


def source_costs(source: Source, timer: WorkTimer) -> dict[str, str]:
    """Return what the scores of a source cost so far, as metadata of their file, see `tables.costs`."""
    return costs(
        scoring=timer.work(),
        embedding=source.embedding + source.test_embedding,
        start_up=timer.start_up + source.start_up + source.test_start_up,
        bytes_per_example=source.bytes_per_example,
    )


def score_source(
    source: Source,
    tests: int,
    top: int,
    membership: Membership,
    poolings: Collection[str],
    chosen: ChosenPooling | None,
    title: str,
) -> CorpusScores:
    """Return the scores of a source, in one pass.

    Parameters
    ----------
    source: scores of training examples.
    tests: number of tests.
    top: how many most helpful and most harmful examples to keep for each test.
    membership: the subsets to compute group scores for.
    poolings: how their scores are pooled, of `group_scores.POOLINGS`.
    chosen: what the pooling `chosen` stands for, where it is among them.
    title: begins the lines of the progress display.
    """
    progress = Progress(title, source.examples, "training examples")
    result = CorpusScores(tests, top, membership, poolings, chosen)
    if source.on_device:
        weighting = result.weighting
        result.merge(source.on_device(top=top, membership=membership, weighting=weighting, on_tile=progress.advance))
    else:
        result.add_tiles(source.tiles, source.score, progress.advance)
    return result


def load_gpu_libraries() -> None:
    """Import what `open_embeddings` needs where there may be a GPU: torch takes seconds to load.

    To be called before the work is timed.
    """
    if is_promised():
        import workflow_scripts.scoring.gpu_scores  # noqa: F401


def open_embeddings(train: Path, test: Path | Sequence[Path], test_ids: np.ndarray, tile_examples: int) -> Source:
    """Return a source of inner products of stored embeddings.

    Parameters
    ----------
    train: embeddings of the training corpus, or of a part of it.
    test: embeddings of the test corpus, one file or several.
    test_ids: int [tests], ids of the test examples.
    tile_examples: how many training examples are scored at a time.

    Raises
    ------
    StudyError: a file can't be read, or the two have embeddings of different sizes.
    """
    test_files = [test] if isinstance(test, Path) else test
    tests = read_embeddings(test_files, test_ids)
    schema, examples = read_schema(train)
    embedding = schema.field("embedding").type
    if (dimension := dimension_of(train)) != tests.shape[1]:
        raise StudyError(
            f"{train} has embeddings of {dimension} numbers and {test_files[0]} of {tests.shape[1]}: they "
            "come from two encoders. Delete both and run again."
        )
    tiles = embedding_tiles(train, tile_examples)
    return Source(
        tiles=tiles,
        score=inner_products(tests),
        examples=examples,
        bytes_per_example=embedding.list_size * embedding.value_type.bit_width / 8,
        embedding=Seconds.read(read_metadata(train)),
        test_embedding=total(Seconds.read(read_metadata(path)) for path in test_files),
        start_up=Seconds.read(read_metadata(train), "start_up"),
        test_start_up=total(Seconds.read(read_metadata(path), "start_up") for path in test_files),
        on_device=_score_on_gpu(tiles, tests),
    )


def _score_on_gpu(
    tiles: Iterable[tuple[np.ndarray, np.ndarray]], tests: np.ndarray
) -> Callable[..., PartScores] | None:
    if not is_promised():
        return None
    # See `load_gpu_libraries`.
    from workflow_scripts.models.device import best_device
    from workflow_scripts.scoring.gpu_scores import score_on_device

    device = best_device()
    return None if device.type == "cpu" else partial(score_on_device, tiles, tests, device=device)


def open_texts(
    open_scorer: Callable[..., TextScorer], train: Path, test: Path, test_ids: np.ndarray, seed: int, tile_examples: int
) -> Source:
    """Return a source of the scores of a method that scores texts.

    Parameters
    ----------
    open_scorer: the function of the method's module, see `methods.text_scorer`.
    train: `corpora/` file of the training examples.
    test: `corpora/` file that the test examples are drawn from.
    test_ids: int [tests], ids of the test examples.
    seed: seed of methods that score at random.
    tile_examples: how many training examples are scored at a time.
    """
    examples, tests = Texts.read(train), Texts.read(test).take(test_ids)
    scorer = open_scorer(examples, tests, seed)
    number = len(examples.prompts)
    rows = [slice(start, min(start + tile_examples, number)) for start in range(0, number, tile_examples)]
    return Source(
        tiles=((examples.example_ids[tile], tile) for tile in rows),
        score=scorer.score,
        examples=number,
        bytes_per_example=scorer.bytes_per_example,
    )
