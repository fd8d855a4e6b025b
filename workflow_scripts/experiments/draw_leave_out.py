"""Draw the groups of examples that leave-one-out (and leave-k-out) runs do without."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.experiments.base_set import read_base
from workflow_scripts.experiments.runs import ListedRun, write_runs

FIELDS = [("size", pa.int32()), ("group", pa.int32())]


def draw_leave_out(
    base: Path, validation: Path, runs: Path, *, seed: int, sizes: Sequence[int], groups: int, seeds: int
) -> None:
    """Write the runs: `size` 0 is the base set as it is, the others leave a group of so many examples out.

    Groups of one size are disjoint as long as the base set suffices; a group depends on (seed, size, number) alone.
    """
    base_ids = read_base(base)
    tests = read_table(validation)["example_ids"][0].values.to_numpy()
    rows = [({"size": 0, "group": 0}, ListedRun(base_ids, base_ids[:0], tests))]
    for size in sizes:
        for group in range(groups):
            left_out = draw_group(base_ids, size, group, seed)
            rows.append(({"size": size, "group": group}, ListedRun(base_ids, left_out, tests)))
    write_runs(runs, rows, FIELDS, seeds)


def draw_group(base_ids: np.ndarray, size: int, group: int, seed: int) -> np.ndarray:
    """Return the examples of a group, int [size]: a shuffled base set is cut into groups, then another one is."""
    round_, place = divmod(group, len(base_ids) // size)
    shuffled = generator(seed, "leave_out", "groups", size, round_).permutation(base_ids)
    return shuffled[place * size : (place + 1) * size]


if __name__ == "__main__":
    run_stage(draw_leave_out)
