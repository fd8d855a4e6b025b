"""Leave-out correlations against effects and scores made by hand."""

import numpy as np
import pyarrow as pa
import pytest
from base_set_scores import TESTS, effect, write_scores

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.evaluation.blends import Blend, write_blend
from workflow_scripts.experiments.base_set import read_base, read_base_scores
from workflow_scripts.experiments.draw_base import draw_base
from workflow_scripts.experiments.draw_leave_out import draw_groups, draw_leave_out
from workflow_scripts.experiments.evaluate_leave_out import evaluate_leave_out
from workflow_scripts.experiments.runs import MEASURED_SCHEMA
from workflow_scripts.targets.sampling import usable_ids

JUDGING = {"evaluation": "heldout", "bootstrap": 50, "confidence": 0.95, "seed": 1, "max_diverged_share": 0.1}


@pytest.fixture
def files(tiny, tmp_path):
    """A base set of 12 examples, the tests, and the runs without one or two of it."""
    schema = pa.schema([("fold", pa.int32()), ("example_ids", pa.list_(pa.int32()))])
    write_table(tmp_path / "validation.parquet", pa.table({"fold": [0], "example_ids": [TESTS]}, schema=schema))
    corpora = [tiny.corpus, tiny.corpus, tmp_path / "validation.parquet", tiny.tokens]
    draw_base(*corpora, tmp_path / "base.parquet", seed=1, experiment="leave_out", base_examples=12)
    draw_leave_out(
        tmp_path / "base.parquet",
        tmp_path / "validation.parquet",
        tmp_path / "runs.parquet",
        seed=1,
        sizes=[1, 2],
        groups=6,
        seeds=2,
    )
    return tmp_path


def write_measured(path, runs, effect_of):
    """Losses: 1 for the whole base set (2 in the second run), and what `effect_of` adds for each example left out."""
    rows = [
        {
            "run": row["run"],
            "seed": row["seed"],
            "test_id": test,
            "loss": 1.0 + row["seed"] + sum(effect_of(test, example) for example in row["left_out"]),
            "status": "ok",
        }
        for row in read_table(runs).to_pylist()
        for test in TESTS
    ]
    write_table(path, pa.Table.from_pylist(rows, schema=MEASURED_SCHEMA))


def evaluated(files, blends=(), **methods):
    base = read_base(files / "base.parquet")
    groups = []
    for method, score in methods.items():
        path = files / "groups" / method / "heldout.parquet"
        write_scores(path, base, [[score(test, example) for example in base.tolist()] for test in TESTS])
        groups.append(path)
    write_measured(files / "measured.parquet", files / "runs.parquet", effect)
    evaluate_leave_out(
        files / "base.parquet",
        files / "runs.parquet",
        [files / "measured.parquet"],
        groups,
        files / "loo.parquet",
        blends,
        **JUDGING,
    )
    return {(row["method"], row["metric"]): row for row in read_table(files / "loo.parquet").to_pylist()}


def test_groups_are_disjoint_while_the_base_set_suffices():
    base = np.arange(100, 110)
    groups = [group.tolist() for group in draw_groups(base, 3, 6, 1)]
    assert len({*groups[0], *groups[1], *groups[2]}) == len({*groups[3], *groups[4], *groups[5]}) == 9
    assert groups[:3] != groups[3:]
    assert draw_groups(base, 3, 5, 1)[4].tolist() == groups[4] != draw_groups(base, 3, 5, 2)[4].tolist()


def test_no_group_is_drawn_twice():
    """All pairs of eight examples, of which the first rounds repeat some."""
    assert len({frozenset(group.tolist()) for group in draw_groups(np.arange(8), 2, 28, 1)}) == 28


def test_the_runs_are_the_base_set_and_it_without_each_group(files):
    rows = read_table(files / "runs.parquet").to_pylist()
    base = read_base(files / "base.parquet").tolist()
    assert len(rows) == 2 * (1 + 6 + 6)
    assert all(row["example_ids"] == base and row["test_ids"] == TESTS for row in rows)
    assert [(row["size"], len(row["left_out"])) for row in rows[:13]] == [(0, 0)] + [(1, 1)] * 6 + [(2, 2)] * 6
    assert [row["run"] for row in rows[:13]] == [row["run"] for row in rows[13:]]
    assert len({row["run"] for row in rows}) == 13


def test_scores_that_are_the_effects_correlate_fully_and_their_negative_inversely(files):
    rows = evaluated(files, right=effect, wrong=lambda test, example: -effect(test, example), flat=lambda *_: 1.0)
    for metric in ("leave_1_out", "leave_2_out"):
        assert rows["right", metric]["value"] == pytest.approx(1)
        assert rows["wrong", metric]["value"] == pytest.approx(-1)
        assert rows["flat", metric]["value"] == 0
        assert rows["right", metric]["seed_agreement"] == pytest.approx(1)
        assert rows["right", metric]["ceiling"] == pytest.approx(1)
        assert rows["wrong", metric]["ci_low"] <= -1 + 1e-9


@pytest.mark.parametrize(("weight", "sign"), [(0.75, 1), (0.25, -1)])
def test_a_blend_is_the_weighted_sum_of_standardised_scores(files, weight, sign):
    blend = files / "blends" / "right+wrong.parquet"
    write_blend(blend, [Blend(["right", "wrong"], ["mean", "mean"], weight)], [0.5], 0)
    # The unit of a method's scores, and a test's own, don't matter.
    rows = evaluated(files, [blend], right=effect, wrong=lambda test, example: test - 1000 * effect(test, example))
    for metric in ("leave_1_out", "leave_2_out"):
        assert rows["right+wrong", metric]["value"] == pytest.approx(sign)


def test_a_value_is_the_mean_over_tests_of_spearmans_correlation(files):
    from scipy.stats import spearmanr

    rows = evaluated(files, some=lambda test, example: (example * 7) % 11)
    groups = [row["left_out"] for row in read_table(files / "runs.parquet").to_pylist()[7:13]]
    by_hand = [
        spearmanr(
            [sum((e * 7) % 11 for e in group) for group in groups],
            [sum(effect(test, e) for e in group) for group in groups],
        )[0]
        for test in TESTS
    ]
    assert rows["some", "leave_2_out"]["value"] == pytest.approx(np.mean(by_hand))


def test_scores_of_another_base_set_are_refused(files):
    base = read_base(files / "base.parquet")
    write_scores(files / "groups.parquet", base[:-1], np.zeros((2, 11)))
    with pytest.raises(StudyError, match="another base set"):
        read_base_scores(files / "groups.parquet", base)


def test_a_base_set_has_no_test(files, tiny):
    usable = usable_ids(tiny.tokens)
    everything = len(np.setdiff1d(usable, TESTS))
    inputs = [tiny.corpus, tiny.corpus, files / "validation.parquet", tiny.tokens, files / "all.parquet"]
    draw_base(*inputs, seed=1, experiment="leave_out", base_examples=everything)
    assert len(np.intersect1d(usable, TESTS)) == len(usable) - everything > 0
    assert sorted(read_base(files / "all.parquet")) == sorted(np.setdiff1d(usable, TESTS))


def test_a_base_set_larger_than_the_pool_is_told(files, tiny):
    inputs = [tiny.corpus, tiny.corpus, files / "validation.parquet", tiny.tokens, files / "all.parquet"]
    with pytest.raises(StudyError, match=r"leave_out.base_examples is 1,000, but .* has only \d+ usable"):
        draw_base(*inputs, seed=1, experiment="leave_out", base_examples=1000)
