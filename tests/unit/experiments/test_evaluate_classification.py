"""Labels of the top-ranked example, by hand."""

import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.experiments.evaluate_classification import evaluate_classification


@pytest.fixture
def files(tmp_path):
    write_table(tmp_path / "train.parquet", pa.table({"label": ["a", "b", None, "a"], "hash": list("pqrs")}))
    write_table(tmp_path / "test.parquet", pa.table({"label": ["a", "a", None, "b", "b"], "hash": list("tuvwx")}))
    top = {0: 3, 1: 1, 2: 0, 3: 1, 4: 2}
    rows = [
        {"test_id": test, "sign": sign, "rank": rank, "example_id": example if sign == "helpful" and rank == 1 else 0}
        for sign in ("helpful", "harmful")
        for test, example in top.items()
        for rank in (1, 2)
    ]
    write_table(tmp_path / "scores" / "mine" / "heldout.parquet", pa.Table.from_pylist(rows))
    return tmp_path


def classify(files):
    evaluate_classification(
        [files / "scores" / "mine" / "heldout.parquet"],
        [files / "test.parquet", files / "train.parquet"],
        files / "table.parquet",
        evaluations={"heldout": ["train", "test"]},
        confidence=0.95,
    )
    return read_table(files / "table.parquet").to_pylist()


def test_accuracy_counts_tests_with_a_label(files):
    (row,) = classify(files)
    assert (row["method"], row["evaluation"], row["metric"], row["n_tests"]) == ("mine", "heldout", "accuracy", 4)
    assert row["value"] == 0.5  # 0 and 3 are right; 1 and 4 are not, 2 has no label
    # Wilson: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with n = 4, z = 1.96
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((0.150, 0.850), abs=1e-3)


def test_a_row_that_equals_a_test_is_passed_over(files):
    hashes = [*"tuv", "q", "x"]  # test 3 is row 1, which ranks first for it and for test 1
    write_table(files / "test.parquet", pa.table({"label": ["a", "a", None, "b", "b"], "hash": hashes}))
    (row,) = classify(files)
    assert (row["value"], row["n_tests"]) == (0.5, 4)  # the next, row 0, is right for 1 and wrong for 3; 0 stays right


def test_chosen_tests_without_a_label_are_told(files):
    write_table(files / "test.parquet", pa.table({"label": pa.nulls(5, pa.string()), "hash": list("tuvwx")}))
    with pytest.raises(StudyError, match="none of the chosen tests of heldout has a label"):
        classify(files)
