"""Every experiment at smoke size, end to end; and what a study without experiments doesn't run."""

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).parents[1] / "configs" / "experiments.yaml"
VALUES = "value double, ci_low double, ci_high double"
CONTRACT = {
    "loo": f"method string, evaluation string, metric string, {VALUES}, ceiling double, seed_agreement double",
    "removal": f"method string, evaluation string, metric string, removed int32, {VALUES}",
    "selection": f"method string, evaluation string, metric string, {VALUES}",
    "classification": f"method string, evaluation string, metric string, {VALUES}, n_tests int32",
    "amortisation": "method string, evaluation string, rival string, fixed_seconds double, seconds_per_example double, "
    "rival_fixed_seconds double, rival_seconds_per_example double, crossover_examples double, "
    "jobs_with_start_up int32",
    "transfer": "method string, pooling string, home string, evaluation string, lds_home double, lds double, "
    "ci_low double, ci_high double, ceiling double, retained double, advice string",
    "curated_data": f"method string, evaluation string, metric string, examples int32, {VALUES}",
    "detection": f"method string, evaluation string, metric string, ranking string, damage string, {VALUES}, "
    "first_ranking string, damaged_rows int32, rows int32",
}
METHODS = {"airrep", "airrep_mean@mean", "tfidf"}


@pytest.fixture(scope="module")
def done(unrun, tmp_path_factory):
    workspace = unrun.copy(tmp_path_factory.mktemp("experiments") / "workflow")
    ended = workspace.snakemake("--configfile", str(CONFIG))
    assert ended.returncode == 0, ended.stdout
    return workspace


def table(workspace, name):
    return pq.read_table(workspace.folder / "results" / "experiments" / "evaluation" / f"{name}.parquet")


@pytest.mark.parametrize("name", CONTRACT)
def test_tables_have_the_columns_of_the_contract(done, name):
    found = table(done, name)
    assert ", ".join(f"{field.name} {field.type}" for field in found.schema) == CONTRACT[name]
    assert found.num_rows


def test_labels_are_counted_before_anything_is_fine_tuned(done):
    found = table(done, "labels")
    columns = "evaluation string, role string, label string, examples int64"
    assert ", ".join(f"{field.name} {field.type}" for field in found.schema) == columns
    assert set(found["evaluation"].to_pylist()) == {"heldout", "away"}
    labels = done.folder / "results" / "experiments" / "evaluation" / "labels.parquet"
    first_run = done.folder / "results" / "experiments" / "targets" / "train.parquet"
    assert labels.stat().st_mtime < first_run.stat().st_mtime


def test_every_method_is_in_every_table(done):
    methods = {name: set(table(done, name)["method"].to_pylist()) for name in CONTRACT}
    assert methods["loo"] == methods["classification"] == methods["transfer"] == METHODS | {"airrep+tfidf"}
    assert methods["removal"] == METHODS | {"random_removal"}
    assert methods["selection"] == {"airrep", "tfidf", "random_selection", "full_data"}
    assert methods["curated_data"] == {"helpful", "ranked", "random_selection"}
    assert methods["detection"] == METHODS | {"base_lm", "warm_lm"}
    assert set(table(done, "amortisation")["rival"].to_pylist()) == {"tfidf"}


def test_values_lie_in_their_intervals(done):
    for name in ("loo", "removal", "selection", "classification", "curated_data", "detection"):
        for row in table(done, name).to_pylist():
            assert row["ci_low"] - 1e-9 <= row["value"] <= row["ci_high"] + 1e-9, row


def test_selected_rows_have_the_columns_of_their_source(done):
    folder = done.folder / "results" / "experiments" / "curation"
    chosen = pq.read_table(folder / "helpful" / "chosen.parquet")
    added = "curation_rank int32, curation_score float, curation_test_file string, curation_test_row int64"
    columns = ", ".join(f"{field.name} {field.type}" for field in chosen.schema)
    assert columns == f"prompt string, response string, label string, {added}"
    assert sorted(chosen["curation_rank"].to_pylist()) == list(range(1, 9))
    listed = [json.loads(line) for line in (folder / "harmful" / "review.jsonl").read_text().splitlines()]
    assert [row["curation_rank"] for row in listed] == [1, 2, 3, 4, 5, 6]
    assert {"prompt", "response", "label", "curation_reason", "curation_hash"} <= listed[0].keys()
    for name, size in {"helpful": 8, "ranked": 8, "harmful": 6}.items():
        page = (folder / name / "summary.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {name}: {size} of 120 rows")


def test_suspects_are_listed_on_request_with_the_loss_of_the_warmed_up_lm(done):
    ended = done.snakemake("suspects", "--configfile", str(CONFIG))
    assert ended.returncode == 0, ended.stdout
    folder = done.folder / "results" / "experiments" / "curation" / "harmful"
    found = pq.read_table(folder / "suspects.parquet").to_pylist()
    assert [row["rank"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert all(row["prompt"] and row["response"] and row["loss"] > 0 for row in found)
    assert found[0]["reasons"][0].startswith("mean score ")
    assert (folder / "suspects.md").read_text(encoding="utf-8").startswith("# harmful: 6 suspicious rows of pool\n")
    assert (done.folder / "results" / "experiments" / "losses" / "warm_lm" / "pool.parquet").exists()


def test_the_pool_itself_is_not_damaged(done):
    corpora = done.folder / "results" / "experiments" / "corpora"
    damage = pq.read_table(corpora.parent / "experiments" / "detection" / "damage.parquet").to_pylist()
    before, after = (pq.read_table(corpora / f"{name}.parquet").to_pylist() for name in ("pool", "@damaged"))
    changed = {row["example_id"] for row, other in zip(before, after, strict=True) if row != other}
    assert changed == {row["example_id"] for row in damage}
    assert Counter(row["damage"] for row in damage) == {"within_label": 12, "across_labels": 12, "trigger": 12}


def test_the_report_shows_them(done):
    page = (done.folder / "results" / "experiments" / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r"<h3>([^<]+)</h3>", page)
    wanted = ["Leave one out", "Removal curve", "Data selection", "Data classification", "Amortisation", "Transfer"]
    wanted += ["Curated data", "Detection"]
    assert [title for title in titles if title in wanted] == wanted


def test_a_second_run_has_nothing_to_do(done):
    assert not done.planned(CONFIG)


def test_a_study_without_experiments_runs_nothing_of_them(unrun):
    planned = unrun.planned(unrun.folder / "configs" / "smoke.yaml")
    assert not planned & Counter({"draw_base": 1, "score_base": 1, "finetune_runs": 1, "evaluate_leave_out": 1})
