"""Draw the groups of examples that are left out of leave-one-out (and leave-k-out) runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.experiments.base_set import read_base
from workflow_scripts.experiments.runs import ListedRun, write_runs
from workflow_scripts.targets.tables import read_tests

FIELDS = [("size", pa.int32()), ("group", pa.int32())]


def draw_leave_out(
    base: Path, validation: Path, runs: Path, *, seed: int, sizes: Sequence[int], groups: int, seeds: int
) -> None:
    """Write the runs of the experiment: one on the whole base set, and one without each group.

    Groups of one size are disjoint as long as the base set suffices; a group depends on (seed, size, number) alone.

    Parameters
    ----------
    base: file that `draw_base` wrote.
    validation: file with the ids of the test examples, in one row.
    runs: Parquet file to write, one row per run and seed; `size` is the number of examples left out, 0 for none.
    seed: the study's seed.
    sizes: sizes of the groups.
    groups: number of groups of each size.
    seeds: number of fine-tuning runs per group.
    """
    base_ids = read_base(base)
    tests = read_tests(validation)
    rows = [({"size": 0, "group": 0}, ListedRun(base_ids, base_ids[:0], tests))]
    for size in sizes:
        for group, left_out in enumerate(draw_groups(base_ids, size, groups, seed)):
            rows.append(({"size": size, "group": group}, ListedRun(base_ids, left_out, tests)))
    write_runs(runs, rows, FIELDS, seeds)


def draw_groups(base_ids: np.ndarray, size: int, groups: int, seed: int) -> list[np.ndarray]:
    """Return the ids of each group's examples, int32 [size]; no two groups are the same.

    A shuffled base set is cut into groups; for more groups, it is shuffled again. More groups change none of the first.

    Parameters
    ----------
    base_ids: int32 [examples], ids of the base set.
    size: number of examples in a group.
    groups: how many to draw; there must be so many.
    seed: the study's seed.
    """
    drawn: dict[frozenset[int], np.ndarray] = {}
    round_ = 0
    while len(drawn) < groups:
        shuffled = generator(seed, "leave_out", "groups", size, round_).permutation(base_ids)
        for first in range(0, len(base_ids) - size + 1, size):
            group = shuffled[first : first + size]
            drawn.setdefault(frozenset(group.tolist()), group)
        round_ += 1
    return list(drawn.values())[:groups]


if __name__ == "__main__":
    run_stage(draw_leave_out)
