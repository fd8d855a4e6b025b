"""Labels are counted, and missed before anything is fine-tuned."""

import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.experiments.check_labels import check_labels


@pytest.fixture
def files(tmp_path):
    write_table(tmp_path / "train.parquet", pa.table({"label": ["a", "b", None, "a"]}))
    write_table(tmp_path / "test.parquet", pa.table({"label": ["a", None]}))
    return tmp_path


def check(files, classified=("heldout",)):
    check_labels(
        [files / "test.parquet", files / "train.parquet"],
        files / "labels.parquet",
        evaluations={"heldout": ["train", "test"]},
        classified=classified,
    )
    rows = read_table(files / "labels.parquet").to_pylist()
    return {(row["evaluation"], row["role"], row["label"]): row["examples"] for row in rows}


def test_labels_of_training_examples_and_tests_are_counted(files):
    assert check(files) == {
        ("heldout", "train", "a"): 2,
        ("heldout", "train", "b"): 1,
        ("heldout", "train", None): 1,
        ("heldout", "test", "a"): 1,
        ("heldout", "test", None): 1,
    }


@pytest.mark.parametrize(("label", "words"), [("a", "have the label 'a'"), (None, "have no label")])
def test_training_labels_that_are_all_alike_are_told(files, label, words):
    write_table(files / "train.parquet", pa.table({"label": pa.array([label] * 4, pa.string())}))
    with pytest.raises(StudyError, match=f"all examples of the corpus train {words}"):
        check(files)
    assert check(files, classified=[])["heldout", "train", label] == 4


def test_tests_without_labels_are_told(files):
    write_table(files / "test.parquet", pa.table({"label": pa.nulls(2, pa.string())}))
    with pytest.raises(StudyError, match=r"no test of heldout has a label.*corpora\.test\.columns"):
        check(files)
