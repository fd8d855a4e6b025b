"""Score a part of a training corpus: what `score_pairs` does with all of it, for `merge_scores` to put together."""

import time
from collections.abc import Sequence
from pathlib import Path

from workflow_scripts.core.stage import run_stage
from workflow_scripts.scoring.sources import open_embeddings, read_evaluation, score_source
from workflow_scripts.scoring.tables import write_part


def score_part(
    subsets: Path,
    validation: Path,
    train_embeddings: Path,
    test_embeddings: list[Path],
    scores: Path,
    sums: Path,
    *,
    method: str,
    poolings: Sequence[str],
    part: str,
    top: int,
    tile_examples: int,
) -> None:
    """Write the part's top examples of each test to `scores`, and its share of the group scores to `sums`.

    Parameters
    ----------
    train_embeddings: of this part of the training corpus.
    method: one that reads embeddings.
    part: name of the part, for the progress display.
    subsets, validation, test_embeddings, poolings, top, tile_examples: as `score_pairs`.

    Raises
    ------
    StudyError: as `score_pairs`.
    """
    start = time.monotonic()
    test_ids, subset_ids, membership = read_evaluation(subsets, validation)
    source = open_embeddings(train_embeddings, test_embeddings, test_ids, tile_examples)
    result = score_source(source, len(test_ids), top, membership, poolings, f"score_part {method} {part}")
    write_part(
        scores,
        sums,
        result.part(),
        test_ids,
        subset_ids,
        seconds=f"{time.monotonic() - start:.3f}",
        embedding_seconds=f"{source.embedding_seconds:.3f}",
        test_embedding_seconds=f"{source.test_embedding_seconds:.3f}",
        bytes_per_example=f"{source.bytes_per_example:.1f}",
    )


if __name__ == "__main__":
    run_stage(score_part)
