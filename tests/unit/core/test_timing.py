"""Start-up and work of a job, on a clock that only the tests move."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from stepped_clock import SteppedClock

from workflow_scripts.core import timing
from workflow_scripts.core.stage import run_job
from workflow_scripts.core.timing import Seconds, benchmark_of_log, record_of, start_work, total

RULES = sorted(Path(__file__).resolve().parents[3].glob("rules/*.smk"))
FILES = re.compile(r'log:\s*f"\{RESULTS\}/(logs/.+?)",\s*benchmark:\s*f"\{RESULTS\}/(benchmarks/.+?)"')


@pytest.fixture
def clock(monkeypatch):
    return SteppedClock(monkeypatch)


def job(folder, rule):
    log = [str(folder / "logs" / rule / "one.log")]
    spec = SimpleNamespace(spec={"version": 1})
    return SimpleNamespace(input={}, output={}, params=spec, threads=1, resources={}, log=log, rule=rule)


def record(folder, rule):
    return json.loads((folder / "benchmarks" / rule / "one.work.json").read_text())


def test_work_begins_with_the_stage_or_where_the_stage_says(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def plain():
        clock.step(2, 3)

    def with_a_model():
        clock.step(40, 20)
        timer = start_work()
        clock.step(2, 3)
        assert (timer.start_up, timer.work()) == (Seconds(140, 70), Seconds(2, 3))

    for stage, start_up in ((plain, Seconds(100, 50)), (with_a_model, Seconds(140, 70))):
        clock.now, clock.used = 0, 0
        clock.step(100, 50)
        run_job(job(tmp_path, stage.__name__), stage)
        entries = record(tmp_path, stage.__name__)
        assert Seconds.read(entries, "start_up") == start_up
        assert Seconds.read(entries, "work") == Seconds(2, 3)
        whole = Seconds.read(entries, "start_up") + Seconds.read(entries, "work")
        assert whole == Seconds(clock.now, clock.used)


def test_a_job_that_fails_leaves_no_record(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def stage():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_job(job(tmp_path, "stage"), stage)
    assert not (tmp_path / "benchmarks").exists()


def test_the_rules_name_logs_and_benchmarks_alike():
    found = [(rule, *files) for path in RULES for rule, files in _files_of_rules(path)]
    assert len(found) > 30
    for rule, log, benchmark in found:
        expected = Path("results/x", benchmark)
        assert benchmark_of_log(Path("results/x", log), rule) == expected, rule
        assert record_of(expected).parent == expected.parent


def _files_of_rules(path):
    for text in re.split(r"\n\s*(?=(?:use )?rule \w+)", path.read_text(encoding="utf-8")):
        rule = re.match(r"(?:use rule \w+ as |rule )(\w+)", text.strip())
        if rule and (files := FILES.search(text)):
            yield rule[1], files.groups()


def test_a_log_elsewhere_has_no_record():
    assert benchmark_of_log(Path("a.log"), "stage") is None


def test_time_spans_are_written_and_read_and_add_up():
    span = Seconds(1.25, 2.5)
    assert Seconds.read(span.texts("embedding"), "embedding") == span
    assert Seconds.read(span.texts()) == span
    # A file of an earlier version knows no processor time.
    old = Seconds.read({"seconds": "3"})
    assert old.clock == 3
    assert math.isnan(old.processor)
    assert total([span, span]) == span * 2 == Seconds(3, 6) - Seconds(0.5, 1)
    assert total([]) == Seconds(0, 0)


def test_the_process_started_when_the_system_says():
    timing._process_start.cache_clear()
    assert timing._process_start() == pytest.approx(psutil.Process().create_time(), abs=2)
