"""Influence by label: beside sums over every pair and regressions one by one, and where a label truly helps."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import linregress, spearmanr

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import read_frame
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.evaluation import evaluate_label_influence as stage
from workflow_scripts.evaluation.evaluate_label_influence import evaluate_label_influence
from workflow_scripts.evaluation.label_influence import (
    LabelGroups,
    Resamples,
    agreement,
    agreement_ceiling,
    bootstrap_cells,
    bootstrap_effects,
    measured_effects,
    shares_of_subsets,
    top_shares,
)

ROWS, TESTS, SUBSETS, DIMENSION = 90, 24, 60, 5
TRAIN_LABELS = ["sums"] * 40 + ["rhymes"] * 25 + [None] * 15 + ["maps"] * 10
TEST_LABELS = ["sums"] * 10 + ["rhymes"] * 8 + [None] * 6


def test_groups_are_the_largest_labels_and_rows_without_one_are_a_group():
    groups = LabelGroups.of(pa.array(["b", "a", None, "b", "c", None, None, "a"], pa.string()), most=3)
    assert groups.labels == [None, "a", "b"]
    assert groups.codes.tolist() == [2, 1, 0, 2, 3, 0, 0, 1]
    assert groups.counts.tolist() == [3, 2, 2]
    assert groups.left_out == 1
    assert LabelGroups.of(pa.array([None, None], pa.string()), most=3).labels == [None]


def random_groups(rng, rows, groups):
    return LabelGroups.of(
        pa.array([str(number) for number in rng.integers(groups, size=rows)], pa.string()), most=groups
    )


def test_effects_are_the_slopes_of_a_regression_for_each_pair():
    rng = np.random.default_rng(1)
    rows, tests = random_groups(rng, ROWS, 4), random_groups(rng, TESTS, 3)
    subsets = [rng.choice(ROWS, 20, replace=False) for _ in range(SUBSETS)]
    losses = rng.normal(size=(TESTS, SUBSETS))
    shares = shares_of_subsets(subsets, rows)
    found = measured_effects(shares, losses, tests)
    for g in range(4):
        share = [np.mean(rows.codes[ids] == g) for ids in subsets]
        for h in range(3):
            mean = losses[tests.codes == h].mean(axis=0)
            assert found[g, h] == pytest.approx(linregress(share, -mean).slope)


def test_resampled_effects_are_those_of_the_drawn_tests_and_subsets():
    rng = np.random.default_rng(2)
    rows, tests = random_groups(rng, ROWS, 3), random_groups(rng, TESTS, 2)
    subsets = [rng.choice(ROWS, 20, replace=False) for _ in range(SUBSETS)]
    losses, scores = rng.normal(size=(TESTS, SUBSETS)), rng.normal(size=(3, TESTS))
    shares, resamples = shares_of_subsets(subsets, rows), Resamples.draw(tests, SUBSETS, 7, rng)
    effects = bootstrap_effects(shares, losses, tests, resamples)
    means = bootstrap_cells(scores, tests, resamples)
    for draw in range(7):
        chosen = np.repeat(np.arange(SUBSETS), resamples.subsets[draw].astype(int))
        assert len(chosen) == SUBSETS
        for h, weights in enumerate(resamples.tests):
            own = np.flatnonzero(tests.codes == h)
            drawn = np.repeat(own, np.rint(weights[draw] * len(own)).astype(int))
            assert len(drawn) == len(own)
            mean = losses[np.ix_(drawn, chosen)].mean(axis=0)
            for g in range(3):
                assert effects[draw, g, h] == pytest.approx(linregress(shares[chosen, g], -mean).slope)
                assert means[draw, g, h] == pytest.approx(scores[g, drawn].mean())


def test_a_label_whose_share_never_changes_has_no_effect_measured():
    rows = LabelGroups.of(pa.array(["a", "a", "b", "b"], pa.string()), most=2)
    tests = LabelGroups.of(pa.array(["t"], pa.string()), most=1)
    shares = shares_of_subsets([np.array([0, 2]), np.array([1, 3]), np.array([0, 3])], rows)
    assert np.isnan(measured_effects(shares, np.array([[1.0, 2.0, 3.0]]), tests)).all()


def test_top_shares_count_the_rows_of_each_list():
    codes = np.array([0, 0, 1, 2])  # the last row is of a label that is left out
    listed_tests, listed = np.array([3, 3, 5, 5, 5, 5]), np.array([0, 2, 1, 0, 3, 2])
    found = top_shares(np.array([3, 5]), listed_tests, codes[listed], groups=2)
    assert found.tolist() == [[0.5, 0.5], [0.5, 0.25]]


def test_agreement_is_spearman_s_over_the_cells_that_are_known():
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 3))
    other[:, 1, 2] = np.nan
    for draw, found in enumerate(agreement(one, other)):
        known = np.isfinite(other[draw])
        assert found == pytest.approx(spearmanr(one[draw][known], other[draw][known]).statistic)
    assert np.isnan(agreement(one[:, :1, :2], other[:, :1, :2])).all()


def test_the_ceiling_is_high_where_labels_matter_and_low_where_nothing_does():
    rng = np.random.default_rng(4)
    rows, tests = random_groups(rng, ROWS, 4), random_groups(rng, TESTS, 3)
    shares = shares_of_subsets([rng.choice(ROWS, 20, replace=False) for _ in range(200)], rows)
    effects, noise = rng.normal(size=(4, 3)), rng.normal(size=(TESTS, 200))
    found = {}
    for strength in (0.0, 20.0):
        losses = noise - strength * (shares @ effects)[:, tests.codes].T
        found[strength] = agreement_ceiling(shares, losses, tests, np.random.default_rng(0))
    assert found[20.0] > 0.9 > 0.7 > found[0.0]
    assert np.isnan(agreement_ceiling(shares[:5], losses[:, :5], tests, rng))


@pytest.fixture
def files(tmp_path):
    """A study in which rows of a label help the tests of the same label, and nothing else does."""
    return write_study(tmp_path, TRAIN_LABELS, TEST_LABELS)


def write_study(folder, train_labels, test_labels):
    rng = np.random.default_rng(5)
    names = {name: f"{name} words of {name}" for name in ("sums", "rhymes", "maps")} | {None: "something else"}
    for corpus, labels in (("pool", train_labels), ("asked", test_labels)):
        columns = {
            "example_id": pa.array(range(len(labels)), pa.int64()),
            "prompt": [f"{names.get(label, label)} {row}" for row, label in enumerate(labels)],
            "response": [f"answer {row}" for row in range(len(labels))],
            "label": pa.array(labels, pa.string()),
            "hash": [f"{corpus} {row}" for row in range(len(labels))],
        }
        write_table(folder / "corpora" / f"{corpus}.parquet", pa.table(columns))
        vectors = rng.normal(size=(len(labels), DIMENSION)).astype(np.float32)
        for row, label in enumerate(labels):
            if label in ("sums", "rhymes"):
                vectors[row, ("sums", "rhymes").index(label)] += 4
        write_embeddings(folder / "embeddings" / "trained" / f"{corpus}.parquet", vectors, range(len(labels)))
    # Tests are listed in any order; the last one of the corpus is not asked.
    test_ids = rng.permutation(len(test_labels) - 1)
    validation = folder / "subsets" / "heldout.validation.parquet"
    write_table(validation, pa.table({"fold": [0], "example_ids": pa.array([test_ids.tolist()], pa.list_(pa.int32()))}))
    members = [rng.choice(len(train_labels), 30, replace=False) for _ in range(SUBSETS)]
    write_table(
        folder / "subsets" / "heldout.parquet",
        pa.table(
            {
                "fold": pa.array([0] * SUBSETS, pa.int32()),
                "subset": pa.array(range(SUBSETS), pa.int32()),
                "example_ids": pa.array([ids.tolist() for ids in members], pa.list_(pa.int32())),
            }
        ),
    )
    write_targets(folder / "targets" / "heldout.parquet", members, train_labels, test_labels, test_ids, rng)
    for method in ("airrep", "tfidf", "ekfac"):
        listed = [(int(test), sign, int(row)) for test in test_ids for sign, row in (("helpful", 0), ("harmful", 50))]
        columns = dict(zip(("test_id", "sign", "example_id"), map(list, zip(*listed, strict=True)), strict=True))
        write_table(folder / "scores" / method / "heldout.parquet", pa.table(columns))
    return {
        "corpora": sorted((folder / "corpora").iterdir()),
        "validations": [validation],
        "scores": sorted((folder / "scores").rglob("*.parquet")),
        "embeddings": sorted((folder / "embeddings").rglob("*.parquet")),
        "subsets": [folder / "subsets" / "heldout.parquet"],
        "targets": [folder / "targets" / "heldout.parquet"],
        "influence": folder / "influence.parquet",
        "agreements": folder / "agreements.parquet",
        "evaluations": {"heldout": ["pool", "asked"]},
        "methods": {"airrep": ["trained", "trained"], "tfidf": None, "ekfac": None},
        "texts": ["tfidf"],
        "bootstrap": 200,
        "confidence": 0.95,
        "seed": 0,
        "tile_examples": 16,
    }


def write_embeddings(path, vectors, ids):
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), vectors.shape[1])
    write_table(path, pa.table({"example_id": pa.array(ids, pa.int32()), "embedding": column}))


def write_targets(path, members, train_labels, test_labels, test_ids, rng):
    rows = []
    for subset, ids in enumerate(members):
        for seed in range(2):
            diverged = (subset, seed) == (3, 1)
            for test in test_ids:
                same = np.mean([train_labels[row] == test_labels[test] is not None for row in ids])
                loss = 2 - same + rng.normal(0, 0.05)
                row = {"subset": subset, "seed": seed, "example_id": int(test), "loss": None if diverged else loss}
                rows.append({**row, "status": "diverged" if diverged else "ok"})
    schema = pa.schema(
        [
            ("subset", pa.int32()),
            ("seed", pa.int32()),
            ("example_id", pa.int32()),
            ("loss", pa.float32()),
            ("status", pa.string()),
        ]
    )
    write_table(path, pa.Table.from_pylist(rows, schema))


def influence(files):
    evaluate_label_influence(**files)
    frame = read_frame(files["influence"]).astype({"train_label": object, "test_label": object})
    return frame.replace({"train_label": {np.nan: None}, "test_label": {np.nan: None}})


@pytest.mark.parametrize("equal", [0, 1, 20])
def test_means_are_those_of_every_pair_of_row_and_test_but_for_rows_that_equal_a_test(files, equal):
    pool = read_table(files["corpora"][1])
    hashes = [f"asked {row}" for row in range(equal)] + pool["hash"].to_pylist()[equal:]
    write_table(files["corpora"][1], pool.set_column(pool.column_names.index("hash"), "hash", pa.array(hashes)))
    count = np.array(hashes) == pool["hash"].to_numpy()
    frame = influence(files)
    vectors = {
        name: np.stack(
            read_frame(files["corpora"][0].parents[1] / "embeddings" / "trained" / f"{name}.parquet")[
                "embedding"
            ].to_list()
        )
        for name in ("pool", "asked")
    }
    scores = np.array(vectors["pool"], float) @ np.array(vectors["asked"], float)[:-1].T
    rows = frame[frame["method"] == "airrep"]
    assert len(rows) == 4 * 3
    for row in rows.itertuples():
        own = np.array([label == none(row.train_label) for label in TRAIN_LABELS]) & count
        asked = np.array([label == none(row.test_label) for label in TEST_LABELS[:-1]])
        assert (row.train_rows, row.tests) == (own.sum(), asked.sum())
        assert row.corpus_share == pytest.approx(own.sum() / count.sum())
        assert row.mean_score == pytest.approx(scores[own][:, asked].mean(), rel=1e-5)
        difference = scores[own][:, asked].mean() - scores[count & ~own][:, asked].mean()
        assert row.advantage == pytest.approx(difference, rel=1e-5)
        assert row.advantage_low <= row.advantage <= row.advantage_high
        # The one row that is listed is the first.
        assert row.top_share == (1.0 if row.train_label == "sums" and not equal else 0.0)


def test_a_label_of_which_every_row_equals_a_test_is_none(files):
    pool = read_table(files["corpora"][1])
    # All rows of "maps", the rarest label.
    hashes = [*pool["hash"].to_pylist()[:80], *(f"asked {row}" for row in range(10))]
    write_table(files["corpora"][1], pool.set_column(pool.column_names.index("hash"), "hash", pa.array(hashes)))
    frame = influence(files)
    assert set(frame["train_label"]) == {"sums", "rhymes", None}
    assert frame[frame["method"] == "airrep"]["mean_score"].notna().all()


def test_a_corpus_of_tests_alone_is_not_compared(files):
    pool = read_table(files["corpora"][1])
    hashes = pa.array([f"asked {row % 23}" for row in range(len(pool))])
    write_table(files["corpora"][1], pool.set_column(pool.column_names.index("hash"), "hash", hashes))
    assert not len(influence(files))


def none(label):
    return label if isinstance(label, str) else None


def test_a_label_that_helps_its_own_tests_is_found_and_confirmed(files):
    frame = influence(files)
    for row in frame[frame["method"] == "airrep"].itertuples():
        helps = none(row.train_label) is not None and none(row.train_label) == none(row.test_label)
        assert (row.measured_low > 0) == helps, row
        assert (row.advantage_low > 0) == helps or none(row.train_label) in (None, "maps")
        if helps:
            assert row.measured == pytest.approx(1.0, abs=0.2)
    agreements = read_frame(files["agreements"]).set_index(["method", "prediction"])
    ours = agreements.loc[("airrep", "mean_score")]
    assert ours["ci_low"] <= ours["agreement"] <= ours["ci_high"]
    assert ours["agreement"] > 0.5
    assert ours["ci_low"] > 0
    assert 0.7 < ours["ceiling"] <= 1
    assert (ours["n_cells"], ours["n_subsets"]) == (12, SUBSETS)
    assert set(agreements.index) == {
        ("airrep", "mean_score"),
        ("airrep", "top_share"),
        ("tfidf", "mean_score"),
        ("tfidf", "top_share"),
        ("ekfac", "top_share"),
    }


def test_text_methods_are_scored_and_unstored_ones_have_their_lists_alone(files):
    frame = influence(files).set_index(["method", "train_label", "test_label"])
    assert frame.loc[("tfidf", "sums", "sums"), "advantage"] > 0.1
    assert frame.loc[("tfidf", "sums", "rhymes"), "advantage"] < 0
    unstored = frame.loc["ekfac"]
    assert unstored["mean_score"].isna().all()
    assert unstored["top_share"].notna().all()
    assert unstored["measured"].notna().all()


def test_parts_of_a_corpus_are_read_together(files, tmp_path):
    whole = influence(files)
    (pool,) = (path for path in files["embeddings"] if path.stem == "pool")
    vectors = np.stack(read_frame(pool)["embedding"].to_list())
    parts = [pool.with_name(f"pool.{part}of2.parquet") for part in (1, 2)]
    for part, path in enumerate(parts):
        write_embeddings(path, vectors[part::2].astype(np.float32), range(part, ROWS, 2))
    files["embeddings"] = [path for path in files["embeddings"] if path != pool] + parts
    assert influence(files)["mean_score"].to_numpy() == pytest.approx(whole["mean_score"].to_numpy(), nan_ok=True)


def test_the_smallest_labels_are_left_out_and_count_among_all_other_rows(files, monkeypatch):
    whole = influence(files)
    monkeypatch.setattr(stage, "MOST_TRAIN_LABELS", 2)
    monkeypatch.setattr(stage, "MOST_TEST_LABELS", 1)
    frame = influence(files)
    assert set(frame["train_label"]) == {"sums", "rhymes"}
    assert set(frame["test_label"]) == {"sums"}
    assert set(frame["train_labels_left_out"]) == {2}
    assert set(frame["test_labels_left_out"]) == {2}
    same = whole[whole["train_label"].isin(["sums", "rhymes"]) & (whole["test_label"] == "sums")]
    for name in ("mean_score", "advantage", "top_share", "measured"):
        assert frame[name].to_numpy() == pytest.approx(same[name].to_numpy(), nan_ok=True), name


@pytest.mark.parametrize("train_labels", [[None] * ROWS, ["same"] * ROWS])
def test_without_two_labels_of_training_rows_there_are_tables_without_rows(tmp_path, train_labels, capsys):
    files = write_study(tmp_path, train_labels, TEST_LABELS)
    files["embeddings"] = []  # and no embedding is read
    assert influence(files).empty
    assert read_frame(files["agreements"]).empty
    assert "pool has no two labels" in capsys.readouterr().err


def test_tests_without_labels_are_one_group(tmp_path):
    files = write_study(tmp_path, TRAIN_LABELS, [None] * TESTS)
    frame = influence(files)
    assert len(frame) == 3 * 4
    assert set(frame["tests"]) == {TESTS - 1}


def test_without_fine_tuned_subsets_there_are_predictions_alone(files):
    files |= {"subsets": [], "targets": []}
    frame = influence(files)
    assert frame["measured"].isna().all()
    assert frame["measured_low"].isna().all()
    assert (frame["advantage"].notna() == (frame["method"] != "ekfac")).all()
    assert read_frame(files["agreements"]).empty


def test_losses_of_other_tests_or_subsets_are_refused(files):
    (targets,), (subsets,) = files["targets"], files["subsets"]
    known, drawn = read_table(targets), read_table(subsets)
    write_table(subsets, drawn.slice(1))
    with pytest.raises(StudyError, match=r"heldout.parquet lacks 1 of the evaluation's subsets, e.g. 0"):
        evaluate_label_influence(**files)
    write_table(targets, known.filter(pc.not_equal(known["example_id"], 5)))
    with pytest.raises(StudyError, match=r"heldout.parquet lacks 1 of the evaluation's tests, e.g. 5"):
        evaluate_label_influence(**files)
