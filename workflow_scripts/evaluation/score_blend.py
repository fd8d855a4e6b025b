"""Find the top examples of every test by a blend of two methods."""

from collections.abc import Sequence
from pathlib import Path

from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.evaluation.blends import read_blend
from workflow_scripts.methods.loading import load_text_method
from workflow_scripts.scoring.group_scores import Membership
from workflow_scripts.scoring.sources import (
    Source,
    load_gpu_libraries,
    open_embeddings,
    open_texts,
    score_source,
    source_costs,
)
from workflow_scripts.scoring.summed_source import sum_sources
from workflow_scripts.scoring.tables import write_top
from workflow_scripts.study.methods import methods_of
from workflow_scripts.targets.tables import read_tests


def score_blend(
    train: Path,
    test: Path,
    validation: Path,
    weights: Path,
    first_train: Path | None,
    second_train: Path | None,
    first_test: list[Path],
    second_test: list[Path],
    scores: Path,
    *,
    blend: str,
    evaluation: str,
    seed: int,
    top: int,
    tile_examples: int,
) -> None:
    """Write the top examples of each test by the sum of two methods' scores.

    The scores of each method are divided by the spread of its group scores on the held-back folds, and weighed as the
    group scores are (`evaluation.blends`). Examples that one of the methods doesn't score have no place.

    Parameters
    ----------
    train: `corpora/` file of the training examples.
    test: `corpora/` file that the test examples are drawn from.
    validation: file with the ids of the test examples, in one row.
    weights: file that `weigh_blend` wrote.
    first_train: embeddings of the training corpus by the first method; None if it scores texts.
    second_train: likewise by the second method.
    first_test: embeddings of the test corpus by the first method; [] if it scores texts.
    second_test: likewise by the second method.
    scores: Parquet file to write, see `scoring.tables`.
    blend: names of both methods, e.g. `airrep+tfidf`.
    evaluation: name of the evaluation set, for the progress display.
    seed: seed of methods that score at random.
    top: how many most helpful and most harmful examples to keep for each test.
    tile_examples: how many training examples are scored at a time.

    Raises
    ------
    StudyError: a file can't be read, the files don't belong together, or an embedding is not finite.
    """
    pairs: Sequence[tuple[Path | None, list[Path]]] = [(first_train, first_test), (second_train, second_test)]
    if any(embeddings for embeddings, _ in pairs):
        load_gpu_libraries()
    scorers = {
        method: load_text_method(method)
        for method, (embeddings, _) in zip(methods_of(blend), pairs, strict=True)
        if not embeddings
    }
    timer = start_work()
    test_ids = read_tests(validation)

    def opened(method: str, embeddings: Path | None, of_tests: list[Path]) -> Source:
        if embeddings:
            return open_embeddings(embeddings, of_tests, test_ids, tile_examples)
        return open_texts(scorers[method], train, test, test_ids, seed, tile_examples)

    first, second = (opened(method, *files) for method, files in zip(methods_of(blend), pairs, strict=True))
    source = sum_sources((first, second), read_blend(weights).factors)
    title = f"score_blend {blend} {evaluation}"
    result = score_source(source, len(test_ids), top, Membership([]), (), None, title)
    write_top(
        train,
        test,
        scores,
        result,
        test_ids,
        lambda: source_costs(source, timer),
    )


if __name__ == "__main__":
    run_stage(score_blend)
