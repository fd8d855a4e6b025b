"""The status of a study from made-up files: runs, jobs that failed or fell silent, and the time left."""

import json
import os

import pyarrow as pa
import pytest
import yaml

from workflow_scripts.core.parquet import spec_hash, write_table
from workflow_scripts.plan.show_status import status_text, unfinished_jobs
from workflow_scripts.study.artifacts import artifacts
from workflow_scripts.study.config import load_study
from workflow_scripts.study.document_config import ROOT
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.specs import StageSpecs
from workflow_scripts.targets.finetune_shard import SCHEMA

NOW = 1_000_000.0


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The smoke study (4 folds x 6 subsets in two jobs; 8 subsets x 2 seeds) in a folder without results."""
    monkeypatch.chdir(tmp_path)
    return StudyPlan(load_study(yaml.safe_load((ROOT / "configs/smoke.yaml").read_text(encoding="utf-8"))))


def losses(path, runs, measured, diverged=0, written=NOW, **metadata):
    """Write the losses of `runs` runs, the first of them diverged."""
    status = ["diverged" if run < diverged else "ok" for run in range(runs) for _ in range(measured)]
    columns = {name: [0] * len(status) for name in SCHEMA.names} | {"status": status}
    columns["example_id"] = list(range(measured)) * runs
    write_table(path, pa.table(columns, schema=SCHEMA), **metadata)
    os.utime(path, (written, written))


def log(plan, job, words, age=0.0, benchmark_age=None):
    """Write the log of a job, and its benchmark file if it ended well."""
    place = job if "/" in job else f"{job}/study"
    for path, text, years in (
        (plan.results / "logs" / f"{job}.log", words, age),
        (plan.results / "benchmarks" / f"{place}.tsv", "s\n1.0\n", benchmark_age),
    ):
        if years is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, (NOW - years, NOW - years))


def words(text):
    return " ".join(text.split())


def test_nothing_has_run(plan):
    text = status_text(plan, NOW)
    assert "train 0 of 24 0 of 240 0 0 ?" in words(text)
    assert "Jobs failed: 0" in text
    assert "Time left: unknown without a plan (make plan)" in text


def test_a_study_that_trains_and_judges_nothing_waits_for_neither(plan):
    study = yaml.safe_load((ROOT / "configs/score_only.yaml").read_text(encoding="utf-8"))
    shown = words(status_text(StudyPlan(load_study(study)), NOW)).split("Jobs")[0]
    assert shown == "Study score_only: results/score_only encoder not yet report not yet "
    assert "targets not yet encoder not yet LDS not yet report not yet" in words(status_text(plan, NOW))


def test_runs_of_finished_and_unfinished_jobs_are_counted(plan):
    targets = plan.results / "targets"
    losses(targets / "train" / "f0000_s0000.parquet", 12, 10, diverged=1)
    for run in range(3):
        losses(targets / "train" / ".f0001_s0000.key.runs" / f"2_{run}_0.parquet", 1, 10, written=NOW - 100 + 20 * run)
    losses(targets / "heldout" / "f0000_s0000.parquet", 16, 20)
    # A run of earlier settings, which was killed.
    losses(targets / "heldout" / ".f0000_s0000.earlier.runs" / "0_0_0.parquet", 1, 20)
    shown = words(status_text(plan, NOW))
    # 2 runs in 40 s, so the other 9 take 180 s.
    assert "train 15 of 24 150 of 240 1 1 0:03:00" in shown
    assert "heldout 16 of 16 320 of 320 0 0 done" in shown


def test_what_was_made_with_other_values_is_not_done(plan):
    targets = plan.results / "targets"
    losses(targets / "train" / "f0000_s0000.parquet", 24, 10, spec="0123456789abcdef")
    for key, runs, written in (("other", 9, NOW - 5_000), ("this", 2, NOW - 20)):
        for run in range(runs):
            losses(targets / "train" / f".f0000_s0000.{key}.runs" / f"0_{run}_0.parquet", 1, 10, written=written)
    losses(targets / "train.parquet", 24, 10, spec="0123456789abcdef")
    (plan.results / "report.html").write_text("of earlier values")
    (plan.results / ".report.html.made_with").write_text('{"stage": "write_report", "spec": "0123456789abcdef"}')
    shown = words(status_text(plan, NOW))
    assert "train 2 of 24 20 of 240" in shown
    assert "targets of other values: results/smoke/targets/train.parquet encoder not yet" in shown
    assert "report of other values: results/smoke/report.html" in shown
    assert "Time left: unknown" in shown


def test_all_is_done_once_every_result_is_there(plan):
    found = list(artifacts(StageSpecs(plan)))
    for one in found:
        if one.path.suffix == ".parquet":
            losses(one.path, 1, 10, spec=spec_hash(one.spec))
        elif one.path.suffix:
            one.path.parent.mkdir(parents=True, exist_ok=True)
            one.path.write_text("")
        else:
            one.path.mkdir(parents=True)
    config = plan.results / "config.resolved.yaml"
    (spec,) = (spec_hash(one.spec) for one in found if one.path == config)
    stamp = json.dumps({"stage": "resolve_config", "spec": spec})
    config.with_name(".config.resolved.yaml.made_with").write_text(stamp)
    assert "Time left: none, all is done" in status_text(plan, NOW)
    config.unlink()
    assert "Time left: unknown" in status_text(plan, NOW)
    config.write_text("")
    (plan.results / "evaluation/lds.parquet").write_text("damaged")
    assert "Time left: unknown" in status_text(plan, NOW)


def test_jobs_that_did_not_end_well_are_named_with_their_last_words(plan):
    log(plan, "prepare_corpus/train", "fine\n", age=50, benchmark_age=49)
    log(plan, "prepare_corpus/pool", "reading\n\nerror in prepare_corpus: pool.jsonl has no rows\n")
    log(plan, "train_encoder", 'Traceback (most recent call last):\n  File "x.py"\nRuntimeError: out of memory\n')
    log(plan, "finetune_shard/train/f0000_s0000", "1 of 12 runs, 0:10:00 left\n", age=5)
    # It ended well once, and was started again since.
    log(plan, "finetune_shard/train/f0001_s0000", "2 of 12 runs\n", age=5_000, benchmark_age=9_000)
    log(plan, "score_pairs/tfidf/heldout", "error in score_pairs: no room\n")
    log(plan, "run_pilot", "not a job of the study\n")
    log(plan, "score_pairs/ekfac/heldout", "error in score_pairs: a method that was removed\n")
    log(plan, "finetune_shard/train/f0002_s0000", "error in finetune_shard: a job of another size\n")
    jobs = {job.job: (job.state, job.said) for job in unfinished_jobs(plan, NOW)}
    assert jobs == {
        "prepare_corpus/pool": ("failed", "error in prepare_corpus: pool.jsonl has no rows"),
        "train_encoder": ("failed", "RuntimeError: out of memory"),
        "score_pairs/tfidf/heldout": ("failed", "error in score_pairs: no room"),
        "finetune_shard/train/f0000_s0000": ("at work", "1 of 12 runs, 0:10:00 left"),
        "finetune_shard/train/f0001_s0000": ("stopped", "2 of 12 runs"),
    }
    text = status_text(plan, NOW)
    assert "\n  score_pairs/tfidf/heldout: error in score_pairs: no room\n" in text
    assert "Jobs failed: 3\n" in text
    assert "\n  prepare_corpus/pool: error in prepare_corpus: pool.jsonl has no rows\n" in text
    assert "Jobs stopped: 1" in text


def test_time_left_is_the_plans_for_what_is_not_done(plan):
    stages = [
        {"stage": "prepare_corpus", "jobs": 4, "wall_seconds": 40.0},
        {"stage": "finetune_shard", "jobs": 3, "wall_seconds": 400.0},
        {"stage": "train_encoder", "jobs": 1, "wall_seconds": 100.0},
    ]
    plan.results.mkdir(parents=True)
    specs = StageSpecs(plan)
    values = {"study": spec_hash(specs.spec("write_plan", {})["study"]), "stages": stages}
    (plan.results / "plan.json").write_text(json.dumps(values))
    assert "Time left by the plan: 9 min 0 s" in status_text(plan, NOW)
    for one in artifacts(specs):
        if one.stage == "prepare_corpus":
            write_table(one.path, pa.table({"example_id": [0]}), spec=spec_hash(one.spec))
    # What was made with other values will be made again.
    (encoder,) = (one for one in artifacts(specs) if one.stage == "train_encoder")
    write_table(encoder.path, pa.table({"step": [0]}), spec="0123456789abcdef")
    losses(plan.results / "targets" / "train" / "f0000_s0000.parquet", 12, 10)
    # 28 of 40 runs and the encoder are left.
    assert "Time left by the plan: 6 min 20 s" in status_text(plan, NOW)
    (plan.results / "plan.json").write_text(json.dumps(values | {"study": "of other values"}))
    assert "Time left: unknown without a plan (make plan)" in status_text(plan, NOW)


def test_jobs_of_variants_and_further_lms_are_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "configs/methods_mini.yaml").read_text(encoding="utf-8"))
    plan = StudyPlan(load_study(values))
    (variant, *_), (lm, *_) = (name for name in plan.variants if name), (name for name in plan.language_models if name)
    jobs = [f"train_encoder{variant}", f"pretrain_base_lm{lm}", f"tokenize_corpus{lm}/pool"]
    for job in jobs:
        log(plan, job, f"error in {job.partition('@')[0]}: no room\n")
    log(plan, f"init_encoder{variant}", "fine\n", age=50)
    ended = plan.results / "benchmarks" / "init_encoder" / f"study{variant}.tsv"
    ended.parent.mkdir(parents=True)
    ended.write_text("s\n1.0\n")
    assert {(job.job, job.state) for job in unfinished_jobs(plan, NOW)} == {(job, "failed") for job in jobs}
