"""Several processes share work exactly, pass on what they say, and end together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from workflow_scripts.core import distributed as processes
from workflow_scripts.core.distributed import (
    broadcast_from_rank_zero,
    gather_rows,
    is_rank_zero,
    run_in_new_processes,
    run_in_processes,
    shard_indices,
    sum_gradients,
    sum_over_processes,
)
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import metadata_in_force, table_metadata
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_job
from workflow_scripts.core.tracking import Tracking


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def share_work(folder: Path) -> None:
    """Write what this process sees; runs in each of the processes."""
    rank = int(os.environ["RANK"])
    sizes = np.array([5, 1, 9, 2, 7])
    share = shard_indices(sizes)
    own = torch.from_numpy(sizes[share, None] * np.array([[1.0, 10.0]])).float()
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3, 1))]
    parameters[0].grad = torch.full((2,), 1.0 + rank)
    sum_gradients(parameters)
    say(f"process {rank} is here")
    np.savez(
        folder / f"{rank}.npz",
        share=share,
        gathered=gather_rows(own, share, len(sizes)),
        gradient=parameters[0].grad,
        none=parameters[1].grad,
        broadcast_from_rank_zero=broadcast_from_rank_zero([rank + 0.1, "both"]),
        first=is_rank_zero(),
        summed=sum_over_processes(rank + 0.5),
        threads=torch.get_num_threads(),
        stage=metadata_in_force()["stage"],
        deterministic=torch.are_deterministic_algorithms_enabled(),
        listening=[one.laddr.ip for one in psutil.Process().net_connections("tcp") if one.status == psutil.CONN_LISTEN],
        interface=os.environ.get("GLOO_SOCKET_IFNAME", ""),
    )


def test_two_processes_share_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with table_metadata(stage="a_stage"):
        work = run_in_processes(share_work, 2, folder=tmp_path)
    assert work.clock > 0
    assert work.processor > 0
    seen = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    assert sorted(np.concatenate([one["share"] for one in seen])) == [0, 1, 2, 3, 4]
    for one in seen:
        assert one["gathered"].tolist() == [[5, 50], [1, 10], [9, 90], [2, 20], [7, 70]]
        assert one["gradient"].tolist() == [3, 3]
        assert one["none"].tolist() == [[0], [0], [0]]
        assert one["broadcast_from_rank_zero"].tolist() == ["0.1", "both"]
        assert one["summed"] == 2
        assert one["threads"] == 2
        assert one["stage"] == "a_stage"
        assert not one["deterministic"]
        # They meet on the machine's loopback, whatever its name.
        assert one["listening"].size
        assert set(one["listening"]) <= {"127.0.0.1", "::1"}
        # Where this machine's name leads home anyway, the addresses alone tell nothing.
        assert one["interface"] in ("lo", "lo0")
    assert [one["first"] for one in seen] == [True, False]
    said = capsys.readouterr().err
    assert "process 0 is here" in said
    assert "process 1 is here" not in said


def test_shares_are_balanced_and_whole(monkeypatch):
    sizes = np.random.default_rng(0).integers(1, 500, 1000)
    monkeypatch.setattr("workflow_scripts.core.distributed.in_group", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        shares.append(shard_indices(sizes))
    assert sorted(np.concatenate(shares)) == list(range(1000))
    totals = [sizes[share].sum() for share in shares]
    assert max(totals) - min(totals) <= sizes.max()


@pytest.mark.parametrize("place", ["a_stage.py", "a_domain/a_stage.py"])
def test_a_script_is_imported_from_its_folder_of_the_package(place):
    script = {"__name__": "__main__", "__file__": str(Path(processes.workflow_scripts.__file__).parent / place)}
    exec("def a_stage(): pass", script)
    module = "workflow_scripts." + place.removesuffix(".py").replace("/", ".")
    assert processes._importable_module(script["a_stage"]) == module


def test_a_script_is_found_in_a_clone_behind_a_link(monkeypatch, tmp_path):
    (tmp_path / "clone" / "workflow_scripts").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "clone")
    package = tmp_path / "link" / "workflow_scripts" / "__init__.py"
    monkeypatch.setattr(processes, "workflow_scripts", SimpleNamespace(__file__=str(package)))
    # Snakemake follows links, Python's import doesn't.
    script = {"__name__": "__main__", "__file__": str(tmp_path / "clone" / "workflow_scripts" / "a_stage.py")}
    exec("def a_stage(): pass", script)
    assert processes._importable_module(script["a_stage"]) == "workflow_scripts.a_stage"


def test_one_process_is_this_one():
    seen = []
    run_in_processes(lambda **arguments: seen.append((os.getpid(), arguments)), 1, value=3)
    assert seen == [(os.getpid(), {"value": 3})]
    sizes = np.array([3, 1, 2])
    own = torch.tensor([[1.0], [2.0], [3.0]])
    assert shard_indices(sizes).tolist() == [0, 1, 2]
    assert gather_rows(own, shard_indices(sizes), 3).equal(own)
    assert broadcast_from_rank_zero(0.1) == 0.1
    assert is_rank_zero()


def say_whether_deterministic(folder: Path) -> None:
    """Write whether this process computes deterministically."""
    (folder / os.environ["RANK"]).write_text(str(torch.are_deterministic_algorithms_enabled()))


def test_processes_are_deterministic_where_the_one_that_starts_them_is(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.are_deterministic_algorithms_enabled", lambda: True)
    run_in_processes(say_whether_deterministic, 2, folder=tmp_path)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["True", "True"]


def say_where(folder: Path, word: str) -> None:
    """Write the number of this process, and whether it is one of a group."""
    say(f"the word is {word}")
    (folder / "where").write_text(json.dumps([os.getpid(), processes.in_group()]))


def test_one_new_process_is_another_one_and_no_group(tmp_path, capsys):
    run_in_new_processes(say_where, 1, folder=tmp_path, word="here")
    number, in_group = json.loads((tmp_path / "where").read_text())
    assert number != os.getpid()
    assert not in_group
    assert "the word is here" in capsys.readouterr().err


def write_tracking(out: Path, tracking: Tracking) -> None:
    out.write_text(f"{tracking.tracker} {tracking.folder.name}")


def test_which_tracker_is_used_reaches_every_process(tmp_path):
    tracking = Tracking("tensorboard", tmp_path / "curves")
    run_in_new_processes(write_tracking, 1, out=tmp_path / "out", tracking=tracking)
    assert (tmp_path / "out").read_text() == "tensorboard curves"


def fail(how: str) -> None:
    """Fail in the second process while the first one waits for it."""
    if not is_rank_zero():
        if how == "killed":
            print("last words", flush=True)
            os._exit(7)
        raise StudyError("mend the file") if how == "study" else ValueError("a fault")
    broadcast_from_rank_zero(gather_rows(torch.ones(1, 1), np.array([0]), 1).item())
    time.sleep(600)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("study", StudyError, "^mend the file$"),
        ("fault", RuntimeError, "process 1 failed:\n(.|\n)*ValueError: a fault"),
        ("killed", RuntimeError, "process 1 ended with code 7\n(.|\n)*last words"),
    ],
)
def test_one_that_fails_ends_all_and_says_why(how, error, message):
    with pytest.raises(error, match=message):
        run_in_processes(fail, 2, how=how)


def wait(folder: Path) -> None:
    """Write this process's number, then wait."""
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def test_processes_end_with_the_one_that_started_them(tmp_path):
    here = Path(__file__)
    code = f"""
import sys
sys.path.insert(0, {str(here.parent)!r})
from {here.stem} import Path, run_in_processes, wait
run_in_processes(wait, 2, folder=Path({str(tmp_path)!r}))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path.parent)})
    try:
        while len(started := [path for path in tmp_path.iterdir() if path.name.isdigit()]) < 2:
            assert parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    left = [psutil.Process(int(path.name)) for path in started if psutil.pid_exists(int(path.name))]
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive


def test_a_job_with_processes_runs_its_stage_in_them(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "workflow_scripts.core.distributed.run_in_processes", lambda *names, **values: asked.append((*names, values))
    )
    monkeypatch.setattr("workflow_scripts.core.stage._use_threads", lambda threads: None)
    job = SimpleNamespace(
        rule="wait",
        params=SimpleNamespace(spec={"version": 1, "value": 5}),
        input={"folder": "a/folder"},
        output={},
        threads=1,
        log=[tmp_path / "log"],
        resources={"processes": 2},
    )
    run_job(job, wait)
    assert asked == [(wait, 2, {"folder": Path("a/folder"), "value": 5})]


def test_fewer_gpus_than_processes_is_said(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(StudyError, match=r"3 processes, but the job has 2 GPU\(s\)"):
        run_in_processes(fail, 3)
