"""Merge the scores of a training corpus's parts into those of the whole corpus."""

from collections.abc import Sequence
from pathlib import Path

from workflow_scripts.core.parquet import read_metadata
from workflow_scripts.core.progress import Progress
from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import Seconds, start_work, total
from workflow_scripts.scoring.chosen_pooling import read_chosen_pooling
from workflow_scripts.scoring.corpus_scores import CorpusScores
from workflow_scripts.scoring.sources import read_evaluation
from workflow_scripts.scoring.tables import costs, read_part, write_scores


def merge_scores(
    train: Path,
    test: Path,
    subsets: Path,
    validation: Path,
    part_scores: Sequence[Path],
    part_sums: Sequence[Path],
    scores: Path,
    groups: Path,
    chosen: Path | None = None,
    *,
    method: str,
    poolings: Sequence[str],
    evaluation: str,
    top: int,
) -> None:
    """Write what `score_pairs` writes, from the files that `score_part` wrote for each part.

    Top examples are the same to the bit; group scores are summed in another order, in float64. The costs of the
    parts and of merging them are added up; those of the tests' embeddings count once.

    Parameters
    ----------
    subsets: file with the evaluation's subsets.
    validation: file with the ids of the test examples.
    part_scores: top examples of each part.
    part_sums: group sums of each part, in the same order.
    scores: Parquet file to write, the top examples of each test.
    groups: Parquet file to write, the group scores of all subsets.
    chosen: file that `choose_pooling` wrote, where `chosen` is among the poolings.
    method: name of the method, for the progress display.
    poolings: how scores of examples become scores of subsets, of `group_scores.POOLINGS`.
    evaluation: name of the evaluation set, for the progress display.
    top: how many most helpful and most harmful examples to keep for each test.

    Raises
    ------
    StudyError: members of subsets are in no part, or a file is damaged.
    """
    timer = start_work()
    test_ids, subset_ids, membership = read_evaluation(subsets, validation)
    choice = read_chosen_pooling(chosen) if chosen else None
    result = CorpusScores(len(test_ids), top, membership, poolings, choice)
    progress = Progress(f"merge_scores {method} {evaluation}", len(part_scores), "parts")
    for paths in zip(part_scores, part_sums, strict=True):
        result.merge(read_part(*paths, len(test_ids), len(subset_ids)))
        progress.advance()
    parts = [read_metadata(path) for path in part_scores]

    def of_parts(name: str) -> Seconds:
        return total(Seconds.read(part, name) for part in parts)

    write_scores(
        train,
        test,
        scores,
        groups,
        result,
        poolings,
        test_ids,
        subset_ids,
        lambda: costs(
            scoring=of_parts("scoring") + timer.work(),
            embedding=of_parts("embedding") + Seconds.read(parts[0], "test_embedding"),
            start_up=of_parts("start_up") + Seconds.read(parts[0], "test_start_up") + timer.start_up,
            bytes_per_example=float(parts[0]["bytes_per_example"]),
        ),
    )


if __name__ == "__main__":
    run_stage(merge_scores)
