"""The profile behind `snakemake --profile slurm`, as Snakemake's own parser reads it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from snakemake.profiles import ProfileConfigFileParser
from snakemake.resources import Resources

from workflow_scripts.study.job_groups import GROUPS

PROFILE = Path(__file__).parents[3] / "slurm" / "config.yaml"
EDITED = ["ACCOUNT", "PARTITION", "GPU_PARTITION", "GPU_MODEL", "GRES", "GPU_CPUS", "PREEMPTIBLE"]


@pytest.fixture
def read_profile(monkeypatch):
    for name in EDITED:
        monkeypatch.delenv(f"AIRREP_{name}", raising=False)

    def read(**edited):
        for name, value in edited.items():
            monkeypatch.setenv(f"AIRREP_{name}", value)
        with open(PROFILE) as file:
            return ProfileConfigFileParser().parse(file)

    return read


def default_resources(profile):
    """Return the resources of a rule without any of its own, as sbatch would get them."""
    resources = Resources.parse(profile["default-resources"], allow_expressions=True)
    return {
        name: resource.evaluate([], input=[], attempt=1, threads=1, rulename="", async_run=None).value
        for name, resource in resources.items()
    }


def rule_resources(profile, rule):
    entries = (entry.removeprefix(f"{rule}:") for entry in profile["set-resources"] if entry.startswith(rule))
    return default_resources({"default-resources": list(entries)})


def test_without_any_edit_slurm_chooses_account_and_partition(read_profile):
    profile = read_profile()
    assert default_resources(profile) == {"mem_mb": 4000, "runtime": 60, "nodes": 1}
    assert "set-resources" not in profile


# names that are Python words or numbers are names all the same
@pytest.mark.parametrize("name", ["lab", "my-lab", "open", "all", "input", "12345", "a_b.c"])
def test_account_and_partitions_reach_sbatch_as_written(read_profile, name):
    profile = read_profile(ACCOUNT=name, PARTITION=name, GPU_PARTITION=f"{name}-gpu")
    for_all = default_resources(profile)
    assert (for_all["slurm_account"], for_all["slurm_partition"]) == (name, name)
    assert rule_resources(profile, "finetune_shard") == {"slurm_partition": f"{name}-gpu"}


def test_gpu_model(read_profile):
    profile = read_profile(GPU_MODEL="h100")
    assert rule_resources(profile, "train_encoder") == {"gpu_model": "h100"}


@pytest.mark.parametrize(("written", "asked"), [("gpu", "gpu:1"), ("gpu:h100", "gpu:h100:1")])
def test_gres_takes_the_place_of_gpu(read_profile, written, asked):
    profile = read_profile(GRES=written, GPU_MODEL="h100")
    assert rule_resources(profile, "embed_corpus") == {"gpu": 0, "gres": asked}


def test_a_job_on_a_gpu_has_several_cpus(read_profile):
    assert "finetune_shard=8" in read_profile()["set-threads"]
    fewer = read_profile(GPU_CPUS="4")
    assert "finetune_shard=4" in fewer["set-threads"]
    assert int(fewer["cores"]) == 4


def test_every_group_has_its_number(read_profile):
    assert [entry.partition("=")[0] for entry in read_profile()["group-components"]] == list(GROUPS)


def test_only_preemptible_partitions_let_slurm_start_a_job_again(read_profile):
    assert "slurm-requeue" not in read_profile()
    preemptible = read_profile(PREEMPTIBLE="yes")
    assert preemptible["slurm-requeue"] == "True"
    assert "slurm-no-requeue" not in preemptible


def test_every_entry_has_a_comment_above_it():
    entry = re.compile(r"(  )?[a-z][\w-]*:|\?if ")
    lines = PROFILE.read_text().splitlines()
    in_resources = lines.index("default-resources:") + 1
    for above, line in pairwise(lines[:in_resources]):
        assert above.lstrip().startswith("#") or not entry.match(line) or line.startswith("  slurm"), line
