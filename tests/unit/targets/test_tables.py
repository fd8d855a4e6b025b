"""Labels reach the subsets and examples that they are of, or nobody."""

import numpy as np
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.targets.collect_targets import SCHEMA
from workflow_scripts.targets.sample_subsets import SCHEMA as SUBSETS_SCHEMA
from workflow_scripts.targets.tables import read_folds

FOLDS, SUBSETS, SEEDS, EXAMPLES = 2, 3, 2, 4


@pytest.fixture
def files(tmp_path):
    """Subsets and targets whose labels say whose they are: 100 * subset + 10 * seed + place of the example."""
    subset, seed, place = (
        values.reshape(-1) for values in np.mgrid[: FOLDS * SUBSETS, :SEEDS, :EXAMPLES].astype(np.int32)
    )
    columns = {
        "fold": subset // SUBSETS,
        "subset": subset,
        "seed": seed,
        "example_id": 50 * (subset // SUBSETS) + place,
        "loss": np.zeros(len(subset), np.float32),
        "delta": np.zeros(len(subset), np.float16),
        "label": (100 * subset + 10 * seed + place).astype(np.float16),
        "status": ["ok"] * len(subset),
    }
    numbers = range(FOLDS * SUBSETS)
    members = [[2 * number, 2 * number + 1] for number in numbers]
    drawn = {"fold": [number // SUBSETS for number in numbers], "subset": list(numbers), "example_ids": members}
    write_table(tmp_path / "targets.parquet", pa.table(columns, schema=SCHEMA))
    write_table(tmp_path / "subsets.parquet", pa.table(drawn, schema=SUBSETS_SCHEMA))
    return tmp_path / "subsets.parquet", tmp_path / "targets.parquet"


def test_each_label_is_that_of_its_subset_and_example(files):
    folds = read_folds(*files)
    assert len(folds) == FOLDS
    for number, fold in enumerate(folds):
        assert fold.tests.tolist() == [50 * number + place for place in range(EXAMPLES)]
        subsets = np.arange(SUBSETS) + number * SUBSETS
        assert (fold.labels == 100 * subsets[:, None] + np.arange(EXAMPLES)).all()
        assert (fold.members == 2 * subsets[:, None] + np.arange(2)).all()


def swapped(rows: int, first: int, second: int) -> np.ndarray:
    order = np.arange(rows)
    order[[first, second]] = order[[second, first]]
    return order


@pytest.mark.parametrize("which", ["subsets", "examples", "seeds", "runs"])
def test_rows_of_other_subsets_or_examples_are_refused(files, which):
    subsets, targets = files
    path = subsets if which == "subsets" else targets
    table = read_table(path)
    rows = len(table)
    orders = {
        "subsets": lambda: swapped(rows, 0, 1),
        "examples": lambda: swapped(rows, EXAMPLES * SEEDS, EXAMPLES * SEEDS + 1),
        "seeds": lambda: swapped(rows, 0, EXAMPLES),
        "runs": lambda: np.arange(rows - EXAMPLES),
    }
    write_table(path, table.take(orders[which]()))
    with pytest.raises(StudyError, match=r"targets\.parquet: its rows of fold .*subsets\.parquet"):
        read_folds(subsets, targets)
