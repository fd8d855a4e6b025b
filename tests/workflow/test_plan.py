"""A plan from nothing but the config: the pilot end to end, here and where neither LM nor corpora can be had."""

import json
from collections import Counter

import pytest

from workflow_scripts.study.costs import Pilot


def planned(workspace, run, config, monkeypatch):
    """Plan a study without a network; return plan and pilot, as written."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = workspace.snakemake("plan", "--configfile", config)
    assert done.returncode == 0, done.stdout
    results = workspace.folder / "results" / run
    plan, pilot = (json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in ("plan", "pilot"))
    return done.stdout, plan, Pilot.from_json(pilot["found"])


@pytest.mark.slow
def test_a_plan_of_a_finished_study_is_measured_and_runs_nothing_again(finished, tmp_path, monkeypatch):
    workspace = finished.copy(tmp_path / "copy")
    said, plan, pilot = planned(workspace, "smoke", "configs/smoke.yaml", monkeypatch)
    assert all(stage["measured"] for stage in plan["stages"])
    assert plan["assumptions"] == []
    assert all(seconds >= 0 for seconds in pilot.seconds.values())
    assert pilot.corpora["train"].rows == 400
    assert pilot.corpora["train"].lm_tokens > 5
    # What was planned is what ran: the same stages, and as many jobs.
    benchmarks = workspace.results / "benchmarks"
    ran = Counter(path.relative_to(benchmarks).parts[0] for path in benchmarks.rglob("*.tsv"))
    assert ran == {stage["stage"]: stage["jobs"] for stage in plan["stages"]}
    # They stand side by side on the screen.
    line = next(line for line in said.splitlines() if line.startswith("  finetune_shard"))
    assert line.endswith("x)")
    assert not workspace.planned()


@pytest.mark.slow
def test_the_papers_study_is_planned_on_assumptions(fresh, monkeypatch):
    said, plan, pilot = planned(fresh, "paper_flan", "configs/paper_flan.yaml", monkeypatch)
    assumed = {stage["stage"] for stage in plan["stages"] if not stage["measured"]}
    assert assumed == {"finetune_shard", "train_encoder", "embed_corpus"}
    assert {stage["processor"] for stage in plan["stages"] if stage["stage"] in assumed} == {"GPU"}
    # The paper took 57.6 A100-seconds for a subset, with 10,000 evaluated examples instead of 1,000.
    assert 30 < plan["total"]["gpu_hours"] < 300
    assert "So GPU hours are those of an A100" in said
    assert pilot.lm_parameters == 5e8
    assert not (fresh.folder / "results" / "paper_flan" / "language_model").exists()


def test_a_plan_prepares_the_local_corpora_and_nothing_else(fresh):
    done = fresh.snakemake("plan", "--dry-run", "--configfile", "configs/smoke.yaml")
    rules = {line.split()[0] for line in done.stdout.split("Job stats:")[1].split("total")[0].splitlines()[3:] if line}
    assert rules == {"prepare_corpus", "run_pilot", "write_plan", "plan"}
