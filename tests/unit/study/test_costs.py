"""The arithmetic of a plan, with round numbers for what a pilot finds; and what follows from it for Slurm jobs."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from workflow_scripts.plan.show_plan import plan_text
from workflow_scripts.plan.write_plan import write_plan
from workflow_scripts.study.artifacts import artifacts
from workflow_scripts.study.break_even import break_even
from workflow_scripts.study.config import load_study
from workflow_scripts.study.costs import (
    Concurrency,
    CorpusFacts,
    Pilot,
    counted_alike,
    distinct_examples,
    estimate,
    finetuning_work,
    good_job_sizes,
    makespan,
    not_planned,
    work,
)
from workflow_scripts.study.document_config import ROOT
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.resources import SHORTEST_RUNTIME_MINUTES, JobResources
from workflow_scripts.study.specs import StageSpecs
from workflow_scripts.study.stage_versions import STAGE_VERSIONS

UNITS = {
    "job_start": 1.0,
    "model_start": 4.0,
    "prepared_row": 1e-4,
    "tokenized_row": 1e-4,
    "compared_row": 1e-4,
    "pretraining_start": 2.0,
    "pretraining_step": 0.1,
    "trained_token": 1e-3,
    "evaluated_token": 1e-4,
    "gradient_token": 2e-3,
    "encoder_start": 1.0,
    "encoder_tokenized_row": 1e-4,
    "encoder_step": 0.5,
    "validated_fold": 0.2,
    "embedded_token": 1e-6,
    "scored_pair": 1e-8,
    "bootstrapped_pair": 1e-9,
}
COST = Concurrency(cores=2)


def smoke(**targets) -> StudyPlan:
    values = yaml.safe_load((ROOT / "configs/smoke.yaml").read_text(encoding="utf-8"))
    values["targets"] |= targets
    return StudyPlan(load_study(values))


def pilot(plan: StudyPlan, **changes) -> Pilot:
    facts = CorpusFacts(rows=1000, lm_tokens=20.0, encoder_tokens=30.0, row_bytes=100.0)
    values = {
        "hardware": "a machine",
        "gpus": 0,
        "seconds": UNITS,
        "assumed_units": (),
        "assumptions": (),
        "corpora": dict.fromkeys(plan.study.corpora, facts),
        "lm_parameters": 1e6,
        "encoder_parameters": 1e5,
    }
    return Pilot(**values | changes)


def by_stage(plan, found, concurrency=COST):
    return {one.stage: one for one in estimate(plan, found, concurrency)}


def test_units_of_a_fine_tuning_job_are_counted_by_hand():
    plan = smoke()
    # A job has 2 folds x 6 subsets of 16 examples, one epoch; 10 evaluated examples, the base LM's loss once a fold.
    start = {"job_start": 1, "model_start": 1}
    job = {**start, "trained_token": 12 * 16 * 20, "evaluated_token": (12 + 2) * 10 * 20}
    assert finetuning_work(plan, pilot(plan), "train") == [job] * 2
    # 8 subsets x 2 seeds, 20 tests
    assert finetuning_work(plan, pilot(plan), "heldout") == [
        {**start, "trained_token": 16 * 16 * 20, "evaluated_token": (16 + 1) * 20 * 20}
    ]


def test_seconds_are_units_times_their_cost():
    stages = by_stage(smoke(), pilot(smoke()))
    tuned = stages["finetune_shard"]
    jobs = [5 + 3.84 + 0.28, 5 + 3.84 + 0.28, 5 + 5.12 + 0.68]
    assert tuned.jobs == 3
    assert tuned.seconds == pytest.approx(sum(jobs))
    assert tuned.longest_seconds == pytest.approx(max(jobs))
    # The third starts when the first ends.
    assert tuned.wall_seconds == pytest.approx(jobs[0] + jobs[2])
    assert tuned.hours == pytest.approx(sum(jobs) / 3600)
    # 20 steps, and three validations of one fold, on both cores
    trained = stages["train_encoder"]
    assert trained.seconds == pytest.approx(5 + 0.1 + 20 * 0.5 + 3 * 0.2)
    assert trained.hours == pytest.approx(2 * trained.seconds / 3600)


def test_every_stage_of_a_run_is_planned_with_its_jobs():
    """The job counts are those of the dry run in tests/workflow/test_changes.py."""
    jobs = {stage: one.jobs for stage, one in by_stage(smoke(), pilot(smoke())).items()}
    assert jobs == {
        "prepare_corpus": 4,
        "resolve_config": 1,
        "pretrain_base_lm": 1,
        "tokenize_corpus": 3,
        "sample_subsets": 2,
        "finetune_shard": 3,
        "collect_targets": 2,
        "init_encoder": 1,
        "train_encoder": 1,
        "package_encoder": 1,
        "embed_corpus": 4,
        "score_pairs": 7,
        "check_leaks": 1,
        "evaluate_lds": 1,
        "evaluate_label_influence": 1,
        "write_report": 1,
    }


def test_twice_the_folds_are_twice_the_fine_tuning_and_no_more_of_anything_else():
    few, many = (by_stage(smoke(folds=folds), pilot(smoke())) for folds in (4, 8))
    added = {stage: many[stage].seconds - few[stage].seconds for stage in few}
    assert added.pop("finetune_shard") == pytest.approx(2 * (5 + 3.84 + 0.28))
    assert set(added.values()) == {0}


def test_scores_in_parts_are_planned_in_parts():
    plan = smoke()
    plan = StudyPlan(plan.study.model_copy(update={"scoring": plan.study.scoring.model_copy(update={"parts": 3})}))
    whole, split = by_stage(smoke(), pilot(smoke())), by_stage(plan, pilot(plan))
    assert (split["embed_corpus"].jobs, whole["embed_corpus"].jobs) == (2 * (3 + 1), 4)
    # Three methods read embeddings, four don't.
    assert (split["score_part"].jobs, split["merge_scores"].jobs, split["score_pairs"].jobs) == (9, 3, 4)
    pairs = 7 * 1000 * 20 * UNITS["scored_pair"]
    assert split["score_part"].seconds + split["score_pairs"].seconds == pytest.approx(9 * 5 + 4 * 1 + pairs)


def test_scores_alone_are_planned_without_a_lm():
    plan = StudyPlan(load_study(yaml.safe_load((ROOT / "configs/score_only.yaml").read_text(encoding="utf-8"))))
    assert set(by_stage(plan, pilot(plan))) == {
        "prepare_corpus",
        "resolve_config",
        "sample_subsets",
        "take_encoder",
        "embed_corpus",
        "score_pairs",
        "evaluate_label_influence",
        "write_report",
    }
    assert break_even(plan, pilot(plan), COST) is None
    assert not_planned(plan) == {}
    assert good_job_sizes(plan, pilot(plan), COST) == {}


def changed(**sections) -> StudyPlan:
    values = yaml.safe_load((ROOT / "configs/smoke.yaml").read_text(encoding="utf-8"))
    return StudyPlan(load_study({**values, **sections}))


def test_a_part_of_a_source_is_found_by_reading_all_of_it():
    stages = by_stage(smoke(), pilot(smoke()))
    shares = [last - first for first, last in (one.part for one in smoke().study.corpora.values())]
    assert min(shares) < 1
    assert stages["prepare_corpus"].seconds == pytest.approx(sum(1 + 0.1 / share for share in shares))


def test_an_encoder_variant_is_trained_at_the_pace_of_the_studys_own():
    variants = {name: {"encoder_training": {"steps": 10}} for name in ("short", "unread")}
    plan = changed(encoder_variants=variants, scoring={"methods": ["airrep", "airrep@short"]})
    own, both = by_stage(smoke(), pilot(smoke())), by_stage(plan, pilot(plan))
    assert (both["train_encoder"].jobs, both["init_encoder"].jobs) == (2, 1)
    added = both["train_encoder"].seconds - own["train_encoder"].seconds
    assert added == pytest.approx(5 + 0.1 + 10 * 0.5 + 2 * 0.2)
    assert break_even(plan, pilot(plan), COST) == break_even(smoke(), pilot(smoke()), COST)
    assert "encoder variant short" in counted_alike(plan)[0]


def test_what_no_unit_stands_for_is_named_and_not_in_the_total(planned):
    plan = changed(
        scoring={"methods": ["airrep", "rds", "logra_8"]},
        experiments={"leave_out": {"evaluation": "heldout", "base_examples": 20, "groups": 3}},
    )
    assert not_planned(plan) == {
        "warmup_lm": ["logra_8"],
        "fit_method": ["logra_8"],
        "embed_by_method": ["rds", "logra_8"],
        "draw_base": ["leave_out"],
        "score_base": ["leave_out"],
        "draw_leave_out": ["leave_out"],
        "finetune_runs": ["leave_out"],
        "evaluate_leave_out": ["leave_out"],
    }
    write_plan(write_pilot(plan, pilot(plan)), planned / "plan.json", study=plan.study.model_dump(), cores=2, jobs=None)
    text = " ".join(plan_text(json.loads((planned / "plan.json").read_text(encoding="utf-8")), {}).split())
    assert "embed_by_method not planned: rds, logra_8" in text
    assert "all planned" in text


def test_every_job_is_planned_or_named():
    values = yaml.safe_load((ROOT / "tests/configs/experiments.yaml").read_text(encoding="utf-8"))
    values["scoring"]["methods"] += ["ekfac", "logra_4", "less"]
    values["scoring"]["poolings"] = {"logra_4": ["chosen"], "ekfac": ["chosen"]}
    values["targets"]["surrogate"] = {"method": "ekfac", "folds": 2, "subsets_per_fold": 4}
    values["encoder_training"]["surrogate_share"] = 0.5
    plan = StudyPlan(load_study(values))
    jobs = {one.rule.removesuffix("_by_lm") for one in artifacts(StageSpecs(plan))}
    told = {stage.removesuffix("_by_lm") for stage in {**work(plan, pilot(plan)), **not_planned(plan)}}
    # A target of its own.
    assert jobs - told == {"list_suspects"}


@pytest.mark.parametrize(("parts", "stage"), [(1, "score_pairs"), (2, "score_part")])
def test_scores_that_the_lm_computes_are_not_planned(parts, stage):
    stored, unstored = (
        changed(scoring={"methods": ["airrep", *methods], "parts": parts}) for methods in ([], ["ekfac"])
    )
    assert not_planned(unstored)[f"{stage}_by_lm"] == ["ekfac"]
    assert "embed_by_method" not in not_planned(unstored)
    jobs = [by_stage(plan, pilot(plan))[stage].jobs for plan in (stored, unstored)]
    assert jobs[0] == jobs[1]


def test_gpus_bound_the_gpu_stages_alone():
    found = pilot(smoke(), gpus=1)
    stages = by_stage(smoke(), found)
    assert stages["finetune_shard"].processor == "GPU"
    assert stages["finetune_shard"].wall_seconds == pytest.approx(stages["finetune_shard"].seconds)
    assert stages["score_pairs"].processor == "core"
    assert stages["score_pairs"].wall_seconds < stages["score_pairs"].seconds


def test_a_cluster_runs_all_jobs_at_once_and_each_costs_a_start():
    stages = by_stage(smoke(), pilot(smoke()), Concurrency(cores=8, jobs=200))
    assert stages["finetune_shard"].wall_seconds == pytest.approx(stages["finetune_shard"].longest_seconds + 40)


def test_jobs_start_as_soon_as_a_slot_is_free():
    assert makespan([4, 1, 1, 1], 2) == 4
    assert makespan([1, 1, 1, 4], 2) == 5
    assert makespan([3], 100) == 3


def test_distinct_examples_of_subsets():
    assert distinct_examples(100, 1, 10) == pytest.approx(10)
    assert distinct_examples(100, 2, 100) == 100
    assert 10 < distinct_examples(100, 2, 10) < 20


def _work(stage):
    return stage.seconds - stage.start_up_seconds


def test_start_up_is_told_apart_from_work():
    plan = smoke()
    starts = {unit: UNITS[unit] for unit in ("job_start", "model_start")}
    none, all_ = (by_stage(plan, pilot(plan, seconds={**UNITS, **units})) for units in (dict.fromkeys(starts, 0), {}))
    for name, stage in all_.items():
        assert stage.start_up_seconds > 0
        assert _work(stage) == pytest.approx(none[name].seconds)


def test_break_even_is_where_both_ways_cost_the_same():
    plan, found = smoke(), pilot(smoke())
    at = break_even(plan, found, COST)
    stages = by_stage(plan, found)
    labels = 2 * (3.84 + 0.28)
    training = 2 * _work(stages["train_encoder"]) + _work(stages["init_encoder"])
    assert at.setup_seconds == pytest.approx(labels + training)
    assert at.gradient_seconds == pytest.approx(20 * 2e-3)
    assert at.embedding_seconds == pytest.approx(2 * 30 * 1e-6)
    encoder, gradients = at.setup_seconds + at.examples * at.embedding_seconds, at.examples * at.gradient_seconds
    assert encoder == pytest.approx(gradients, rel=0.01)
    cheap = pilot(plan, seconds={**UNITS, "gradient_token": 1e-9})
    assert break_even(plan, cheap, COST).examples is None


def test_an_encoder_on_one_core_costs_the_same_on_a_machine_of_many():
    values = yaml.safe_load((ROOT / "configs/smoke.yaml").read_text(encoding="utf-8"))
    plan = changed(encoder={**values["encoder"], "layers": 0})
    two, many = (break_even(plan, pilot(plan), Concurrency(cores=cores)) for cores in (2, 16))
    assert two == many
    assert two.examples < break_even(smoke(), pilot(smoke()), COST).examples


def test_processes_that_share_a_job_share_its_work():
    values = yaml.safe_load((ROOT / "configs/smoke.yaml").read_text(encoding="utf-8"))
    plan = changed(encoder_training={**values["encoder_training"], "processes": 4})
    free_start = {**UNITS, "job_start": 0, "model_start": 0}
    one, four = (pilot(each, seconds=free_start, gpus=8) for each in (smoke(), plan))
    alone, shared = by_stage(smoke(), one)["train_encoder"], by_stage(plan, four)["train_encoder"]
    assert shared.hours == pytest.approx(alone.hours)
    assert shared.wall_seconds == pytest.approx(alone.wall_seconds / 4)
    assert break_even(plan, four, COST) == break_even(smoke(), one, COST)
    assert "4 processes that share a job of train_encoder" in counted_alike(plan)[0]
    # On the cores of one job they share what one process had.
    cores = [pilot(each, seconds=free_start) for each in (smoke(), plan)]
    alone, shared = (by_stage(each, found)["train_encoder"] for each, found in zip((smoke(), plan), cores, strict=True))
    assert (shared.hours, shared.wall_seconds) == (alone.hours, alone.wall_seconds)
    assert break_even(plan, cores[1], COST) == break_even(smoke(), cores[0], COST)


def test_good_job_sizes_take_half_an_hour_or_fill_the_slots():
    plan = smoke(folds=1000, subsets_per_fold=100)
    found = pilot(plan)
    # A subset takes 0.34 s, a fold's base losses little: 34 s a fold, so 53 folds are half an hour.
    sizes = good_job_sizes(plan, found, COST)["train"]
    assert sizes["subsets_per_job"] == 100
    assert sizes["folds_per_job"] == pytest.approx(1800 / 34, abs=2)
    slow = pilot(plan, seconds={**UNITS, "trained_token": 1.0})
    assert good_job_sizes(plan, slow, COST)["train"] == {"folds_per_job": 1, "subsets_per_job": 6}
    # 24 short runs: one half of them for each of two cores
    assert good_job_sizes(smoke(), pilot(smoke()), COST)["train"] == {"folds_per_job": 2, "subsets_per_job": 6}


@pytest.fixture
def planned(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_pilot(plan: StudyPlan, found: Pilot) -> Path:
    path = plan.results / "pilot.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "version": STAGE_VERSIONS["run_pilot"],
        "settings": StageSpecs(plan).pilot_settings(),
        "found": dataclasses.asdict(found),
    }
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_time_limits_are_twice_what_the_pilot_expects(planned):
    default = JobResources(smoke()).runtime_minutes("finetune_shard")
    slow = pilot(smoke(), seconds={**UNITS, "trained_token": 1.0})
    write_pilot(smoke(), slow)
    longest = by_stage(smoke(), slow)["finetune_shard"].longest_seconds
    assert JobResources(smoke()).runtime_minutes("finetune_shard") == -(-2 * longest // 60) != default
    assert JobResources(smoke()).runtime_minutes("write_report") == SHORTEST_RUNTIME_MINUTES
    # Larger jobs get more time without another pilot.
    larger, smaller = (JobResources(smoke(**sizes)) for sizes in ({"folds_per_job": 4}, {}))
    assert larger.runtime_minutes("finetune_shard") > smaller.runtime_minutes("finetune_shard")


@pytest.mark.parametrize("damage", ["assumed", "other settings", "older version", "not JSON", "absent"])
def test_time_limits_without_a_measurement_are_the_usual_ones(planned, damage):
    found = pilot(smoke(), assumed_units=("trained_token",) if damage == "assumed" else ())
    path = write_pilot(smoke(subset_examples=8) if damage == "other settings" else smoke(), found)
    if damage == "older version":
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": STAGE_VERSIONS["run_pilot"] - 1}))
    if damage == "not JSON":
        path.write_text("{")
    if damage == "absent":
        path.unlink()
    assert JobResources(smoke()).runtime_minutes("finetune_shard") == 120


def test_a_pilot_changes_no_spec(planned):
    """So a new plan runs nothing again."""
    before = StageSpecs(smoke()).spec("finetune_shard", {"pool": "train", "block": "f0000_s0000"})
    write_pilot(smoke(), pilot(smoke()))
    assert StageSpecs(smoke()).spec("finetune_shard", {"pool": "train", "block": "f0000_s0000"}) == before


def test_the_plan_is_written_and_shown(planned):
    plan = smoke()
    assumed = {"assumed_units": ("trained_token",), "assumptions": ("A GPU is assumed.",), "gpus": 1}
    path = write_pilot(plan, pilot(plan, **assumed))
    spec = StageSpecs(plan).spec("write_plan", {})
    del spec["version"]
    write_plan(path, planned / "plan.json", **spec, cores=2, jobs=None)
    written = json.loads((planned / "plan.json").read_text(encoding="utf-8"))
    assert written["total"]["jobs"] == 34
    assert written["total"]["wall_seconds"] == pytest.approx(sum(one["wall_seconds"] for one in written["stages"]))
    assert next(one["setting"] for one in written["cheaper"]) == "targets.folds: 3"
    assert written["cheaper"][0]["wall_seconds"] <= written["total"]["wall_seconds"]
    text = " ".join(plan_text(written, {"finetune_shard": 58.08}).split())
    assert "finetune_shard 3 0.0081 GPU-h * 29 s" in text
    assert "58 s (2.0x)" in text
    assert "* Assumed, not measured: A GPU is assumed." in text
    assert "scored examples on, the trained encoder is cheaper" in text
