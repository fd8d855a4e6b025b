"""The mean LDS over evaluation sets."""

import numpy as np
import pandas as pd
import pytest

from workflow_scripts.evaluation.average import AVERAGE_SCHEMA, EvaluatedSet, average_rows, average_table

ROWS = [("airrep", "attention"), ("tfidf", "mean"), ("tfidf", "chosen")]
MAIN = "airrep"


def evaluated(lds, rows=ROWS, seed=0, spread=0.01):
    frame = pd.DataFrame(rows, columns=["method", "pooling"]).assign(lds=lds, chosen=None)
    noise = np.random.default_rng(seed).normal(0, spread, (len(rows), 1000))
    return EvaluatedSet(frame, frame["lds"].to_numpy()[:, None] + noise)


def test_the_mean_is_over_sets_whatever_the_order_of_their_rows():
    turned = evaluated([0.1, 0.2, 0.5], ROWS[::-1], seed=1)
    found = average_rows({"a": evaluated([0.7, 0.4, 0.3]), "b": turned}, MAIN, 0.95).set_index(["method", "pooling"])
    assert found.index.tolist() == ROWS
    np.testing.assert_allclose(found["lds"], [0.6, 0.3, 0.2])
    np.testing.assert_allclose(found["lead"], [np.nan, 0.3, 0.4])
    assert {*AVERAGE_SCHEMA.names} == {*found.columns, "method", "pooling"}
    assert found["evaluations"].tolist() == [["a", "b"]] * 3


def test_intervals_are_those_of_the_mean_of_independent_draws():
    sets = {name: evaluated([0.5, 0.5, 0.2], seed=seed) for seed, name in enumerate("abcd")}
    found = average_rows(sets, MAIN, 0.95)
    # The mean of four has half of their spread; a difference of two rows has its root of two.
    np.testing.assert_allclose(found["ci_high"] - found["ci_low"], 2 * 1.96 * 0.005, rtol=0.15)
    leads = found.dropna(subset="lead")
    np.testing.assert_allclose(leads["lead_ci_high"] - leads["lead_ci_low"], 2 * 1.96 * 0.005 * 2**0.5, rtol=0.15)
    assert (leads["lead_ci_low"] < leads["lead"]).all()
    assert (leads["lead"] < leads["lead_ci_high"]).all()


def test_paired_draws_cancel():
    one = evaluated([0.5, 0.4, 0.2], spread=0)
    common = np.random.default_rng(5).normal(0, 0.1, 1000)
    sets = {name: EvaluatedSet(one.rows, one.draws + common) for name in "ab"}
    found = average_rows(sets, MAIN, 0.95).dropna(subset="lead")
    np.testing.assert_allclose(found["lead_ci_low"], found["lead"], atol=1e-12)
    np.testing.assert_allclose(found["lead_ci_high"], found["lead"], atol=1e-12)


@pytest.mark.parametrize("sets", [{}, {"a": evaluated([0.7, 0.4, 0.3])}])
def test_one_set_has_no_mean(sets):
    assert average_rows(sets, MAIN, 0.95).empty
    assert list(average_table(average_rows(sets, MAIN, 0.95), pd.DataFrame())) == []


def test_the_table_has_the_mean_first_and_each_set_beside_it():
    sets = {"flan": evaluated([0.7, 0.4, 0.3]), "alpaca_unseen": evaluated([0.5, 0.2, 0.1], seed=1)}
    lds = pd.concat(one.rows.assign(evaluation=name) for name, one in sets.items())
    title, head, best, second, _ = average_table(average_rows(sets, MAIN, 0.95), lds)
    assert title == "Average LDS over flan, alpaca_unseen"
    assert head.split() == ["method", "pooling", "mean", "interval", "lead", "flan", "alpaca_unseen"]
    assert best.split()[:3] == ["airrep", "attention", "0.600"]
    assert best.split()[-2:] == ["0.700", "0.500"]
    assert "+0.300 [+0.2" in second
