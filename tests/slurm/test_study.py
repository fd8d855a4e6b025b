"""`snakemake --profile slurm` as a user types it: the smoke study on a real Slurm."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from driving import EDITS, GPU_RULES, SMOKE, finished_jobs, without_group


def rule_of(purpose):
    return without_group(purpose.removeprefix("rule_").partition("_wildcards_")[0])


def test_the_study_ends_with_its_report_and_no_job_failed(smoke):
    assert (smoke.checkout.results / "report.html").stat().st_size > 10_000
    assert {job["JobState"] for job in smoke.jobs} == {"COMPLETED"}
    assert len(smoke.jobs) == len(smoke.driver.submitted())


def test_jobs_ran_on_at_least_two_nodes(smoke):
    assert len({job["NodeList"] for job in smoke.jobs}) >= 2


def test_account_and_partitions_come_from_the_environment(smoke):
    assert {job["Account"] for job in smoke.jobs} == {"lab"}
    for job in smoke.jobs:
        on_gpu = rule_of(smoke.watch.purposes[job["JobId"]]) in GPU_RULES
        assert job["Partition"] == ("gpu" if on_gpu else "cpu")


def test_slurm_gives_one_gpu_to_jobs_that_ask_and_none_to_others(smoke):
    seen = set()
    for number, devices in smoke.watch.devices().items():
        rule = rule_of(smoke.watch.purposes[number])
        seen.add(rule)
        if rule in GPU_RULES:
            (device,) = devices
            assert device in {"0", "1", "2"}, f"{rule} has CUDA_VISIBLE_DEVICES={device!r}"
        else:
            assert devices == {""}, f"{rule} asked for no GPU and got {devices}"
    assert seen >= GPU_RULES
    assert seen - GPU_RULES


def test_no_two_running_jobs_share_a_gpu(smoke):
    together = 0
    for sample in smoke.watch.samples:
        on_gpu = [entry for entry in sample if entry[2]]
        for (job, node, device), (other, other_node, other_device) in itertools.combinations(on_gpu, 2):
            together += node == other_node and job != other
            assert job == other or (node, device) != (other_node, other_device)
    assert together, "no two GPU jobs ran on one node at a time, so nothing was tried"


def test_the_second_time_there_is_nothing_to_do(smoke):
    again = smoke.checkout.run(*SMOKE)
    assert "Nothing to be done" in again.screen()
    assert again.submitted() == []


@pytest.fixture(scope="module")
def environments(smoke, tmp_path_factory):
    """Checkouts where check_environment ran: without any edit, and with the profile in the user's own folder."""
    folder = tmp_path_factory.mktemp("environments")
    unedited, with_own_profile = (smoke.checkout.copy(folder / name) for name in ("unedited", "own_profile"))
    own_profile = with_own_profile.folder / "home" / "snakemake" / "slurm"
    own_profile.parent.mkdir(parents=True)
    (with_own_profile.folder / "slurm").rename(own_profile)
    text = (own_profile / "config.yaml").read_text()
    (own_profile / "config.yaml").write_text(re.sub(r"^  account: .*$", "  account: own-lab", text, flags=re.MULTILINE))
    nothing = dict.fromkeys(EDITS, "")
    check = (*SMOKE, "--", "check_environment")
    drivers = {
        "unedited": (unedited, unedited.start(*check, **nothing)),
        "own profile": (
            with_own_profile,
            with_own_profile.start(*check, **nothing, XDG_CONFIG_HOME=str(own_profile.parents[1])),
        ),
    }
    for _, driver in drivers.values():
        assert driver.wait() == 0, driver.screen()[-5000:]
    return drivers


@pytest.mark.parametrize("name", ["unedited", "own profile"])
def test_check_environment_says_what_a_gpu_job_finds(environments, name):
    checkout, _ = environments[name]
    facts = json.loads((checkout.results / "environment.json").read_text())
    assert facts["slurm_node"] in {"node1", "node2"}
    assert facts["visible_devices"] in {"0", "1", "2"}
    if facts["driver"] is None:
        assert "no NVIDIA driver" in facts["warnings"][0]


@pytest.mark.parametrize(("name", "account"), [("unedited", ""), ("own profile", "own-lab")])
def test_the_account_is_the_users_own_or_left_to_slurm(cluster, environments, name, account):
    _, driver = environments[name]
    (number,) = driver.job_numbers("check_environment")
    (record,) = [job for job in finished_jobs(cluster.finished_jobs) if job["JobId"] == number]
    assert (record["Account"], record["Partition"]) == (account, "cpu")
