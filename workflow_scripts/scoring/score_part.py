"""Score a part of a training corpus, as `score_pairs` scores all of it; `merge_scores` merges the parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.scoring.chosen_pooling import read_chosen_pooling
from workflow_scripts.scoring.sources import load_gpu_libraries, open_embeddings, read_evaluation, score_source
from workflow_scripts.scoring.tables import costs, write_part


def score_part(
    subsets: Path,
    validation: Path,
    train_embeddings: Path | None,
    test_embeddings: list[Path],
    scores: Path,
    sums: Path,
    chosen: Path | None = None,
    *,
    train_tokens: Path | None = None,
    test_tokens: Path | None = None,
    language_model: Path | None = None,
    fitted: Path | None = None,
    unstored: Mapping[str, Any] | None = None,
    part_numbers: Sequence[int] = (1, 1),
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
    train_embeddings: embeddings of this part of the training corpus; None for a method that stores none.
    test_embeddings: embeddings of the test corpus, one file or several; [] for a method that stores none.
    scores: Parquet file to write, the part's top examples of each test.
    sums: Parquet file to write, the part's group sums.
    chosen: file that `choose_pooling` wrote, where `chosen` is among the poolings.
    train_tokens: `tokens/` file of the whole training corpus, for a method whose embeddings aren't stored.
    test_tokens: `tokens/` file of the test corpus, for such a method.
    language_model: folder of the LM of such a method.
    fitted: file that `fit_method` wrote for it.
    unstored: how it computes its embeddings, see `scoring.unstored.load_unstored`; None for other methods.
    part_numbers: (number of the part from 1, number of parts), for such a method.
    method: name of a method that has embeddings, for the progress display.
    poolings: how scores of examples become scores of subsets, of `group_scores.POOLINGS`.
    part: name of the part, for the progress display.
    top: how many most helpful and most harmful examples to keep for each test.
    tile_examples: how many training examples are scored at a time.

    Raises
    ------
    StudyError: a file can't be read, the files don't belong together, an embedding is not finite, or those of the tests
        don't fit in memory.
    """
    if unstored:
        # It loads transformers.
        from workflow_scripts.scoring.unstored import load_unstored, open_unstored

        tests = len(read_evaluation(subsets, validation)[0])
        embedder = load_unstored(unstored, language_model=language_model, fitted=fitted, tests=tests, method=method)
    load_gpu_libraries()
    timer = start_work()
    test_ids, subset_ids, membership = read_evaluation(subsets, validation)
    if train_tokens and test_tokens:
        source = open_unstored(embedder, train_tokens, test_tokens, test_ids, part_numbers)
    else:
        assert train_embeddings, "a method has tokens or embeddings"
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
