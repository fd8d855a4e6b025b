"""Predict the targets of further subsets by a method's group scores, instead of fine-tuning on them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflow_scripts.core.parquet import read_table, write_batches
from workflow_scripts.core.progress import Progress
from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.scoring.chosen_pooling import read_chosen_pooling
from workflow_scripts.scoring.fold_scores import load_fold_scorer
from workflow_scripts.scoring.group_scores import GroupScores, Membership
from workflow_scripts.targets.labels import standardised_labels

# As in `targets/train.parquet`, without what only a fine-tuning run has.
SCHEMA = pa.schema(
    [
        ("fold", pa.int32()),
        ("subset", pa.int32()),
        ("seed", pa.int32()),
        ("example_id", pa.int32()),
        # In place of a loss: minus the group score.
        ("loss", pa.float32()),
        ("label", pa.float16()),
    ]
)


def predict_targets(
    corpus: Path,
    subsets: Path,
    validation: Path,
    train_embeddings: list[Path],
    test_embeddings: list[Path],
    targets: Path,
    *,
    tokens: Path | None = None,
    language_model: Path | None = None,
    fitted: Path | None = None,
    unstored: Mapping[str, Any] | None = None,
    chosen: Path | None = None,
    method: str,
    pooling: str,
    folds: int | None = None,
    seed: int,
    tile_examples: int,
) -> None:
    """Write a label for each subset and validation example: the method's group score, standardised.

    Labels are standardised as measured ones are, over the subsets of a fold (`targets.labels`). They order the subsets
    as fine-tuning would, to the extent that the method's LDS says.

    Parameters
    ----------
    corpus: `corpora/` file that the subsets are drawn from.
    subsets: file that `sample_subsets` wrote.
    validation: the other file that it wrote.
    train_embeddings: embeddings of the corpus as training examples, several files where it is split; [] for methods
        that store none.
    test_embeddings: embeddings of the corpus as tests; likewise.
    targets: Parquet file to write, sorted by fold and subset; `seed` is 0.
    tokens: `tokens/` file of the corpus, for a method whose embeddings aren't stored.
    language_model: folder of the LM of such a method.
    fitted: file that `fit_method` wrote for it.
    unstored: how it computes its embeddings, see `scoring.unstored.load_unstored`; None for other methods.
    chosen: file that `choose_pooling` wrote, if `pooling` is `chosen`.
    method: name of the method, which is that of its module if it scores texts.
    pooling: how scores of examples become scores of subsets, of `group_scores.POOLINGS`.
    folds: how many folds, the last ones; None for all.
    seed: seed of methods that score at random.
    tile_examples: how many training examples are scored at a time.

    Raises
    ------
    StudyError: a file can't be read, the files don't belong together, a score is not finite, or the embeddings of a
        fold's validation examples don't fit in memory.
    """
    evaluated = read_table(validation, ["fold", "example_ids"]).combine_chunks()[-folds if folds else 0 :]
    score_fold = load_fold_scorer(
        method,
        corpus,
        train_embeddings,
        test_embeddings,
        tokens=tokens,
        language_model=language_model,
        fitted=fitted,
        unstored=unstored,
        tests_of_folds=[ids.values.to_numpy() for ids in evaluated["example_ids"]],
        seed=seed,
        tile_examples=tile_examples,
    )
    start_work()
    progress = Progress(f"predict_targets {method}", len(evaluated), "folds")
    drawn, choice = read_table(subsets), read_chosen_pooling(chosen) if chosen else None

    def tables() -> Iterator[pa.Table]:
        for fold, tests in zip(evaluated["fold"].to_pylist(), evaluated["example_ids"], strict=True):
            own = drawn.filter(pc.equal(drawn["fold"], fold))
            ids = tests.values.to_numpy()
            members = [one.values.to_numpy() for one in own["example_ids"]]
            groups = GroupScores(len(ids), Membership(members), [pooling], choice)
            for example_ids, scores in score_fold(ids, np.unique(np.concatenate(members))):
                groups.update(example_ids, scores)
            yield _fold_targets(fold, own["subset"].to_numpy(), ids, groups.result(pooling))
            progress.advance()

    write_batches(targets, SCHEMA, tables())


def _fold_targets(fold: int, subsets: np.ndarray, tests: np.ndarray, scores: np.ndarray) -> pa.Table:
    """Return the targets of one fold; `scores` is float32 [subsets, tests]."""
    labels = standardised_labels(-scores[:, None, :])
    return pa.table(
        {
            "fold": np.full(scores.size, fold, np.int32),
            "subset": np.repeat(subsets, len(tests)),
            "seed": np.zeros(scores.size, np.int32),
            "example_id": np.tile(tests, len(subsets)),
            "loss": -scores.reshape(-1),
            "label": labels.reshape(-1).astype(np.float16),
        },
        schema=SCHEMA,
    )


if __name__ == "__main__":
    run_stage(predict_targets)
