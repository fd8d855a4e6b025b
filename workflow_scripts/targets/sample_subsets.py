"""Write which examples are in which subset and validation set; the fine-tuning jobs draw the same from seeds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_batches, write_batches, write_table
from workflow_scripts.core.stage import run_stage
from workflow_scripts.targets.sampling import Sampling, corpus_ids

SCHEMA = pa.schema([("fold", pa.int32()), ("subset", pa.int32()), ("example_ids", pa.list_(pa.int32()))])
VALIDATION_SCHEMA = pa.schema([("fold", pa.int32()), ("example_ids", pa.list_(pa.int32()))])
ROWS_AT_ONCE = 1024


def sample_subsets(
    train_tokens: Path,
    test_tokens: Path,
    subsets: Path,
    validation: Path,
    *,
    sampling: dict[str, Any],
    folds: int,
    subsets_per_fold: int,
) -> None:
    """Write all subsets of a pool, and the examples that each fold's subsets are evaluated on.

    Parameters
    ----------
    train_tokens: file of the examples that subsets are drawn from, one of `tokens/`, or of `corpora/` where no LM is
        fine-tuned.
    test_tokens: file of the examples to evaluate, as `train_tokens`; may be the same.
    subsets: Parquet file to write, one row per subset; its number is `fold * subsets_per_fold + index`.
    validation: Parquet file to write, one row per fold.
    sampling: values of `targets.sampling.Sampling`.
    folds: number of folds.
    subsets_per_fold: number of subsets in each fold; may be 0.

    Raises
    ------
    StudyError: a corpus is too small, or all examples to train on are the same.
    """
    if subsets_per_fold:
        _refuse_equal_examples(sampling["pool"], train_tokens)
    draw = Sampling(**sampling)
    train_ids, test_ids = corpus_ids(train_tokens, test_tokens)
    evaluated = []

    def tables() -> Iterator[pa.Table]:
        for fold in range(folds):
            drawn = draw.fold(fold, train_ids, test_ids)
            evaluated.append(drawn.evaluated)
            indexes = range(subsets_per_fold)
            yield pa.table(
                {
                    "fold": [fold] * subsets_per_fold,
                    "subset": [fold * subsets_per_fold + index for index in indexes],
                    "example_ids": [draw.subset(fold, index, drawn.pool) for index in indexes],
                },
                schema=SCHEMA,
            )

    write_batches(subsets, SCHEMA, tables())
    write_table(
        validation,
        pa.table({"fold": list(range(folds)), "example_ids": evaluated}, schema=VALIDATION_SCHEMA),
    )


def _refuse_equal_examples(pool: str, train_tokens: Path) -> None:
    rows = (row for batch in read_batches(train_tokens, ROWS_AT_ONCE, ["input_ids"]) for row in batch[0].to_pylist())
    first, second = next(rows, None), next(rows, None)
    if second is not None and first == second and all(row == first for row in rows):
        raise StudyError(
            f"{pool}: all usable examples of {train_tokens.stem} are the same, so no subset differs from another and "
            "there is nothing to measure. Use another corpus, or name other `columns` of it."
        )


if __name__ == "__main__":
    run_stage(sample_subsets)
