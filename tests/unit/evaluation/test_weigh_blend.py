"""A blend has the weight with the highest LDS on held-back folds, whatever the units of its methods are."""

import numpy as np
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.evaluation.blends import Blend, read_blend
from workflow_scripts.evaluation.weigh_blend import WEIGHTS, weigh_blend

FOLDS, SUBSETS, TESTS = 4, 40, 8


class Files:
    """Measured labels that are a sum of two effects, and what two methods predict, each in a unit of its own a test.

    Of the folds that aren't held back, the two that come first, the labels say the opposite.
    """

    def __init__(self, folder, share, noise=0.0, order=None):
        random = np.random.default_rng(3)
        self.folder = folder
        first, second = random.standard_normal((2, FOLDS, SUBSETS, TESTS))
        sign = np.array([-1, -1, 1, 1])[:, None, None]
        labels = sign * (share * first + (1 - share) * second) + noise * random.standard_normal(first.shape)
        units = random.uniform(0.01, 100, (2, 1, 1, TESTS))
        tests = np.arange(TESTS) * 3
        numbers = {"fold": np.repeat(np.arange(FOLDS), SUBSETS), "subset": np.tile(np.arange(SUBSETS), FOLDS)}
        ids = pa.array([[1, 2]] * (FOLDS * SUBSETS), pa.list_(pa.int32()))
        write_table(
            folder / "subsets.parquet",
            pa.table({name: pa.array(column, pa.int32()) for name, column in numbers.items()} | {"example_ids": ids}),
        )
        self._write("targets", labels, tests, range(FOLDS))
        columns = np.arange(TESTS) if order is None else order
        for name, scores in zip(("a", "b"), units * (first, second), strict=True):
            self._write(name, scores[2:][..., columns], tests[columns], (2, 3))

    def _write(self, name, labels, tests, folds):
        grid = np.meshgrid(np.array(folds), np.arange(SUBSETS), [0], tests, indexing="ij")
        columns = zip(("fold", "subset", "seed", "example_id"), grid, strict=True)
        table = {column: pa.array(values.ravel(), pa.int32()) for column, values in columns}
        values = labels.ravel().astype(np.float32)
        # Labels of predictions are rounded.
        table |= {"loss": pa.array(-values), "label": pa.array(values.astype(np.float16 if len(folds) == 2 else float))}
        write_table(self.folder / f"{name}.parquet", pa.table(table))

    def weigh(self, folds=2):
        subsets, targets, a, b, written = (
            self.folder / f"{name}.parquet" for name in ("subsets", "targets", "a", "b", "blend")
        )
        weigh_blend(subsets, targets, [a, b], written, blend="x+y", poolings=["mean", "chosen"], folds=folds)
        return written


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_weight_is_found_in_any_unit(tmp_path, share):
    found = read_blend(Files(tmp_path, share).weigh())
    assert found.weight == pytest.approx(share, abs=0.051)
    assert (found.methods, found.poolings) == (["x", "y"], ["mean", "chosen"])


def test_the_usual_spread_of_each_method_is_kept_and_makes_scores_of_examples_comparable(tmp_path):
    files = Files(tmp_path, 0.25)
    found = read_blend(files.weigh())
    for name, scale in zip("ab", found.scales, strict=True):
        scores = -read_table(tmp_path / f"{name}.parquet")["loss"].to_numpy().reshape(2, SUBSETS, TESTS)
        assert scale == pytest.approx(np.sqrt(scores.var(axis=1).mean()), rel=1e-5)
    assert found.factors == pytest.approx((found.weight / found.scales[0], (1 - found.weight) / found.scales[1]))
    assert Blend(["x", "y"], ["mean", "mean"], 0.5, (0.0, 2.0)).factors == (0.0, 0.25)


def test_every_weight_is_told_with_its_lds_and_one_is_chosen(tmp_path):
    rows = read_table(Files(tmp_path, 0.5, noise=0.5).weigh()).to_pylist()
    assert [row["weight"] for row in rows] == list(WEIGHTS)
    (chosen,) = (row for row in rows if row["chosen"])
    assert chosen["lds"] == max(row["lds"] for row in rows) > max(rows[0]["lds"], rows[-1]["lds"])


def test_tests_are_matched_by_their_ids(tmp_path):
    straight = read_table(Files(tmp_path, 0.25).weigh())
    turned = read_table(Files(tmp_path, 0.25, order=np.arange(TESTS)[::-1]).weigh())
    assert straight["lds"].to_pylist() == pytest.approx(turned["lds"].to_pylist())


def test_both_weigh_the_same_where_no_lds_is_defined(tmp_path):
    files = Files(tmp_path, 0.0)
    table = read_table(tmp_path / "targets.parquet")
    place = table.column_names.index("label")
    write_table(tmp_path / "targets.parquet", table.set_column(place, "label", pa.array(np.zeros(len(table)))))
    assert read_blend(files.weigh()).weight == 0.5


def test_scores_that_a_label_cannot_tell_apart_are_told_apart(tmp_path):
    files = Files(tmp_path, 1.0)
    table = read_table(tmp_path / "a.parquet").to_pandas()
    order = table["loss"].rank()
    table["label"] = np.float16(1)
    table["loss"] = 5 + 1e-4 * order.astype(np.float32)
    schema = read_table(tmp_path / "a.parquet").schema.remove_metadata()
    write_table(tmp_path / "a.parquet", pa.Table.from_pandas(table, schema, preserve_index=False))
    assert read_blend(files.weigh()).weight == 1.0


def test_a_test_without_a_score_is_an_error(tmp_path):
    files = Files(tmp_path, 0.25, order=np.arange(TESTS - 1))
    with pytest.raises(StudyError, match="1 of the 8 evaluated examples of a held-back fold have no score"):
        files.weigh()


def test_a_file_without_a_choice_is_an_error(tmp_path):
    written = Files(tmp_path, 0.5).weigh()
    table = read_table(written)
    place = table.column_names.index("chosen")
    write_table(written, table.set_column(place, "chosen", pa.array([False] * len(table))))
    with pytest.raises(StudyError, match="0 weights are marked as chosen instead of one"):
        read_blend(written)


def test_a_method_whose_scores_of_a_test_are_all_equal_adds_nothing_there():
    random = np.random.default_rng(1)
    scores = random.standard_normal((5, 2))
    blended = Blend(("x", "y"), ("mean", "mean"), 0.5).scores(scores, np.ones((5, 2)))
    assert np.isfinite(blended).all()
    np.testing.assert_allclose(np.corrcoef(blended[:, 0], scores[:, 0])[0, 1], 1)
