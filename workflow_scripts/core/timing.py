"""How long a job starts up and how long it works, each on the clock and as processor time.

Start-up is everything before the first row of data is read: Python starts, libraries are imported, the job waits for
its GPU, models are loaded. It is the same for ten rows and for ten million. Work is the rest, from the first row read
to the last one written. What a method costs is its work.

A stage's work begins when the stage is called. One that imports libraries or loads a model of its own calls
`start_work` once it has them.

Processor time is that of all threads and of the child processes that have ended, in user and in system mode; a GPU's is
not part of it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from operator import add
from pathlib import Path

from workflow_scripts.core.files import atomic_path

_LOADED = time.time()


@dataclass(frozen=True)
class Seconds:
    """A time span; NaN where it is not known.

    Parameters
    ----------
    clock: seconds on the clock.
    processor: seconds of processor time.
    """

    clock: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.clock + other.clock, self.processor + other.processor)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.clock - other.clock, self.processor - other.processor)

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(self.clock * factor, self.processor * factor)

    def entries(self, name: str = "") -> dict[str, float]:
        """Return {`<name>_seconds`: clock, `<name>_cpu_seconds`: processor}; without a name, no prefix."""
        clock, processor = _keys(name)
        return {clock: self.clock, processor: self.processor}

    def texts(self, name: str = "") -> dict[str, str]:
        """Return `entries` as texts, for the metadata of a file."""
        return {key: f"{value:.4f}" for key, value in self.entries(name).items()}

    @classmethod
    def read(cls, entries: Mapping[str, str | float], name: str = "") -> Seconds:
        """Return what `entries` or `texts` gave for `name`; NaN for what a file from an earlier version lacks."""
        return cls(*(float(entries.get(key, math.nan)) for key in _keys(name)))


NO_TIME = Seconds()
UNKNOWN = Seconds(math.nan, math.nan)


def _keys(name: str) -> tuple[str, str]:
    return (f"{name}_seconds", f"{name}_cpu_seconds") if name else ("seconds", "cpu_seconds")


def total(spans: Iterable[Seconds]) -> Seconds:
    """Return the sum of some time spans."""
    return reduce(add, spans, NO_TIME)


def process_seconds() -> Seconds:
    """Return the time since this process was started, and the processor time that it has used."""
    return Seconds(time.time() - _process_start(), time.process_time() + sum(os.times()[2:4]))


@cache
def _process_start() -> float:
    """Return when this process was started, in seconds since 1970; where /proc doesn't say, when this was imported."""
    try:
        # The name of the program, which is in parentheses, may contain anything.
        after_name = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        since_boot = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, AttributeError):
        return _LOADED


@dataclass(frozen=True)
class WorkTimer:
    """Times the work of this process's job.

    Parameters
    ----------
    start_up: the time from the process's start to the beginning of the work.
    """

    start_up: Seconds

    def work(self) -> Seconds:
        """Return how long the work has taken so far."""
        return process_seconds() - self.start_up


_timer = WorkTimer(NO_TIME)


def start_work() -> WorkTimer:
    """Begin the work of this process's job; what has passed since the process's start is its start-up.

    To be called once a stage has imported its libraries and loaded its models; a later call moves the border.
    """
    if "pyarrow" in sys.modules:
        # With its first array, pyarrow imports pandas.
        sys.modules["pyarrow"].array([0])
    return start_stage()


def start_stage() -> WorkTimer:
    """Begin the work of a stage that is about to be called; one that loads more calls `start_work` itself."""
    global _timer
    _timer = WorkTimer(process_seconds())
    return _timer


def work_so_far() -> Seconds:
    """Return the time since the last `start_work`."""
    return _timer.work()


def write_record(log: Path, rule: str, work: Seconds) -> None:
    """Write the start-up and the work of this process's job beside its benchmark file; nothing if it has none.

    Parameters
    ----------
    log: the job's log.
    rule: name of its rule.
    work: how long its work took, in all its processes; the rest of the time is its start-up.
    """
    benchmark = benchmark_of_log(log, rule)
    if benchmark is None:
        return
    start_up = process_seconds() - work
    with atomic_path(record_of(benchmark)) as temporary:
        values = {**start_up.entries("start_up"), **work.entries("work")}
        temporary.write_text(json.dumps({name: round(value, 4) for name, value in values.items()}) + "\n")


def benchmark_of_log(log: Path, rule: str) -> Path | None:
    """Return a job's benchmark file, as the rules name it by its log; None if the log isn't in a folder `logs`.

    `logs/<rule>/<job>.log` has `benchmarks/<rule>/<job>.tsv`, and `logs/<rule><variant>.log` has
    `benchmarks/<rule>/study<variant>.tsv`.
    """
    if "logs" not in log.parts:
        return None
    at = len(log.parts) - 1 - log.parts[::-1].index("logs")
    folders, name = log.parts[at + 1 : -1], log.name.removesuffix(".log")
    if not folders:
        folders, name = (rule,), f"study{name.removeprefix(rule)}"
    return Path(*log.parts[:at], "benchmarks", *folders, f"{name}.tsv")


def record_of(benchmark: Path) -> Path:
    """Return the file beside a benchmark file that holds the job's start-up and work, as `write_record` wrote it."""
    return benchmark.with_name(f"{benchmark.name.removesuffix('.tsv')}.work.json")
