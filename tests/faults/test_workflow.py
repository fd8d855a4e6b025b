"""The whole workflow under faults: after the user did what the message says, every result is that of a straight run."""

import hashlib
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
from workspace import new_workspace

pytestmark = pytest.mark.slow

MEASURED = {"seconds"}
RESULTS = "results/smoke"
# What is deleted and asked for, so that a stage runs alone.
OUTPUTS = {
    "resolve_config": ["provenance.json", "config.resolved.yaml"],
    "prepare_corpus": ["corpora/pool.parquet", "corpora/pool.rejected.parquet"],
    "pretrain_base_lm": ["language_model"],
    "tokenize_corpus": ["tokens/pool.parquet", "tokens/pool.rejected.parquet"],
    "sample_subsets": ["subsets/heldout.parquet", "subsets/heldout.validation.parquet"],
    "finetune_shard": ["targets/heldout/f0000_s0000.parquet"],
    "collect_targets": ["targets/heldout.parquet"],
    "init_encoder": ["encoder_untrained"],
    "train_encoder": ["encoder", "encoder.log.parquet"],
    "embed_corpus": ["embeddings/trained/pool.parquet"],
    "score_pairs": ["scores/airrep/heldout.parquet", "groups/airrep/heldout.parquet"],
    "check_leaks": ["evaluation/leaks.parquet"],
    "evaluate_lds": ["evaluation/lds.parquet", "evaluation/differences.parquet"],
    "package_encoder": ["release"],
    "write_report": ["report.html"],
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The smoke study without a fault."""
    workspace = new_workspace(tmp_path_factory.mktemp("straight") / "workflow")
    done = workspace.smoke()
    assert done.returncode == 0, done.stdout
    return workspace


def results_of(workspace):
    """Everything that a study computes, but for measured times: tables, and the bytes of the models' weights."""
    found = {}
    for path in sorted(workspace.results.rglob("*")):
        name = str(path.relative_to(workspace.results))
        if "/." in f"/{name}":
            continue
        if path.suffix == ".parquet":
            table = pq.read_table(path).replace_schema_metadata(None)
            found[name] = table.drop_columns([column for column in table.column_names if column in MEASURED])
        elif path.suffix == ".safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def delete(workspace, *stages):
    """Delete what stages made."""
    for stage in stages:
        for name in OUTPUTS[stage]:
            path = workspace.results / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def wrong_results(workspace, straight):
    expected, found = results_of(straight), results_of(workspace)
    assert expected.keys() == found.keys()
    return sum(found[name] != expected[name] for name in expected)


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
        took_up = re.findall(r"going on from (\d+) of", said)
        lost += max(0, runs - int(took_up[-1])) if took_up else 0
    return lost


def wait_for_jobs(driver, workspace, jobs):
    """Wait until the driver has seen `jobs` jobs end."""
    screen = workspace.folder / "screen.txt"
    while screen.read_text().count("Finished jobid") < jobs:
        assert driver.poll() is None, screen.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize("with_jobs", [False, True], ids=["jobs live on", "jobs too"])
def test_kill_of_the_driver(tmp_path, straight, fault_table, with_jobs):
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
    wrong = wrong_results(workspace, straight)
    fault_table.record(
        f"kill -9 of the driver ({'and its jobs' if with_jobs else 'its jobs live on'})",
        kills,
        "going on from ... runs, after --unlock and --rerun-incomplete",
        lost=lost,
        wrong=wrong,
    )
    fault_table.record(
        "a stale lock", kills, "Directory cannot be locked ... It can be removed with the --unlock argument"
    )


def test_leftovers_of_killed_jobs(straight, tmp_path, fault_table):
    """Halves of files and folders under the temporary names of another machine, and files of another config."""
    workspace = straight.copy(tmp_path / "workflow")
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
    delete(workspace, "finetune_shard", "collect_targets", "train_encoder")
    done = workspace.smoke()
    assert done.returncode == 0, done.stdout
    wrong = wrong_results(workspace, straight)
    fault_table.record("half-written leftovers of killed jobs", left + 1, "nothing: they are ignored", wrong=wrong)


def test_two_drivers_at_once(straight, tmp_path, fault_table):
    workspace = straight.copy(tmp_path / "workflow")
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
    fault_table.record("two drivers at once", 1, told, wrong=wrong_results(workspace, straight))


def test_clock_set_back(straight, tmp_path, fault_table):
    workspace = straight.copy(tmp_path / "workflow")
    for path in (workspace.results / "groups").rglob("*.parquet"):
        os.utime(path, (time.time() + 86_400,) * 2)
    done = workspace.smoke()
    assert done.returncode == 0, done.stdout
    fault_table.record(
        "clock set back a day after half of the study",
        1,
        "what stands below is made again",
        wrong=wrong_results(workspace, straight),
    )


@pytest.fixture
def small_disk(straight, tmp_path):
    """The finished study on a disk of its own, and the folder where that is mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a disk")
    workspace = straight.copy(tmp_path / "workflow")
    shutil.copytree(workspace.results, disk / "smoke")
    shutil.rmtree(workspace.results)
    workspace.results.symlink_to(disk / "smoke")
    yield workspace, disk
    subprocess.run(["mount", "-o", "remount,rw", disk], check=False)
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk):
    with open(disk / "ballast", "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def test_the_disk_tests_know_every_stage_of_the_study(straight):
    assert OUTPUTS.keys() == {path.name.removesuffix(".log") for path in (straight.results / "logs").iterdir()}


@pytest.mark.parametrize("stage", OUTPUTS)
def test_disk_full(straight, small_disk, fault_table, stage):
    workspace, disk = small_disk
    delete(workspace, stage)
    others = results_of(workspace)
    targets = [f"{RESULTS}/{name}" for name in OUTPUTS[stage]]
    fill(disk)
    full = workspace.smoke(*targets)
    assert full.returncode == 1
    assert "No space left on device" in full.stdout
    assert f"error in {stage}" in full.stdout
    assert "Traceback" not in full.stdout.split("error in")[0]
    lost = len(others.keys() - results_of(workspace).keys())
    (disk / "ballast").unlink()
    again = workspace.smoke(*targets)
    assert again.returncode == 0, again.stdout
    assert not list(workspace.results.rglob("*.tmp"))
    told = full.stdout[full.stdout.index(f"error in {stage}") :].splitlines()[0]
    wrong = wrong_results(workspace, straight)
    fault_table.record(f"disk full in {stage}", 1, told.replace(str(disk), "..."), lost=lost, wrong=wrong)


@pytest.mark.parametrize(
    ("missing", "words"),
    [(["report.html"], "Write-protected output files"), (OUTPUTS["evaluate_lds"], "Read-only file system")],
    ids=["outputs stand there", "no output stands there"],
)
def test_read_only_results(straight, small_disk, fault_table, missing, words):
    """Snakemake itself tells of outputs that it could not replace, the stage of those that it can't write."""
    workspace, disk = small_disk
    for name in missing:
        (workspace.results / name).unlink()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    targets = [f"{RESULTS}/{name}" for name in missing]
    done = workspace.smoke(*targets)
    assert done.returncode == 1
    assert words in done.stdout, done.stdout
    told = next(line for line in done.stdout.splitlines() if words in line)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert workspace.smoke(*targets).returncode == 0
    wrong = wrong_results(workspace, straight)
    fault_table.record("a read-only results folder", 1, told.strip().replace(str(disk), "..."), wrong=wrong)
