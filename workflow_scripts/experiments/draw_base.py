"""Draw the base set of an experiment that leaves examples out, as subsets of one example each, to be scored."""

from pathlib import Path

import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import write_table
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.targets.sampling import trainable_ids
from workflow_scripts.targets.tables import read_tests

SCHEMA = pa.schema([("fold", pa.int32()), ("subset", pa.int32()), ("example_ids", pa.list_(pa.int32()))])


def draw_base(
    train: Path,
    test: Path,
    validation: Path,
    train_tokens: Path,
    base: Path,
    *,
    seed: int,
    experiment: str,
    base_examples: int,
) -> None:
    """Draw the examples of a base set, distinct and in random order; none of them equals a test.

    Parameters
    ----------
    train: `corpora/` file of the pool.
    test: `corpora/` file of the tests.
    validation: file with the ids of the test examples, in one row.
    train_tokens: `tokens/` file of the pool.
    base: Parquet file to write, one row per example, in the columns of a table of subsets.
    seed: the study's seed.
    experiment: name of the experiment.
    base_examples: number of examples to draw.

    Raises
    ------
    StudyError: the pool has fewer usable examples that aren't tests.
    """
    pool = trainable_ids(train, train_tokens, test, read_tests(validation))
    if len(pool) < base_examples:
        raise StudyError(
            f"experiments.{experiment}.base_examples is {base_examples:,}, but {train_tokens} has only {len(pool):,} "
            "usable examples that aren't tests. Lower it, or use a larger part of the corpus."
        )
    drawn = generator(seed, experiment, "base").choice(pool, base_examples, replace=False)
    columns = {"fold": [0] * base_examples, "subset": range(base_examples), "example_ids": drawn[:, None].tolist()}
    write_table(base, pa.table(columns, schema=SCHEMA))


if __name__ == "__main__":
    run_stage(draw_base)
