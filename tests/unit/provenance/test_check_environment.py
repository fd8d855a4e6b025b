"""What check_environment finds, and what it says when a job can't use the GPUs that it asked for."""

from __future__ import annotations

import json

import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.provenance import check_environment as stage

GPU = {"name": "GPU", "memory_gib": 80.0, "bfloat16": True}
GOOD = {
    "host": "node1",
    "torch": "2.13.0",
    "driver": "580.65.06",
    "cuda": "13.0",
    "visible_devices": "0",
    "gpus": [GPU],
    "free_gib": 500.0,
    "folder_seconds": 0.001,
}


def test_a_good_node_has_neither_problem_nor_warning():
    assert stage.gpu_problem(GOOD, gpus=1) is None
    assert stage.folder_warnings(GOOD) == []


@pytest.mark.parametrize(
    ("fact", "advice"),
    [
        ({"visible_devices": None}, "AIRREP_GRES=gpu"),
        ({"visible_devices": ""}, "AIRREP_GRES=gpu"),
        ({"driver": None, "cuda": None, "gpus": []}, "AIRREP_GPU_PARTITION"),
        ({"torch": "2.13.0+cpu", "cuda": None, "gpus": []}, "CUDA build"),
        ({"gpus": []}, "too old for CUDA 13.0"),
    ],
)
def test_each_problem_with_gpus_comes_with_advice(fact, advice):
    assert advice in stage.gpu_problem({**GOOD, **fact}, gpus=1)


@pytest.mark.parametrize(("fact", "word"), [({"free_gib": 2.5}, "2.5 GiB"), ({"folder_seconds": 0.9}, "0.90 s")])
def test_a_full_disk_and_a_slow_folder_are_warned_of(fact, word):
    (warning,) = stage.folder_warnings({**GOOD, **fact})
    assert word in warning


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build  (builder)\n",
    ],
)
def test_driver_version_is_read_from_what_the_kernel_says(tmp_path, monkeypatch, text):
    monkeypatch.setattr(stage, "DRIVER_FILE", tmp_path / "version")
    assert stage.driver_version() is None
    stage.DRIVER_FILE.write_text(text)
    assert stage.driver_version() == "535.104.05"


def test_a_cpu_job_writes_what_it_found(tmp_path):
    stage.check_environment(tmp_path / "new" / "environment.json", gpus=0, require_gpu=False)
    facts = json.loads((tmp_path / "new" / "environment.json").read_text())
    assert facts["cores"] >= 1
    assert facts["free_gib"] > 0
    assert facts["folder_seconds"] > 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["environment.json"]


def test_made_up_gpus_are_a_warning_and_an_error_only_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "DRIVER_FILE", tmp_path / "no_driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    stage.check_environment(tmp_path / "environment.json", gpus=1, require_gpu=False)
    facts = json.loads((tmp_path / "environment.json").read_text())
    assert any("has no NVIDIA driver" in warning for warning in facts["warnings"])
    with pytest.raises(StudyError, match="has no NVIDIA driver"):
        stage.check_environment(tmp_path / "second.json", gpus=1, require_gpu=True)
    assert not (tmp_path / "second.json").exists()


def test_a_job_that_was_promised_a_gpu_and_can_not_use_it_fails(tmp_path, monkeypatch):
    found = {"driver": "580.65.06", "cuda": None, "visible_devices": "0", "gpus": []}
    monkeypatch.setattr(stage, "describe_gpus", lambda: found)
    with pytest.raises(StudyError, match="CPU build"):
        stage.check_environment(tmp_path / "environment.json", gpus=1, require_gpu=False)
