"""The pooling with the highest LDS on held-back folds is chosen, in whatever unit a method's scores are."""

import numpy as np
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.evaluation.choose_pooling import choose_pooling
from workflow_scripts.scoring.chosen_pooling import read_chosen_pooling
from workflow_scripts.scoring.group_scores import GroupScores, Membership

EXAMPLES, TESTS, DIMENSION, FOLDS, SUBSETS, SIZE = 80, 10, 6, 4, 12, 15


def _attention(scores, scale):
    weights = np.exp(scale * np.abs(scores))
    return (weights * scores).sum(axis=0) / weights.sum(axis=0)


class Study:
    """Embeddings of a corpus, and targets that are a pooling of their inner products."""

    def __init__(self, folder, pool, unit=1.0, parts=1):
        random = np.random.default_rng(4)
        self.folder, self.unit = folder, unit
        self.embeddings = random.standard_normal((EXAMPLES, DIMENSION)).astype(np.float32)
        ids = pa.list_(pa.int32())
        self.subsets = [random.choice(EXAMPLES, SIZE, replace=False) for _ in range(FOLDS * SUBSETS)]
        numbers = {
            "fold": pa.array(np.repeat(np.arange(FOLDS), SUBSETS), pa.int32()),
            "subset": pa.array(np.tile(np.arange(SUBSETS), FOLDS), pa.int32()),
        }
        write_table(folder / "subsets.parquet", pa.table({**numbers, "example_ids": pa.array(self.subsets, ids)}))
        self.tests = [np.sort(random.choice(EXAMPLES, TESTS, replace=False)) for _ in range(FOLDS)]
        rows = []
        for number, subset in enumerate(self.subsets):
            fold = number // SUBSETS
            scores = self.embeddings[subset] @ self.embeddings[self.tests[fold]].T
            # The folds that aren't held back say the opposite.
            labels = pool(scores) * (1 if fold >= FOLDS - 2 else -1)
            rows += [
                {"fold": fold, "subset": number % SUBSETS, "seed": 0, "example_id": test, "label": label}
                for test, label in zip(self.tests[fold], labels, strict=True)
            ]
        types = [("fold", pa.int32()), ("subset", pa.int32()), ("seed", pa.int32()), ("example_id", pa.int32())]
        write_table(
            folder / "targets.parquet", pa.Table.from_pylist(rows, pa.schema([*types, ("label", pa.float32())]))
        )
        self.train = [
            self._write(f"train{part}", rows) for part, rows in enumerate(np.split(np.arange(EXAMPLES), parts))
        ]
        self.test = [self._write("test", np.arange(EXAMPLES))]

    def _write(self, name, rows):
        values = self.embeddings[rows] * (self.unit if name != "test" else 1)
        columns = {"example_id": pa.array(rows, pa.int32()), "hash": ["0" * 16] * len(rows)}
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), DIMENSION)
        costs = ("seconds", "cpu_seconds", "start_up_seconds", "start_up_cpu_seconds")
        write_table(self.folder / f"{name}.parquet", pa.table(columns), **dict.fromkeys(costs, "1"))
        return self.folder / f"{name}.parquet"

    def choose(self, folds=2):
        paths = [self.folder / f"{name}.parquet" for name in ("corpus", "subsets", "targets")]
        written = self.folder / "pooling.parquet"
        values = {"method": "made_up", "folds": folds, "seed": 1, "tile_examples": 32}
        choose_pooling(*paths, self.train, self.test, written, **values)
        return written


def test_the_mean_is_chosen_where_effects_add_up(tmp_path):
    written = Study(tmp_path, lambda scores: scores.mean(axis=0)).choose()
    assert read_chosen_pooling(written).pooling == "mean"
    rows = read_table(written).to_pylist()
    assert rows[0] == {"pooling": "mean", "scale": None, "lds": pytest.approx(1.0), "chosen": True}
    assert all(row["lds"] < 1 for row in rows[1:])


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("parts", [1, 4])
def test_the_scale_is_found_in_any_unit(tmp_path, unit, parts):
    # The spread of the scores is about the square root of the dimension.
    study = Study(tmp_path, lambda scores: _attention(scores, 2.0), unit, parts)
    chosen = read_chosen_pooling(study.choose())
    assert chosen.pooling == "attention"
    assert chosen.scale * unit == pytest.approx(2.0, rel=0.25)


def test_what_is_chosen_is_what_scoring_computes(tmp_path):
    study = Study(tmp_path, lambda scores: _attention(scores, 2.0))
    written = study.choose()
    chosen = read_chosen_pooling(written)
    lds = {row["scale"]: row["lds"] for row in read_table(written).to_pylist()}
    correlations = []
    for fold in (2, 3):
        groups = GroupScores(
            TESTS, Membership(study.subsets[fold * SUBSETS : (fold + 1) * SUBSETS]), ["chosen"], chosen
        )
        groups.update(np.arange(EXAMPLES), study.embeddings @ study.embeddings[study.tests[fold]].T)
        labels = read_table(tmp_path / "targets.parquet").to_pandas().query(f"fold == {fold}")["label"]
        both = (groups.result("chosen"), labels.to_numpy().reshape(SUBSETS, TESTS))
        ranks = [np.argsort(np.argsort(values, axis=0), axis=0) for values in both]
        correlations += [np.corrcoef(ranks[0][:, test], ranks[1][:, test])[0, 1] for test in range(TESTS)]
    assert lds[chosen.scale] == pytest.approx(np.mean(correlations), abs=1e-6)


def test_other_folds_have_no_say(tmp_path):
    study = Study(tmp_path, lambda scores: scores.mean(axis=0))
    assert read_table(study.choose(folds=2))["lds"][0].as_py() == pytest.approx(1.0)
    assert read_table(study.choose(folds=4))["lds"][0].as_py() == pytest.approx(0.0)


def test_scores_that_are_all_equal_are_pooled_by_the_mean(tmp_path):
    study = Study(tmp_path, lambda scores: scores.mean(axis=0), unit=0.0)
    assert read_chosen_pooling(study.choose()).pooling == "mean"


def test_members_without_a_score_are_an_error(tmp_path):
    study = Study(tmp_path, lambda scores: scores.mean(axis=0), parts=4)
    del study.train[1]
    with pytest.raises(StudyError, match="members of a held-back fold have no score"):
        study.choose()


def test_a_file_without_a_choice_is_an_error(tmp_path):
    written = Study(tmp_path, lambda scores: scores.mean(axis=0)).choose()
    table = read_table(written)
    write_table(written, table.set_column(3, "chosen", pa.array([False] * len(table))))
    with pytest.raises(StudyError, match="0 poolings are marked as chosen instead of one"):
        read_chosen_pooling(written)


def test_folds_with_too_few_finished_subsets_have_no_say(tmp_path):
    study = Study(tmp_path, lambda scores: scores.mean(axis=0))
    table = read_table(tmp_path / "targets.parquet").to_pandas()
    # Of the first fold that is held back, two subsets finished.
    table.loc[(table["fold"] == FOLDS - 2) & (table["subset"] >= 2), "label"] = np.nan
    schema = read_table(tmp_path / "targets.parquet").schema.remove_metadata()
    write_table(tmp_path / "targets.parquet", pa.Table.from_pandas(table, schema, preserve_index=False))
    assert read_table(study.choose())["lds"][0].as_py() == pytest.approx(1.0)
