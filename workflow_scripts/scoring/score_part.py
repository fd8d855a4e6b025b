"""Score a part of a training corpus, as `score_pairs` scores all of it; `merge_scores` merges the parts."""

from collections.abc import Sequence
from pathlib import Path

from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.scoring.chosen_pooling import read_chosen_pooling
from workflow_scripts.scoring.sources import load_embedding_libraries, open_embeddings, read_evaluation, score_source
from workflow_scripts.scoring.tables import costs, write_part


def score_part(
    subsets: Path,
    validation: Path,
    train_embeddings: Path,
    test_embeddings: list[Path],
    scores: Path,
    sums: Path,
    chosen: Path | None = None,
    *,
    method: str,
    poolings: Sequence[str],
    part: str,
    top: int,
    tile_examples: int,
) -> None:
    """Write the part's top examples of each test, and its contribution to the group scores.

    Parameters
    ----------
    subsets: file with the evaluation's subsets of the training corpus.
    validation: file with the ids of the test examples, in one row.
    train_embeddings: embeddings of this part of the training corpus.
    test_embeddings: embeddings of the test corpus, one file or several.
    scores: Parquet file to write, the part's top examples of each test.
    sums: Parquet file to write, the part's group sums.
    chosen: file that `choose_pooling` wrote, where `chosen` is among the poolings.
    method: name of a method that reads embeddings, for the progress display.
    poolings: how scores of examples become scores of subsets, of `group_scores.POOLINGS`.
    part: name of the part, for the progress display.
    top: how many most helpful and most harmful examples to keep for each test.
    tile_examples: how many training examples are scored at a time.

    Raises
    ------
    StudyError: a file can't be read, the files don't belong together, or an embedding is not finite.
    """
    load_embedding_libraries()
    timer = start_work()
    test_ids, subset_ids, membership = read_evaluation(subsets, validation)
    source = open_embeddings(train_embeddings, test_embeddings, test_ids, tile_examples)
    choice = read_chosen_pooling(chosen) if chosen else None
    result = score_source(source, len(test_ids), top, membership, poolings, choice, f"score_part {method} {part}")
    write_part(
        scores,
        sums,
        result.part(),
        test_ids,
        subset_ids,
        lambda: {
            **costs(timer.work(), source.embedding, timer.start_up + source.start_up, source.bytes_per_example),
            **source.test_embedding.texts("test_embedding"),
            **source.test_start_up.texts("test_start_up"),
        },
    )


if __name__ == "__main__":
    run_stage(score_part)
