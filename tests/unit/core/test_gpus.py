"""GPUs are counted without torch, claimed by one job at a time, and what was promised is there or the job stops."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from workflow_scripts.core import gpus
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.gpus import (
    gpu_problem,
    gpus_asked_for,
    installed_gpus,
    is_promised,
    limit_gpu_jobs,
    lock_name,
    own_gpus,
    pinned,
    require_promised_gpus,
    visible_gpus,
)

TWO_AND_A_SPLIT_ONE = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-cccc)
  MIG 3g.40gb     Device  0: (UUID: MIG-dddd)
  MIG 3g.40gb     Device  1: (UUID: MIG-eeee)
"""
GOOD = {
    "host": "node1",
    "torch": "2.13.0",
    "driver": "580.65.06",
    "cuda": "13.0",
    "visible_devices": "0",
    "usable": 1,
}


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine without GPUs and Slurm; the function returned gives it what `nvidia-smi -L` says."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "AIRREP_GPU_OPTIONAL", *gpus.SLURM_NAMES_GPUS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "DRIVER_FOLDER", tmp_path / "driver")
    monkeypatch.setattr(gpus, "DEVICE_FOLDER", tmp_path / "dev")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def shows(text):
        monkeypatch.setattr(gpus, "_nvidia_smi", lambda: text)

    shows("")
    return shows


def hold(folder, name, count, seconds, events):
    with own_gpus(count, ["0", "1", "2"], folder) as held:
        events.put((time.monotonic(), "start", name, held))
        time.sleep(seconds)
        events.put((time.monotonic(), "end", name, held))


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("2, GPU-ab", ["2", "GPU-ab"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,-1,0", ["1"]),
        ("MIG-GPU-aaaa/1/0", ["MIG-GPU-aaaa/1/0"]),
    ],
)
def test_visible_gpus_are_those_that_cuda_reads_in_the_environment(listed, names):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed}) == names


def test_gpus_of_the_machine_are_named_by_uuid_and_split_ones_by_instance(machine):
    machine(TWO_AND_A_SPLIT_ONE)
    assert visible_gpus({}) == ["GPU-aaaa", "GPU-bbbb", "MIG-dddd", "MIG-eeee"]
    assert [gpu.name for gpu in installed_gpus()][-1] == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"


def test_where_nvml_fails_the_kernel_is_asked(tmp_path):
    assert visible_gpus({}) == []
    for number, uuid in enumerate(["GPU-aaaa", "GPU-????????"]):
        file = tmp_path / "driver" / "gpus" / f"0000:0{number}:00.0" / "information"
        file.parent.mkdir(parents=True)
        file.write_text(f"Model: \t\t NVIDIA H100\nGPU UUID: \t {uuid}\n")
    assert visible_gpus({}) == ["GPU-aaaa", "1"]


@pytest.mark.parametrize("how", ["absent", "fails"])
def test_a_missing_or_failing_nvidia_smi_lists_nothing(how, monkeypatch, tmp_path):
    monkeypatch.undo()
    if how == "fails":
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'Failed to initialize NVML'\nexit 18\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus._nvidia_smi.__wrapped__() == ""


def test_gpus_are_counted_without_torch():
    code = (
        "import sys; from workflow_scripts.core.gpus import *; visible_gpus({}); limit_gpu_jobs; "
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def workflow(**changes):
    values = {"nodes": None, "is_main_process": True, "global_resources": {}}
    made = SimpleNamespace(**{**values, **changes})
    made.register_resource = made.global_resources.__setitem__
    return made


def test_jobs_on_gpus_are_as_many_as_the_machine_has(machine):
    assert limit_gpu_jobs(without := workflow()) == 0
    assert without.global_resources == {}
    machine(TWO_AND_A_SPLIT_ONE)
    assert limit_gpu_jobs(here := workflow()) == 4
    assert here.global_resources == {"gpu": 4}
    asked = workflow(global_resources={"gpu": SimpleNamespace(value=2)})
    assert limit_gpu_jobs(asked) == 2
    assert asked.global_resources["gpu"].value == 2


@pytest.mark.parametrize("elsewhere", [{"nodes": 200}, {"is_main_process": False}])
def test_on_a_cluster_the_gpus_of_the_login_node_limit_nothing(machine, elsewhere):
    machine(TWO_AND_A_SPLIT_ONE)
    assert limit_gpu_jobs(driver := workflow(**elsewhere)) == 0
    assert driver.global_resources == {}


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        ({}, 0),
        ({"gpu": 2}, 2),
        ({"gpu": 0, "gres": "gpu:1"}, 1),
        ({"gpu": 0, "gres": "gpu:h100:4"}, 4),
        ({"gres": "gpu"}, 1),
        ({"gres": "nvme:1"}, 0),
    ],
)
def test_gpus_are_asked_for_as_gpu_or_as_gres(resources, count):
    assert gpus_asked_for(resources) == count


def test_more_gpus_than_there_are(tmp_path):
    with pytest.raises(StudyError, match="asks for 2 GPUs, but this machine shows 1"), own_gpus(2, ["0"], tmp_path):
        pass


def test_locks_lie_in_a_folder_of_ones_own_and_no_link_is_followed(tmp_path, monkeypatch):
    mine = tmp_path / "mine.txt"
    mine.write_text("work")
    folder = tmp_path / "locks"
    with own_gpus(1, ["0"], folder) as held:
        assert held == ["0"]
    assert folder.stat().st_mode & 0o777 == 0o700
    (lock,) = folder.iterdir()
    lock.unlink()
    lock.symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"), own_gpus(1, ["0"], folder):
        pass
    assert mine.read_text() == "work"
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(StudyError, match="belongs to another user"), own_gpus(1, ["0"], folder):
        pass


def test_no_two_jobs_share_a_gpu(tmp_path):
    context = multiprocessing.get_context("fork")
    events = context.Queue()
    counts = [1, 2, 1, 3, 1, 2, 1, 1]
    jobs = [context.Process(target=hold, args=(tmp_path, i, count, 0.1, events)) for i, count in enumerate(counts)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(30)
    in_use = set()
    for _, kind, name, held in sorted(events.get() for _ in range(2 * len(jobs))):
        assert len(held) == counts[name]
        if kind == "start":
            assert not in_use & set(held)
            in_use |= set(held)
        else:
            in_use -= set(held)


def test_a_killed_job_frees_its_gpu(tmp_path):
    context = multiprocessing.get_context("fork")
    events = context.Queue()
    job = context.Process(target=hold, args=(tmp_path, "killed", 3, 60, events))
    job.start()
    events.get(timeout=10)
    job.kill()
    job.join()
    with own_gpus(3, ["0", "1", "2"], tmp_path) as held:
        assert held == ["0", "1", "2"]


@pytest.mark.parametrize("names", ["MIG-GPU-aaaa/1/0,MIG-GPU-aaaa/2/0", "GPU-aaaa,GPU-bbbb", "0,1"])
def test_jobs_of_one_allocation_take_different_gpus(monkeypatch, names):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    with pinned(1):
        first = os.environ["CUDA_VISIBLE_DEVICES"]
        # What another job of the same Snakemake finds.
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
        with pinned(1):
            assert [first, os.environ["CUDA_VISIBLE_DEVICES"]] == names.split(",")


def test_a_number_is_another_gpu_in_another_allocation(machine):
    first, second, plain = (lock_name("0", {"SLURM_JOB_ID": job} if job else {}) for job in ("17", "18", ""))
    assert len({first, second, plain}) == 3
    machine(TWO_AND_A_SPLIT_ONE)
    # However a Snakemake beside this one names it.
    assert lock_name("1", {}) == lock_name("GPU-bbbb", {}) != lock_name("0", {})
    assert "/" not in lock_name("MIG-GPU-aaaa/1/0", {})


def test_a_job_without_gpus_sees_none_and_leaves_the_environment_as_it_was(monkeypatch, machine):
    machine(TWO_AND_A_SPLIT_ONE)
    with pinned(0):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    with pinned(2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa,GPU-bbbb"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pinned(0):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_job_on_a_machine_without_gpus_sees_what_it_saw():
    with pinned(1):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("environment", "promised"),
    [
        ({}, False),
        ({"CUDA_VISIBLE_DEVICES": ""}, False),
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_GPUS": "0"}, False),
        ({"CUDA_VISIBLE_DEVICES": "0"}, True),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, True),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, True),
        ({"SLURM_JOB_GPUS": "3"}, True),
        ({"SLURM_STEP_GPUS": "3"}, True),
        ({"SLURM_GPUS_ON_NODE": "0"}, False),
        ({"SLURM_JOB_ID": "17"}, False),
    ],
)
def test_a_gpu_is_promised_by_slurm_or_by_what_cuda_reads(environment, promised):
    assert is_promised(environment) == promised


@pytest.mark.parametrize("by", ["device file", "driver", "nvidia-smi"])
def test_a_gpu_is_promised_by_a_machine_that_has_one(machine, tmp_path, by):
    if by == "device file":
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev" / "nvidia0").touch()
    if by == "driver":
        (tmp_path / "driver" / "gpus" / "0").mkdir(parents=True)
        (tmp_path / "driver" / "gpus" / "0" / "information").write_text("Model: H100\nGPU UUID: GPU-aaaa\n")
    if by == "nvidia-smi":
        machine(TWO_AND_A_SPLIT_ONE)
    assert is_promised({})
    assert not is_promised({"CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.parametrize(
    ("fact", "advice"),
    [
        ({"visible_devices": None, "driver": None}, "AIRREP_GRES=gpu"),
        ({"visible_devices": ""}, "AIRREP_GRES=gpu"),
        ({"visible_devices": "-1"}, "CUDA_VISIBLE_DEVICES=-1 hides all of them"),
        ({"visible_devices": "NoDevFiles"}, "salloc --gpus=1"),
        ({"driver": None, "cuda": None}, "AIRREP_GPU_PARTITION"),
        ({"torch": "2.13.0+cpu", "cuda": None}, "CUDA build"),
        ({}, "too old for CUDA 13.0"),
        ({"visible_devices": "MIG-a,MIG-b", "usable": 1}, "no more than one instance"),
    ],
)
def test_each_problem_with_gpus_comes_with_advice(fact, advice):
    assert advice in gpu_problem({**GOOD, "usable": 0, **fact}, asked=2)


def test_gpus_that_torch_can_use_are_no_problem():
    assert gpu_problem(GOOD, asked=1) is None
    assert gpu_problem({**GOOD, "visible_devices": None}, asked=1) is None


@pytest.mark.parametrize("visible", ["0", "-1", "NoDevFiles"])
def test_a_promised_gpu_that_is_of_no_use_stops_the_job(visible, monkeypatch):
    monkeypatch.setattr(gpus, "torch_facts", lambda: {**GOOD, "usable": 0})
    environment = {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(StudyError, match="To compute on the CPU instead, set CUDA_VISIBLE_DEVICES to nothing"):
        require_promised_gpus(1, environment)
    require_promised_gpus(0, environment)
    require_promised_gpus(1, {**environment, "AIRREP_GPU_OPTIONAL": "yes"})
    require_promised_gpus(1, {})
    monkeypatch.setattr(gpus, "torch_facts", lambda: GOOD)
    require_promised_gpus(1, environment)


def test_what_this_torch_can_use_is_asked_without_a_context():
    code = (
        "import json, torch; from workflow_scripts.core.gpus import torch_facts; facts = torch_facts(); "
        "print(json.dumps([facts, torch.cuda.is_initialized()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    facts, has_context = json.loads(done.stdout)
    assert set(facts) == {"driver", "torch", "cuda", "usable"}
    assert not has_context


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build  (builder)\n",
    ],
)
def test_driver_version_is_read_from_what_the_kernel_says(tmp_path, text):
    assert gpus.driver_version() is None
    (tmp_path / "driver").mkdir()
    Path(tmp_path / "driver" / "version").write_text(text)
    assert gpus.driver_version() == "535.104.05"
