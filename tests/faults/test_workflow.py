"""The whole workflow under faults: after the user did what the message says, every result is that of a straight run."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from comparing import delete, wrong_results
from workspace import new_workspace

pytestmark = pytest.mark.slow


def start(workspace, *arguments):
    """Start a driver, in a process group of its own."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "configs/smoke.yaml", *arguments]
    with open(workspace.folder / "screen.txt", "a") as screen:
        return subprocess.Popen(
            command, cwd=workspace.folder, stdout=screen, stderr=subprocess.STDOUT, start_new_session=True
        )


def end_group(driver):
    """Wait until the jobs that a killed driver left behind have ended."""
    while subprocess.run(["pgrep", "--pgroup", str(driver.pid)], capture_output=True, check=False).returncode == 0:
        time.sleep(0.5)


def finished_runs(workspace):
    """The fine-tuning runs that are on disk, by block."""
    found = {}
    for path in workspace.results.glob("targets/*/*.parquet"):
        table = pq.read_table(path, columns=["fold", "index", "seed"])
        found[path.parent.name, path.stem] = len(table.group_by(table.column_names).aggregate([]))
    for path in workspace.results.glob("targets/*/.*.runs"):
        block = path.parent.name, path.name.split(".")[1]
        found.setdefault(block, len(list(path.glob("[0-9]*.parquet"))))
    return found


def lost_runs(workspace, before):
    """Of the runs that were on disk before, how many were made again, by the logs of the jobs."""
    lost = 0
    for (pool, block), runs in before.items():
        said = (workspace.results / "logs" / "finetune_shard" / pool / f"{block}.log").read_text()
        took_up = re.findall(r"resuming at (\d+) of", said)
        lost += max(0, runs - int(took_up[-1])) if took_up else 0
    return lost


def wait_for_jobs(driver, workspace, jobs):
    """Wait until the driver has seen `jobs` jobs end."""
    screen = workspace.folder / "screen.txt"
    while screen.read_text().count("Finished jobid") < jobs:
        assert driver.poll() is None, screen.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize("with_jobs", [False, True], ids=["jobs live on", "jobs too"])
def test_kill_of_the_driver(tmp_path, straight_study, fault_table, with_jobs):
    workspace = new_workspace(tmp_path / "workflow")
    moments, kills, lost, locked, finished = random.Random(int(with_jobs)), 2, 0, 0, 0
    for _ in range(kills):
        finished += moments.randint(4, 12)
        driver = start(workspace, "--rerun-incomplete")
        wait_for_jobs(driver, workspace, finished)
        time.sleep(moments.uniform(0, 5))
        (os.killpg if with_jobs else os.kill)(driver.pid, signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
        told = workspace.smoke("--rerun-incomplete").stdout
        locked += "Directory cannot be locked" in told and "--unlock" in told
        end_group(driver)
        before = finished_runs(workspace)
        assert workspace.smoke("--unlock").returncode == 0
    again = workspace.smoke("--rerun-incomplete")
    assert again.returncode == 0, again.stdout
    lost = lost_runs(workspace, before)
    assert locked == kills
    wrong = wrong_results(workspace, straight_study)
    fault_table.record(
        f"kill -9 of the driver ({'and its jobs' if with_jobs else 'its jobs live on'})",
        kills,
        "resuming at ... runs, after --unlock and --rerun-incomplete",
        lost=lost,
        wrong=wrong,
    )
    fault_table.record(
        "a stale lock", kills, "Directory cannot be locked ... It can be removed with the --unlock argument"
    )


def test_leftovers_of_killed_jobs(straight_study, tmp_path, fault_table):
    """Halves of files and folders under the temporary names of another machine, and files of another config."""
    workspace = straight_study.copy(tmp_path / "workflow")
    left = 0
    for path in [*workspace.results.rglob("*.parquet"), *workspace.results.rglob("*.html")]:
        path.with_name(f".{path.name}.elsewhere.1.tmp").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        left += 1
    for name in ("encoder", "language_model", "release"):
        half = workspace.results / f".{name}.elsewhere.1.tmp"
        half.mkdir()
        shutil.copy(workspace.results / name / "config.json", half)
        left += 1
    state = workspace.results / ".encoder.0123456789abcdef.state"
    state.mkdir()
    (state / "state.safetensors").write_bytes(b"of another config")
    delete(
        workspace, "targets/heldout/f0000_s0000.parquet", "targets/heldout.parquet", "encoder", "encoder.log.parquet"
    )
    done = workspace.smoke()
    assert done.returncode == 0, done.stdout
    wrong = wrong_results(workspace, straight_study)
    fault_table.record("half-written leftovers of killed jobs", left + 1, "nothing: they are ignored", wrong=wrong)


def test_two_drivers_at_once(straight_study, tmp_path, fault_table):
    workspace = straight_study.copy(tmp_path / "workflow")
    shutil.rmtree(workspace.results / "evaluation")
    first = start(workspace)
    while not list((workspace.folder / ".snakemake" / "locks").glob("*")):
        time.sleep(0.1)
    first.send_signal(signal.SIGSTOP)
    # Without the word a second driver may stop at the file that the first is at work on, before it asks for the lock.
    second = workspace.smoke("--rerun-incomplete")
    assert second.returncode == 1
    assert "lock" in second.stdout
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0, (workspace.folder / "screen.txt").read_text()
    told = next(line for line in second.stdout.splitlines() if "cannot be locked" in line)
    fault_table.record("two drivers at once", 1, told, wrong=wrong_results(workspace, straight_study))


def test_clock_set_back(straight_study, tmp_path, fault_table):
    workspace = straight_study.copy(tmp_path / "workflow")
    for path in (workspace.results / "groups").rglob("*.parquet"):
        os.utime(path, (time.time() + 86_400,) * 2)
    done = workspace.smoke()
    assert done.returncode == 0, done.stdout
    fault_table.record(
        "clock set back a day after half of the study",
        1,
        "what stands below is made again",
        wrong=wrong_results(workspace, straight_study),
    )
