"""Which rules ask for a GPU, and what of the machine they get, as Snakemake itself reads the workflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from snakemake.api import SnakemakeApi
from snakemake.profiles import ProfileConfigFileParser
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

from workflow_scripts.core import gpus
from workflow_scripts.study.config import load_study
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.resources import GPU_ON_REQUEST
from workflow_scripts.study.specs import COMPUTED_ON_GPUS

ROOT = Path(__file__).parents[3]
# Together they have every rule.
STUDIES = ("tests/configs/experiments.yaml", "configs/score_only.yaml")
WITHOUT_NUMBERS = {"check_environment"}


@pytest.fixture
def read_workflow(monkeypatch):
    """Return a function that reads the workflow on a machine of so many cores and GPUs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def read(study, cores=8, gpus_here=0, **resources):
        listed = "".join(f"GPU {number}: NVIDIA H100 (UUID: GPU-{number})\n" for number in range(gpus_here))
        monkeypatch.setattr(gpus, "_nvidia_smi", lambda: listed)
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
            return api.workflow(
                resource_settings=ResourceSettings(cores=cores, resources=resources),
                config_settings=ConfigSettings(configfiles=[ROOT / study]),
                snakefile=ROOT / "Snakefile",
            )._workflow

    return read


def of_rules(workflow, resource):
    """Return a resource of each rule that has it, 0 left out."""
    values = {rule.name: rule.resources[resource].value for rule in workflow.rules if resource in rule.resources}
    return {name: value for name, value in values.items() if value}


def test_the_slurm_profile_lists_the_rules_that_ask_for_a_gpu(read_workflow, monkeypatch):
    asking = set().union(*(of_rules(read_workflow(study), "gpu") for study in STUDIES))
    monkeypatch.setenv("AIRREP_GRES", "gpu")
    monkeypatch.setenv("AIRREP_GPU_CPUS", "6")
    with open(ROOT / "slurm" / "config.yaml") as file:
        profile = ProfileConfigFileParser().parse(file)
    listed = {entry.partition(":")[0] for entry in profile["set-resources"]}
    assert listed == asking
    assert set(profile["set-threads"]) == {f"{name}=6" for name in asking}
    assert int(profile["cores"]) == 6


def test_what_computes_on_a_gpu_asks_for_one(read_workflow):
    asking = set().union(*(of_rules(read_workflow(study), "gpu") for study in STUDIES))
    by_lm = {
        "score_pairs_by_lm",
        "score_part_by_lm",
        "score_base_by_lm",
        "choose_pooling_by_lm",
        "predict_targets_by_lm",
        "predict_held_back_by_lm",
    }
    assert asking - WITHOUT_NUMBERS == set(COMPUTED_ON_GPUS) - set(GPU_ON_REQUEST) | by_lm


def test_a_machine_without_gpus_limits_nothing_and_gives_all_its_cores(read_workflow):
    workflow = read_workflow(STUDIES[0], cores=8)
    assert "gpu" not in workflow.global_resources
    threads = of_rules(workflow, "_cores")
    assert (threads["pretrain_base_lm"], threads["warmup_lm"]) == (8, 8)
    assert (threads["finetune_shard"], threads["init_encoder"]) == (1, 1)
    # The encoder of this study has no layers.
    assert (threads["train_encoder"], threads["embed_corpus"]) == (1, 1)
    assert of_rules(read_workflow("configs/smoke.yaml", cores=8), "_cores")["train_encoder"] == 8


def test_all_gpus_of_a_machine_are_used_without_further_words(read_workflow):
    workflow = read_workflow(STUDIES[0], cores=32, gpus_here=8)
    assert workflow.global_resources["gpu"].value == 8
    threads, counts = of_rules(workflow, "_cores"), of_rules(workflow, "gpu")
    # Eight jobs of a GPU rule fit beside each other, and one more that needs no GPU.
    assert all(8 // counts[name] * threads[name] < 32 for name in counts)
    assert all(threads[name] == 3 for name in set(counts) - WITHOUT_NUMBERS)


def test_more_gpus_than_cores_still_give_each_job_a_thread(read_workflow):
    threads = of_rules(read_workflow(STUDIES[0], cores=2, gpus_here=8), "_cores")
    assert threads["embed_corpus"] == 1


def test_the_users_own_number_of_gpus_stands(read_workflow):
    workflow = read_workflow(STUDIES[0], cores=33, gpus_here=8, gpu=4)
    assert workflow.global_resources["gpu"].value == 4
    assert of_rules(workflow, "_cores")["embed_corpus"] == 8


def test_a_job_over_several_gpus_has_the_cores_of_all(read_workflow):
    workflow = read_workflow("configs/large_lm.yaml", cores=33, gpus_here=8)
    assert of_rules(workflow, "_cores")["finetune_shard"] == 16
    assert of_rules(read_workflow("configs/large_lm.yaml", cores=33), "_cores")["finetune_shard"] == 4


def test_rules_ask_for_as_many_gpus_as_the_plan_counts(read_workflow):
    """Or the estimate of the cost is that of another study: a job over four GPUs takes the place of four."""
    counts = of_rules(read_workflow("configs/large_lm.yaml"), "gpu")
    plan = StudyPlan(load_study(yaml.safe_load((ROOT / "configs/large_lm.yaml").read_text(encoding="utf-8"))))
    assert {name: plan.processes(name) for name in counts} == counts
    assert counts["finetune_shard"] == counts["finetune_runs"] == 4
