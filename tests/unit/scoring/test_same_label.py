"""Means of a row's scores over the tests of its label."""

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import write_table
from workflow_scripts.scoring.same_label import SameLabelTests


def groups_of(folder, rows, tests, test_ids):
    for name, labels in {"train": rows, "test": tests}.items():
        write_table(folder / f"{name}.parquet", pa.table({"label": pa.array(labels, pa.string())}))
    return SameLabelTests.read(folder / "train.parquet", folder / "test.parquet", np.array(test_ids))


def test_a_row_without_a_test_of_its_label_has_no_mean(tmp_path):
    groups = groups_of(tmp_path, ["b", "a", None, "c"], ["c", "a", "b", None, "a"], [4, 2, 1, 3])
    scores = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(groups.means(scores, np.arange(4)), [1, (4 + 6) / 2, np.nan, np.nan])
    np.testing.assert_array_equal(groups.means(scores[1:], slice(1, 4)), [5, np.nan, np.nan])
    np.testing.assert_array_equal(groups.among(scores[:2], slice(0, 2), -1), [[-1, 1, -1, -1], [4, -1, 6, -1]])


def test_tests_without_labels_leave_no_row_a_mean(tmp_path):
    groups = groups_of(tmp_path, ["a", None], [None, None], [0, 1])
    assert np.isnan(groups.means(np.ones((2, 2), np.float32), slice(0, 2))).all()
