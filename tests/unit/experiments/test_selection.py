"""Which examples the selection takes, and for which tasks."""

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import write_table
from workflow_scripts.experiments.selection import best_ranked, group_by_task


def test_an_example_has_the_best_rank_that_it_reaches():
    assert best_ranked(np.array([5, 3, 3, 9, 5]), np.array([2, 3, 1, 1, 4])).tolist() == [3, 9, 5]


def test_tasks_are_labels_with_most_tests_first(tmp_path):
    labels = ["a", "b", None, "a", "b", "b", "c"]
    write_table(tmp_path / "test.parquet", pa.table({"example_id": range(7), "label": labels}))
    tests = group_by_task(tmp_path / "test.parquet", np.arange(7), 2)
    assert {task: ids.tolist() for task, ids in tests.items()} == {"b": [1, 4, 5], "a": [0, 3]}
    assert list(tests) == ["b", "a"]
