"""Score every training example and every subset for every test example (paper, sections 3.2 and 4.1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.methods.loading import load_text_method
from workflow_scripts.scoring.chosen_pooling import read_chosen_pooling
from workflow_scripts.scoring.sources import (
    load_gpu_libraries,
    open_embeddings,
    open_texts,
    read_evaluation,
    score_source,
    source_costs,
)
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
    chosen: Path | None = None,
    *,
    train_tokens: Path | None = None,
    test_tokens: Path | None = None,
    language_model: Path | None = None,
    fitted: Path | None = None,
    unstored: Mapping[str, Any] | None = None,
    method: str,
    poolings: Sequence[str],
    evaluation: str,
    seed: int,
    top: int,
    tile_examples: int,
) -> None:
    """Score an evaluation by one method: write the top examples of each test, and the group scores of all subsets.

    Parameters
    ----------
    train: `corpora/` file of the training examples.
    test: `corpora/` file that the test examples are drawn from.
    subsets: file with the evaluation's subsets of the training corpus.
    validation: file with the ids of the test examples, in one row.
    train_embeddings: embeddings of the training corpus; None for methods that store none.
    test_embeddings: embeddings of the test corpus, several files where it is split; [] for methods that store none.
    scores: Parquet file to write, the top examples of each test; its metadata hold the costs of `scoring.tables`.
    groups: Parquet file to write, the group scores of all subsets.
    chosen: file that `choose_pooling` wrote, where `chosen` is among the poolings.
    train_tokens: `tokens/` file of the training corpus, for a method whose embeddings aren't stored.
    test_tokens: `tokens/` file of the test corpus, for such a method.
    language_model: folder of the LM of such a method.
    fitted: file that `fit_method` wrote for it.
    unstored: how it computes its embeddings, see `scoring.unstored.load_unstored`; None for other methods.
    method: name of the method, which is that of its module if it scores texts.
    poolings: how scores of examples become scores of subsets, of `group_scores.POOLINGS`.
    evaluation: name of the evaluation set, for the progress display.
    seed: seed of methods that score at random.
    top: how many most helpful and most harmful examples to keep for each test.
    tile_examples: how many training examples are scored at a time.

    Raises
    ------
    StudyError: a file can't be read, the files don't belong together, an embedding is not finite, or those of the tests
        don't fit in memory.
    """
    if unstored:
        # It loads torch and transformers.
        from workflow_scripts.scoring.unstored import load_unstored, open_unstored

        tests = len(read_evaluation(subsets, validation)[0])
        embedder = load_unstored(unstored, language_model=language_model, fitted=fitted, tests=tests, method=method)
    elif train_embeddings:
        load_gpu_libraries()
    else:
        open_scorer = load_text_method(method)
    timer = start_work()
    test_ids, subset_ids, membership = read_evaluation(subsets, validation)
    if train_tokens and test_tokens:
        source = open_unstored(embedder, train_tokens, test_tokens, test_ids)
    elif train_embeddings:
        source = open_embeddings(train_embeddings, test_embeddings, test_ids, tile_examples)
    else:
        source = open_texts(open_scorer, train, test, test_ids, seed, tile_examples)
    choice = read_chosen_pooling(chosen) if chosen else None
    title = f"score_pairs {method} {evaluation}"
    result = score_source(source, len(test_ids), top, membership, poolings, choice, title)
    write_scores(
        train,
        test,
        scores,
        groups,
        result,
        poolings,
        test_ids,
        subset_ids,
        lambda: source_costs(source, timer),
    )


if __name__ == "__main__":
    run_stage(score_pairs)
