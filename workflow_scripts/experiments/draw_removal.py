"""Choose the examples that the removal curve leaves out: each test's most helpful ones by each method, or random."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.experiments.base_set import read_base, read_base_scores
from workflow_scripts.experiments.removal import RANDOM, WHOLE, most_helpful
from workflow_scripts.experiments.runs import ListedRun, write_runs
from workflow_scripts.targets.tables import read_tests

FIELDS = [("method", pa.string()), ("size", pa.int32()), ("test_id", pa.int32()), ("draw", pa.int32())]


def draw_removal(
    base: Path,
    validation: Path,
    groups: Sequence[Path],
    runs: Path,
    *,
    seed: int,
    sizes: Sequence[int],
    tests: int,
    random_draws: int,
    seeds: int,
) -> None:
    """Write the runs of the experiment: the base set without the examples that a method ranks first for a test.

    Runs with random removals, and the run on the whole base set, are measured on all tests at once; their `test_id` is
    null.

    Parameters
    ----------
    base: file that `draw_base` wrote.
    validation: file with the ids of the test examples, in one row.
    groups: each method's scores of the base set, `.../<method>/<evaluation>.parquet`.
    runs: Parquet file to write, one row per run and seed.
    seed: the study's seed.
    sizes: numbers of examples to remove.
    tests: number of tests, the first ones of `validation`.
    random_draws: number of random removals of each size.
    seeds: number of fine-tuning runs per removal.

    Raises
    ------
    StudyError: scores were made for another base set.
    """
    base_ids = read_base(base)
    chosen = read_tests(validation)[:tests]
    rows = [({"method": WHOLE, "size": 0, "test_id": None, "draw": 0}, ListedRun(base_ids, base_ids[:0], chosen))]
    for size in sizes:
        for draw in range(random_draws):
            left_out = generator(seed, "removal", size, draw).choice(base_ids, size, replace=False)
            purpose = {"method": RANDOM, "size": size, "test_id": None, "draw": draw}
            rows.append((purpose, ListedRun(base_ids, left_out, chosen)))
    for path in groups:
        scores = read_base_scores(path, base_ids)
        for test_id in chosen.tolist():
            ranked = most_helpful(base_ids, scores.loc[test_id].to_numpy())
            for size in sizes:
                purpose = {"method": path.parent.name, "size": size, "test_id": test_id, "draw": 0}
                rows.append((purpose, ListedRun(base_ids, ranked[:size], np.array([test_id], np.int32))))
    write_runs(runs, rows, FIELDS, seeds)


if __name__ == "__main__":
    run_stage(draw_removal)
