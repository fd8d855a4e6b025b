"""The LDS stage: from targets and group scores to the tables that are reported."""

import json

import numpy as np
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.core.timing import Seconds, record_of
from workflow_scripts.evaluation.blends import Blend, write_blend
from workflow_scripts.evaluation.evaluate_lds import evaluate_lds
from workflow_scripts.evaluation.lds import linear_datamodeling_score
from workflow_scripts.scoring.chosen_pooling import write_chosen_pooling
from workflow_scripts.scoring.group_scores import ChosenPooling

TEST_IDS, SUBSETS, SEEDS = np.array([11, 4, 7, 30, 2]), np.arange(12), 2


@pytest.fixture
def effect():
    return np.random.default_rng(0).standard_normal((len(TEST_IDS), len(SUBSETS)))


def _long(values, *names):
    """Return the columns of an array indexed by test, subset and perhaps seed."""
    axes = (TEST_IDS, SUBSETS, np.arange(SEEDS))[: values.ndim]
    grid = np.meshgrid(*axes, indexing="ij")
    return {name: pa.array(axis.ravel(), pa.int32()) for name, axis in zip(names, grid, strict=True)}


def _write_targets(path, losses, diverged=()):
    columns = _long(losses, "example_id", "subset", "seed")
    status = np.full(losses.shape, "ok", object)
    losses = losses.astype(np.float32)
    for subset, seed in diverged:
        status[:, subset, seed] = "diverged"
        losses[:, subset, seed] = np.nan
    loss = pa.array(losses.ravel(), from_pandas=True)
    write_table(path, pa.table({**columns, "loss": loss, "status": status.ravel().tolist()}))


def _write_scores(folder, method, scores_by_pooling, evaluation="mini"):
    tables = []
    for pooling, scores in scores_by_pooling.items():
        columns = _long(scores, "test_id", "subset")
        score = pa.array(scores.astype(np.float32).ravel())
        tables.append(pa.table({**columns, "pooling": [pooling] * scores.size, "score": score}))
    groups, scores = (folder / kind / method / f"{evaluation}.parquet" for kind in ("groups", "scores"))
    # The order of rows means nothing.
    table = pa.concat_tables(tables)
    write_table(groups, table.take(pa.array(np.random.default_rng(1).permutation(table.num_rows))))
    times = {"scoring": Seconds(1.5, 3.0), "embedding": Seconds(2.0, 2.5), "start_up": Seconds(7.0, 8.0)}
    metadata = {key: text for name, seconds in times.items() for key, text in seconds.texts(name).items()}
    write_table(scores, pa.table({"test_id": [1]}), bytes_per_example="768.0", **metadata)
    return groups, scores


def _run(folder, written, **changes):
    groups, scores = zip(*written, strict=True)
    paths = {"lds": folder / "lds.parquet", "differences": folder / "differences.parquet"}
    methods = {path.parent.name for path in groups} | {path.stem for path in changes.get("blends", ())}
    values = {
        "bootstrap": 100,
        "confidence": 0.95,
        "seed": 0,
        "benchmarks": str(folder / "benchmarks"),
        "warmup": {method: [] for method in methods},
        "fitting": {method: [] for method in methods},
        **changes,
    }
    targets = values.pop("targets", [folder / "mini.parquet"])
    evaluate_lds(list(groups), list(scores), targets, **paths, **values)
    return [read_table(path).to_pylist() for path in paths.values()]


def _noisy_losses(effect, noise=0.3):
    shape = (*effect.shape, SEEDS)
    return 2 - effect[:, :, None] + noise * np.random.default_rng(3).standard_normal(shape)


def test_the_chosen_pooling_is_named(effect, tmp_path, capsys):
    _write_targets(tmp_path / "mini.parquet", _noisy_losses(effect))
    written = [
        _write_scores(tmp_path, "airrep", {"attention": effect}),
        _write_scores(tmp_path, "tfidf", {"mean": effect**3, "chosen": effect**5}),
        _write_scores(tmp_path, "bm25", {"chosen": effect}),
    ]
    choices = {"tfidf": ChosenPooling("attention", 12.3456), "bm25": ChosenPooling("mean")}
    (tmp_path / "poolings").mkdir()
    paths = [tmp_path / "poolings" / f"{method}.parquet" for method in choices]
    for path, choice in zip(paths, choices.values(), strict=True):
        write_chosen_pooling(path, [choice], [0.5], 0)
    rows, _ = _run(tmp_path, written, poolings=paths)
    assert {(row["method"], row["pooling"]): row["chosen"] for row in rows} == {
        ("airrep", "attention"): None,
        ("tfidf", "mean"): None,
        ("tfidf", "chosen"): "attention, scale 12.3",
        ("bm25", "chosen"): "mean",
    }
    assert "chosen on held-back folds: " in capsys.readouterr().err


def test_rows_of_the_tables(effect, tmp_path, capsys):
    losses = _noisy_losses(effect)
    _write_targets(tmp_path / "mini.parquet", losses)
    weak = effect + np.random.default_rng(5).standard_normal(effect.shape)
    written = [
        _write_scores(tmp_path, "untrained", {"attention": weak, "mean": -effect}),
        _write_scores(tmp_path, "airrep", {"attention": effect}),
    ]
    rows, differences = _run(tmp_path, written)

    assert [(row["method"], row["pooling"]) for row in rows] == [
        ("airrep", "attention"),
        ("untrained", "attention"),
        ("untrained", "mean"),
    ]
    best = rows[0]
    expected = linear_datamodeling_score(effect.astype(np.float32), losses.astype(np.float32).mean(axis=2))
    assert best["lds"] == pytest.approx(expected, abs=1e-9)
    assert best["ci_low"] <= best["lds"] <= best["ci_high"]
    assert (best["n_tests"], best["n_subsets"]) == (5, 12)
    assert (best["seconds"], best["cpu_seconds"], best["bytes_per_example"]) == (3.5, 5.5, 768)
    assert 0 < best["seed_agreement"] < best["ceiling"] <= 1
    assert rows[2]["lds"] == pytest.approx(-best["lds"])

    assert [(row["method_a"], row["method_b"], row["pooling_b"]) for row in differences] == [
        ("airrep", "untrained", "attention"),
        ("airrep", "untrained", "mean"),
    ]
    assert differences[1]["difference"] == pytest.approx(2 * best["lds"])
    assert all(row["ci_low"] <= row["difference"] <= row["ci_high"] for row in differences)
    shown = capsys.readouterr().err
    assert "LDS on mini: 5 tests, 12 subsets, 2 runs of each" in shown
    assert shown.index("airrep ") < shown.index("untrained ")


def test_the_mean_over_several_sets_is_written_and_shown(effect, tmp_path, capsys):
    names = ["mini", "other", "third"]
    written = []
    for place, name in enumerate(names):
        losses = _noisy_losses(effect, noise=0.3 * (place + 1))
        # On the last set the LDS is undefined.
        _write_targets(tmp_path / f"{name}.parquet", losses if name != "third" else np.ones_like(losses))
        for method, scores in {"tfidf": effect**3 - effect, "airrep": effect}.items():
            written.append(_write_scores(tmp_path, method, {"mean": scores}, name))
    targets = [tmp_path / f"{name}.parquet" for name in names]
    rows, _ = _run(tmp_path, written, targets=targets, average=tmp_path / "average.parquet", averaged=names)
    found = read_table(tmp_path / "average.parquet").to_pylist()
    of_row = {(row["evaluation"], row["method"]): row["lds"] for row in rows}
    for row in found:
        assert row["evaluations"] == ["mini", "other"]
        assert row["lds"] == pytest.approx(np.mean([of_row[name, row["method"]] for name in row["evaluations"]]))
        assert row["ci_low"] < row["lds"] < row["ci_high"]
    assert [row["method"] for row in found] == ["airrep", "tfidf"]
    assert [row["lead"] for row in found] == [None, pytest.approx(found[0]["lds"] - found[1]["lds"])]
    assert "Average LDS over mini, other" in capsys.readouterr().err


def _job(folder, name, work):
    """Write the benchmark file of a job, and its record if `work` is given."""
    path = folder / "benchmarks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("s\tcpu_time\n100\t100\n")
    if work:
        entries = {**Seconds(90, 80).entries("start_up"), **work.entries("work")}
        record_of(path).write_text(json.dumps(entries))


def test_the_parts_of_a_methods_cost_stand_apart_and_add_up(effect, tmp_path, capsys):
    _write_targets(tmp_path / "mini.parquet", _noisy_losses(effect))
    _job(tmp_path, "warmup_lm/study.tsv", Seconds(5, 6))
    for block in ("a", "b"):
        _job(tmp_path, f"finetune_shard/train/{block}.tsv", Seconds(10, 11))
    _job(tmp_path, "fit_method/old.tsv", None)
    fitting = {"airrep": ["finetune_shard/train/*.tsv"], "old": ["fit_method/old.tsv"], "gone": ["fit_method/gone.tsv"]}
    fitting |= {"taken": None, "tfidf": []}
    warmup = {method: ["warmup_lm/*.tsv"] if method == "old" else [] for method in fitting}
    written = [_write_scores(tmp_path, method, {"mean": effect}) for method in fitting]
    rows, _ = _run(tmp_path, written, fitting=fitting, warmup=warmup)
    for row in rows:
        for kind in ("seconds", "cpu_seconds"):
            assert row[kind] == row[f"embedding_{kind}"] + row[f"scoring_{kind}"]
        assert (row["start_up_seconds"], row["start_up_cpu_seconds"]) == (7, 8)
    once = {row["method"]: (row["fitting_seconds"], row["fitting_cpu_seconds"], row["warmup_seconds"]) for row in rows}
    assert once == {
        "airrep": (20, 22, 0),
        "old": (None, None, 5),  # its job left no record: the start-up in its benchmark's seconds isn't known
        "gone": (None, None, 0),
        "taken": (None, None, 0),
        "tfidf": (0, 0, 0),
    }
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 100
    (old,) = [line for line in lines if line.startswith("  old ")]
    assert old.split()[-5:] == ["2.00", "1.50", "3.50", "-", "5.00"]


def test_the_same_seed_gives_the_same_intervals(effect, tmp_path):
    _write_targets(tmp_path / "mini.parquet", _noisy_losses(effect))
    written = [_write_scores(tmp_path, "airrep", {"attention": effect})]
    first, again, other = (_run(tmp_path, written, seed=seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first[0]["ci_low"] != other[0]["ci_low"]


def test_diverged_runs_dont_count(effect, tmp_path, capsys):
    losses = _noisy_losses(effect)
    _write_targets(tmp_path / "mini.parquet", losses, diverged=[(3, 0), (5, 0), (5, 1)])
    rows, _ = _run(tmp_path, [_write_scores(tmp_path, "airrep", {"attention": effect})])
    mean = losses.astype(np.float32).mean(axis=2)
    mean[:, 3] = losses[:, 3, 1]
    kept = SUBSETS != 5
    expected = linear_datamodeling_score(effect[:, kept].astype(np.float32), mean[:, kept])
    assert rows[0]["lds"] == pytest.approx(expected, abs=1e-9)
    assert rows[0]["n_subsets"] == 11
    assert "left out: 3 runs that diverged" in capsys.readouterr().err


def test_a_test_whose_loss_never_changes_is_left_out_and_said(effect, tmp_path, capsys):
    losses = _noisy_losses(effect)
    losses[2] = 1
    _write_targets(tmp_path / "mini.parquet", losses)
    rows, _ = _run(tmp_path, [_write_scores(tmp_path, "airrep", {"attention": effect})])
    assert rows[0]["n_tests"] == 4
    assert "left out: 1 tests" in capsys.readouterr().err


def test_missing_scores_and_losses_are_refused(effect, tmp_path):
    targets = tmp_path / "mini.parquet"
    _write_targets(targets, _noisy_losses(effect))
    groups, scores = _write_scores(tmp_path, "airrep", {"attention": effect})
    write_table(groups, read_table(groups).slice(1))
    with pytest.raises(StudyError, match=r"mini\.parquet: 1 of the 60 pairs"):
        _run(tmp_path, [(groups, scores)])
    write_table(targets, read_table(targets).slice(1))
    with pytest.raises(StudyError, match="lacks the losses of some tests"):
        _run(tmp_path, [(groups, scores)])


def test_all_runs_diverged(effect, tmp_path):
    everything = [(subset, seed) for subset in SUBSETS for seed in range(SEEDS)]
    _write_targets(tmp_path / "mini.parquet", _noisy_losses(effect), everything)
    with pytest.raises(StudyError, match="every fine-tuning run diverged"):
        _run(tmp_path, [_write_scores(tmp_path, "airrep", {"attention": effect})])


def test_a_blend_is_a_row_that_costs_what_its_methods_cost_and_is_compared_with_all_others(tmp_path, effect):
    random = np.random.default_rng(8)
    _write_targets(tmp_path / "mini.parquet", _noisy_losses(effect, noise=0.01))
    noise = random.standard_normal(effect.shape)
    # Each method errs where the other one doesn't, and one of them in a unit of its own for each test.
    units = 10.0 ** np.arange(len(TEST_IDS))[:, None]
    written = [
        _write_scores(tmp_path, "airrep", {"mean": random.standard_normal(effect.shape), "attention": effect + noise}),
        _write_scores(tmp_path, "ekfac", {"mean": units * (effect - noise)}),
    ]
    blend = tmp_path / "airrep+ekfac.parquet"
    write_blend(blend, [Blend(("airrep", "ekfac"), ("attention", "mean"), 0.5)], [0.9], 0)
    rows, differences = _run(tmp_path, written, blends=[blend])
    by_name = {(row["method"], row["pooling"]): row for row in rows}
    ours = by_name["airrep+ekfac", "chosen"]
    assert rows[0] == ours
    assert ours["lds"] > 0.9 > by_name["airrep", "attention"]["lds"]
    assert ours["chosen"] == "0.50 airrep (attention) + 0.50 ekfac (mean)"
    assert (ours["seconds"], ours["bytes_per_example"]) == (7.0, 1536.0)
    leads = {
        (row["method_a"], row["pooling_a"], row["method_b"], row["pooling_b"]): row["difference"] for row in differences
    }
    for method, pooling in (("airrep", "attention"), ("ekfac", "mean")):
        expected = ours["lds"] - by_name[method, pooling]["lds"]
        assert leads["airrep+ekfac", "chosen", method, pooling] == pytest.approx(expected)
    assert len(leads) == len(differences) == 3 + 3


@pytest.mark.parametrize(("main", "leading"), [("ekfac", "ekfac"), ("airrep", "tfidf")])
def test_every_row_is_compared_with_the_main_method_or_else_with_the_first(tmp_path, effect, main, leading):
    random = np.random.default_rng(8)
    _write_targets(tmp_path / "mini.parquet", _noisy_losses(effect))
    names = ("tfidf", "ekfac", "bm25")
    written = [_write_scores(tmp_path, name, {"mean": random.standard_normal(effect.shape)}) for name in names]
    _, differences = _run(tmp_path, written, main=main)
    assert {row["method_a"] for row in differences} == {leading}
    assert {row["method_b"] for row in differences} == set(names) - {leading}
