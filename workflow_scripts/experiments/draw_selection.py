"""Select training data for each task by each method's ranks (paper, section 4.1), at random, and all of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.experiments.runs import ListedRun, write_runs
from workflow_scripts.experiments.selection import FULL, RANDOM, best_ranked, group_by_task
from workflow_scripts.targets.sampling import trainable_ids
from workflow_scripts.targets.tables import read_tests

FIELDS = [("method", pa.string()), ("task", pa.string())]


def draw_selection(
    train: Path,
    test: Path,
    validation: Path,
    train_tokens: Path,
    scores: Sequence[Path],
    runs: Path,
    *,
    seed: int,
    examples: int,
    tasks: int | None,
    full_data: bool,
    seeds: int,
) -> None:
    """Write the runs of the experiment: for each task and method the training examples of best rank.

    An example's rank for a task is its best one for any of the task's tests; ties go to the lower id. Random examples
    are drawn separately for each task; all data is one run for the tests of all tasks (`task` is null). Rows that equal
    one of the tests are never trained on: they would rank first, and the LM would be judged by what it was shown.

    Parameters
    ----------
    train: `corpora/` file of the pool.
    test: `corpora/` file of the tests, whose class labels are the tasks; `check_labels` ensures that there are some.
    validation: file with the ids of the test examples, in one row.
    train_tokens: `tokens/` file of the pool.
    scores: `scores/<method>/<evaluation>.parquet` of each method.
    runs: Parquet file to write, one row per run and seed.
    seed: the study's seed.
    examples: number of examples to select for a task.
    tasks: number of tasks, those with most tests first; None for all.
    full_data: whether there is a run on the whole pool.
    seeds: number of fine-tuning runs per selection.

    Raises
    ------
    StudyError: the pool has fewer than `examples` usable examples that aren't tests, a method ranks fewer for a task,
        or no test has a label.
    """
    test_ids = read_tests(validation)
    tests_of = group_by_task(test, test_ids, tasks)
    pool = trainable_ids(train, train_tokens, test, test_ids)
    if len(pool) < examples:
        raise StudyError(
            f"experiments.selection.examples is {examples:,}, but {train_tokens} has only {len(pool):,} usable "
            "examples that aren't tests. Lower it, or use a larger part of the corpus."
        )
    nothing = pool[:0]
    rows: list[tuple[dict[str, str | None], ListedRun]] = []
    for path in scores:
        table = read_table(path, ["test_id", "sign", "rank", "example_id"])
        table = table.filter(pc.equal(table["sign"], "helpful"))
        columns = [table[name].to_numpy() for name in ("test_id", "rank", "example_id")]
        usable = np.isin(columns[2], pool)
        ranked_for, ranks, example_ids = (column[usable] for column in columns)
        for task, tests in tests_of.items():
            own = np.isin(ranked_for, tests)
            chosen = best_ranked(example_ids[own], ranks[own])[:examples]
            if len(chosen) < examples:
                raise StudyError(
                    f"{path} ranks only {len(chosen):,} usable examples for the task {task!r}, and "
                    f"experiments.selection.examples is {examples:,}. Raise scoring.top."
                )
            rows.append(({"method": path.parent.name, "task": task}, ListedRun(chosen, nothing, tests)))
    for task, tests in tests_of.items():
        chosen = generator(seed, "selection", task).choice(pool, examples, replace=False)
        rows.append(({"method": RANDOM, "task": task}, ListedRun(chosen, nothing, tests)))
    if full_data:
        all_tests = np.concatenate(list(tests_of.values()))
        rows.append(({"method": FULL, "task": None}, ListedRun(pool, nothing, all_tests)))
    write_runs(runs, rows, FIELDS, seeds)


if __name__ == "__main__":
    run_stage(draw_selection)
