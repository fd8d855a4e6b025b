"""How well rankings find damaged rows: metrics by hand, intervals, and which rankings are compared."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score

from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.experiments.evaluate_detection import detection_metrics, evaluate_detection

ROWS = 400
WITHIN, ACROSS = np.arange(0, 20), np.arange(100, 130)


def metrics(is_bad, counts=None):
    counts = np.ones(len(is_bad)) if counts is None else np.asarray(counts, float)
    return {name: float(value[0]) for name, value in detection_metrics(np.asarray(is_bad, bool), counts[None]).items()}


def test_average_precision_and_recall_of_small_rankings():
    assert metrics([1, 0, 1, 0])["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    ranked = np.isin(np.arange(100), [0, 3, 7, 50])
    found = metrics(ranked)
    assert (found["recall_at_1"], found["recall_at_5"], found["recall_at_10"]) == (0.25, 0.5, 0.75)
    assert found["average_precision"] == pytest.approx(average_precision_score(ranked, -np.arange(100)))


def test_copies_of_a_row_count_in_the_others_precision_alone():
    assert metrics([0, 1, 1], [2, 1, 1])["average_precision"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert metrics([0, 1], [1, 5])["average_precision"] == pytest.approx(1 / 2)
    # The first tenth is one row of a row that was drawn twice.
    assert metrics([1, 1] + [0] * 7, [2, 1] + [1] * 7)["recall_at_10"] == pytest.approx(1 / 3)


def test_resamples_of_a_random_order_are_no_better_than_the_data():
    rng = np.random.default_rng(0)
    is_bad = np.arange(2000) < 60
    order = rng.permutation(2000)
    counts = np.empty((400, 2000))
    for part in (is_bad, ~is_bad):
        counts[:, part] = rng.multinomial(part.sum(), np.full(part.sum(), 1 / part.sum()), size=400)
    drawn = detection_metrics(is_bad[order], counts[:, order])["average_precision"]
    assert np.mean(drawn) == pytest.approx(metrics(is_bad[order])["average_precision"], abs=0.003)


def scores(harm, own=None):
    columns = {"example_id": pa.array(range(ROWS), pa.int32())}
    columns |= {name: pa.array(harm[name], pa.float32()) for name in ("all_tests", "same_label", "nearest_tests")}
    own = np.full(ROWS, None) if own is None else own
    return pa.table({**columns, "self_influence": pa.array(own, pa.float32())})


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection")
    rng = np.random.default_rng(1)
    listed = [*((row, "within_label") for row in WITHIN), *((row, "across_labels") for row in ACROSS)]
    ids, kinds = zip(*listed, strict=True)
    write_table(folder / "damage.parquet", pa.table({"example_id": pa.array(ids, pa.int32()), "damage": list(kinds)}))
    names = ("all_tests", "same_label", "nearest_tests")
    noise = {name: rng.normal(size=ROWS) for name in names}
    finds = {name: values.copy() for name, values in noise.items()}
    finds["same_label"][ACROSS] -= 10
    write_table(folder / "airrep.parquet", scores(finds, 1 + np.arange(ROWS) % 2))
    write_table(folder / "tfidf.parquet", scores({name: rng.normal(size=ROWS) for name in names}))
    # Embeddings of length 1, in half precision.
    write_table(folder / "logra_4.parquet", scores(noise, 1 + 1e-3 * rng.normal(size=ROWS).clip(-1, 1)))
    # The LM can't read two of the rows, one of them damaged.
    losses = rng.normal(size=ROWS)
    losses[WITHIN] += 10
    read = np.setdiff1d(np.arange(ROWS), [WITHIN[0], 399])
    measured = {"example_id": pa.array(read, pa.int32()), "loss": pa.array(losses[read], pa.float32())}
    write_table(folder / "warm_lm/pool.parquet", pa.table(measured))
    write_table(folder / "ekfac_2048.parquet", scores(dict.fromkeys(names, -losses)).take(pa.array(read)))
    evaluate_detection(
        folder / "damage.parquet",
        [folder / f"{name}.parquet" for name in ("airrep", "tfidf", "logra_4", "ekfac_2048")],
        [folder / "warm_lm/pool.parquet"],
        folder / "table.parquet",
        evaluation="heldout",
        bootstrap=200,
        confidence=0.95,
        seed=1,
    )
    return read_table(folder / "table.parquet").to_pylist()


def one(table, method, ranking, damage, metric="average_precision", first_ranking=None):
    key = (method, ranking, damage, metric, first_ranking)
    names = ("method", "ranking", "damage", "metric", "first_ranking")
    (found,) = [row for row in table if tuple(row[name] for name in names) == key]
    return found


def test_each_kind_is_looked_for_among_rows_that_are_whole(table):
    assert one(table, "airrep", "same_label", "across_labels")["value"] == 1.0
    sizes = {row["damage"]: (row["damaged_rows"], row["rows"]) for row in table}
    assert sizes == {"within_label": (20, 370), "across_labels": (30, 380), "any": (50, 400)}
    # The first 38 rows hold all 30; of the first 40 of all rows, 30 of 50.
    assert one(table, "airrep", "same_label", "across_labels", "recall_at_10")["value"] == 1.0
    assert one(table, "airrep", "same_label", "any", "recall_at_5")["value"] == pytest.approx(20 / 50)


def test_a_row_that_an_lm_cannot_read_is_its_last(table):
    # 19 are first; the other one stands at chance with another row at the end.
    for method, ranking in (("warm_lm", "loss"), ("ekfac_2048", "all_tests")):
        found = one(table, method, ranking, "within_label")
        assert found["value"] == pytest.approx((19 + 20 / 369.5) / 20, abs=1e-3)


def test_equal_rows_are_in_random_order(table):
    found = one(table, "airrep", "self_influence", "across_labels")
    assert found["value"] < 0.2


def test_what_scores_texts_or_has_embeddings_of_one_length_has_no_self_influence(table):
    assert {row["method"] for row in table if row["ranking"] == "self_influence"} == {"airrep"}


def test_differences_are_to_the_first_method(table):
    found = one(table, "tfidf", "same_label", "across_labels", "average_precision_over_first", "same_label")
    assert found["value"] == pytest.approx(one(table, "tfidf", "same_label", "across_labels")["value"] - 1)
    assert found["ci_high"] < 0
    compared = {(row["method"], row["ranking"], row["first_ranking"]) for row in table if row["first_ranking"]}
    harm = ("all_tests", "same_label", "nearest_tests")
    assert compared == {
        *((method, ranking, ranking) for method in ("tfidf", "logra_4", "ekfac_2048") for ranking in harm),
        *(("warm_lm", "loss", ranking) for ranking in harm),
        *(("airrep", ranking, "all_tests") for ranking in (*harm[1:], "self_influence")),
    }


def test_values_lie_in_their_intervals(table):
    for row in table:
        assert row["ci_low"] - 1e-9 <= row["value"] <= row["ci_high"] + 1e-9, row
