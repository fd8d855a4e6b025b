import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu_acceptance.py"
# Neither these nor a hub may be needed where the script runs.
WITHOUT = ("snakemake", "deepspeed", "datasets", "bm25s", "sentence_transformers")
RUN = (
    "import runpy, sys\n"
    f"for name in {WITHOUT!r}:\n"
    "    sys.modules[name] = None\n"
    "script = sys.argv[1]\n"
    "sys.argv = sys.argv[1:]\n"
    "sys.path.insert(0, script.rpartition('/')[0])\n"
    "runpy.run_path(script, run_name='__main__')\n"
)


def test_every_check_passes_on_a_cpu_where_only_the_libraries_of_the_models_are_installed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(SCRIPT), "--device", "cpu", "--out", str(tmp_path / "out.json")]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)

    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    cases = json.loads((tmp_path / "out.json").read_text())["cases"]
    rows = [row for case in cases.values() for row in case["rows"]]
    assert {case["state"] for case in cases.values()} == {"ended"}
    assert not [line for line in lines if line.startswith("FAIL")]
    assert sum(row["verdict"] == "PASS" for row in rows) >= 40
    # What a CPU can't do is said, and counts as neither.
    assert {row["words"] for row in rows if row["verdict"] == "SKIPPED"} == {
        "compiled on a GPU alone",
        "no CUDA graphs on this device",
        next(row["words"] for row in rows if "no such kernel" in row["words"]),
    }


@pytest.fixture
def record(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu import record

    return record


def test_a_case_that_raises_is_a_line_and_stops_no_other(record, tmp_path, capsys):
    found = record.Record(tmp_path / "out.json", 60)
    found.run("broken", lambda case: [][1], 1)
    found.run("wrong", lambda case: case.check("difference", 2.0, 1.0), 1)
    found.run("undefined", lambda case: case.check("difference", float("nan"), 1.0), 1)
    found.run("right", lambda case: case.check("difference", 0.5, 1.0), 1)

    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["FAIL", "FAIL", "FAIL", "PASS"]
    assert found.counts() == {"PASS": 1, "FAIL": 3, "SKIPPED": 0}
    written = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert "IndexError" in written["broken"]["traceback"]
    assert written["wrong"]["rows"][0]["measured"] == 2.0


def test_what_no_longer_fits_the_time_is_skipped_and_never_passes(record, tmp_path):
    found = record.Record(tmp_path / "out.json", 2)
    found.run("too long", lambda case: case.check("difference", 0.0, 1.0), 60)
    found.run("cut off", lambda case: time.sleep(60), 0)

    assert found.counts() == {"PASS": 0, "FAIL": 0, "SKIPPED": 2}
    assert "60 s needed" in found.cases["too long"]["rows"][0]["words"]


def test_a_run_that_was_stopped_goes_on_and_says_what_it_was_stopped_in(record, tmp_path):
    out = tmp_path / "out.json"
    first = record.Record(out, 60)
    first.run("done", lambda case: case.check("difference", 0.0, 1.0), 1)
    first.cases["lost"] = {"rows": [], "state": "began"}
    first.write()

    second = record.Record(out, 60, resume=True)
    second.run("done", lambda case: case.check("difference", 2.0, 1.0), 1)
    second.run("lost", lambda case: case.check("difference", 0.0, 1.0), 1)
    second.run("new", lambda case: case.check("difference", 0.0, 1.0), 1)

    assert second.counts() == {"PASS": 2, "FAIL": 1, "SKIPPED": 0}
    assert second.cases["lost"]["rows"][0]["words"].endswith("ended in the middle of it")


def test_a_part_that_does_not_exist_is_refused(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    # The module sets variables for the process that it is run as.
    with patch.dict(os.environ):
        import gpu_acceptance
    with pytest.raises(SystemExit) as ended:
        gpu_acceptance.main(["--only", "atention"])
    assert ended.value.code == 2
    assert "'atention' is none of environment, attention" in capsys.readouterr().err
