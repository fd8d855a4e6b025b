"""A job script in a fork ends, prints, dies and is measured as in a Python of its own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from forked_jobs import AT_FIRST, SET_BY_RULES, THREADS, count_forks_as_children, fixed, forking_python
from workspace import FORKS_JOBS

from workflow_scripts.core.benchmark_files import read_benchmarks

pytestmark = pytest.mark.skipif(not FORKS_JOBS, reason="jobs aren't forked on this machine")
# As Snakemake and rules/common.smk give it to a job.
OF_A_JOB = {**os.environ, **SET_BY_RULES, **dict.fromkeys(THREADS, "2")}
IS_FORK = "import sys; print('pandas' in sys.modules and 'torch' in sys.modules)\n"


def start(folder: Path, text: str, *words: str, **changes: str) -> subprocess.Popen[str]:
    (folder / "job.py").write_text(text)
    command = [forking_python(), *words, "job.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env={**OF_A_JOB, **changes}, text=True, **pipes)


def run(folder: Path, text: str, *words: str, given: str = "", **changes: str) -> tuple[int, str, str]:
    job = start(folder, text, *words, **changes)
    printed, complaints = job.communicate(given)
    return job.returncode, printed, complaints


def test_the_tests_before_have_changed_nothing_that_libraries_read():
    """Otherwise all jobs from now on are new processes: the assertion names the variables."""
    assert fixed({**os.environ, **SET_BY_RULES}) == fixed({**AT_FIRST, **SET_BY_RULES})


def test_a_script_has_the_libraries_and_what_the_command_has(tmp_path):
    (tmp_path / "beside.py").write_text("")
    text = (
        IS_FORK + "import beside, os, torch; print(__name__, sys.argv, os.getcwd(), os.environ['HF_TOKEN'], input())\n"
    )
    text += f"print(sys.executable == {sys.executable!r}, torch.get_num_threads()); print('so', file=sys.stderr)"
    code, printed, complaints = run(tmp_path, text, given="read", HF_TOKEN="other")
    expected = f"True\n__main__ ['job.py'] {tmp_path} other read\nTrue 2\n"
    assert (code, printed, complaints) == (0, expected, "so\n")


@pytest.mark.parametrize(
    ("text", "code", "complaint"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("raise ValueError('wrong')", 1, "ValueError: wrong\n"),
        ("import sys; sys.exit('stop')", 1, "stop\n"),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM, ""),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
    ],
)
def test_the_command_ends_as_the_script_does(tmp_path, text, code, complaint):
    ended, printed, complaints = run(tmp_path, text)
    assert (ended, printed) == (code, "")
    assert complaints.endswith(complaint)
    assert bool(complaints) == bool(complaint)


def test_what_is_registered_for_the_end_is_done(tmp_path):
    text = "import atexit, threading, time\natexit.register(print, 'end')\n"
    text += "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\nprint('script')"
    assert run(tmp_path, text) == (0, "script\nthread\nend\n", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_command_ends_its_script(tmp_path, number):
    job = start(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    script = psutil.Process(int(job.stdout.readline()))
    job.send_signal(number)
    assert job.wait() == -number
    script.wait(timeout=60)


def test_scripts_run_at_the_same_time(tmp_path):
    """Each waits for what the other writes."""
    text = (
        "import os, pathlib, time\npathlib.Path({own!r}).touch()\nwhile not os.path.exists({other!r}): time.sleep(0.01)"
    )
    jobs = []
    for own, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"folder_{own}").mkdir()
        names = {"own": str(tmp_path / own), "other": str(tmp_path / other)}
        jobs.append(start(tmp_path / f"folder_{own}", text.format(**names)))
    assert [job.wait() for job in jobs] == [0, 0]


@pytest.mark.parametrize("name", ["PYTHONHASHSEED", "HF_HOME", "TORCH_HOME", "CUDA_VISIBLE_DEVICES"])
def test_other_values_of_what_imports_read_have_a_new_process(tmp_path, name):
    assert run(tmp_path, IS_FORK, **{name: "0"}) == (0, "False\n", "")


def test_the_server_has_the_environment_that_the_tests_began_with(monkeypatch):
    """Or else the first test with a variable of its own would leave forks to none of the others."""
    asked = []
    server = SimpleNamespace(communicate=lambda: None, stdout=io.BytesIO(b"ready"))
    monkeypatch.setattr("subprocess.Popen", lambda command, env, **pipes: asked.append(env) or server)
    monkeypatch.setenv("HF_HOME", "of this test alone")
    forking_python.__wrapped__()
    assert asked[0].get("HF_HOME") != "of this test alone"


def test_what_is_no_script_alone_has_a_new_process(tmp_path):
    assert run(tmp_path, IS_FORK, "-u") == (0, "False\n", "")


def test_every_script_imports_the_modules_of_its_own_workspace(tmp_path):
    for content in ("one", "other"):
        package = tmp_path / content / "workflow_scripts"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"CONTENT = {content!r}")
        text = (
            f"import sys; sys.path.insert(0, {str(package.parent)!r}); import workflow_scripts as w; print(w.CONTENT)"
        )
        assert run(tmp_path / content, text) == (0, f"{content}\n", "")


def test_a_script_counts_as_the_commands_child(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil.Process, "children", psutil.Process.children)
    count_forks_as_children(forking_python())
    job = start(tmp_path, "import os; print(os.getpid(), flush=True); input()")
    script = int(job.stdout.readline())
    assert [one.pid for one in psutil.Process(job.pid).children(recursive=True)] == [script]
    assert script in [one.pid for one in psutil.Process().children(recursive=True)]
    job.communicate("\n")
    assert script not in [one.pid for one in psutil.Process().children(recursive=True)]


def test_jobs_of_snakemake_are_forks_and_their_memory_is_measured(fresh):
    """Or else all tests pass as well, but take twice as long."""
    stage = fresh.folder / "workflow_scripts" / "corpora" / "prepare_corpus.py"
    # Snakemake looks at a job's memory twice a second.
    said = "\nimport sys\nprint('forked:', 'torch' in sys.modules, file=sys.stderr)\ntime.sleep(3)\n"
    stage.write_text(stage.read_text() + said)
    done = fresh.smoke("results/smoke/corpora/tests.parquet")
    assert done.returncode == 0, done.stdout
    assert "forked: True" in done.stdout
    (job,) = read_benchmarks([fresh.results / "benchmarks" / "prepare_corpus" / "tests.tsv"]).to_dict("records")
    # The libraries alone; the command that waits for the script has a tenth of that.
    assert job["max_rss"] > 100
