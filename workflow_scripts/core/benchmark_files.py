"""Time and memory of jobs, from the benchmark files that Snakemake writes and the records beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.timing import UNKNOWN, Seconds, record_of, total

MEASURED = ["s", "cpu_time", "max_rss"]


def read_benchmarks(paths: Iterable[Path]) -> pd.DataFrame:
    """Return one row per repeat of a job: its file `path`, `s` and `cpu_time` (seconds), and `max_rss` (MiB).

    The last three are float64; what Snakemake could not measure, because a job ended too soon, is NaN.
    """
    rows = []
    for path in paths:
        # pandas.read_csv takes many times as long for a file of one row.
        with open(path, encoding="utf-8", newline="") as file:
            rows += [{"path": path, **row} for row in csv.DictReader(file, delimiter="\t")]
    jobs = pd.DataFrame(rows, columns=["path", *MEASURED])
    return jobs.assign(**jobs[MEASURED].apply(pd.to_numeric, errors="coerce"))


@dataclass(frozen=True)
class JobsWork:
    """The work of some jobs.

    Parameters
    ----------
    seconds: of their work, without their start-up (`core.timing`).
    without_record: how many of them count with their start-up, because they ran before jobs recorded the two apart.
    """

    seconds: Seconds
    without_record: int


def read_record(benchmark: Path) -> tuple[Seconds, Seconds] | None:
    """Return the start-up and the work of the job that a benchmark file belongs to; None if it has no record."""
    record = record_of(benchmark)
    if not record.exists():
        return None
    entries = json.loads(record.read_text(encoding="utf-8"))
    return Seconds.read(entries, "start_up"), Seconds.read(entries, "work")


def recorded_work(benchmarks: Path, patterns: Sequence[str] | None) -> Seconds:
    """Return the work of all jobs whose benchmark files match; NaN if it isn't known.

    That is so if `patterns` is None, if one of them matches no file, or if a job has no record. Parameters as in
    `work_of_jobs`.
    """
    found = [sorted(benchmarks.glob(pattern)) for pattern in patterns or ()]
    records = [read_record(path) for paths in found for path in paths]
    if patterns is None or not all(found):
        return UNKNOWN
    return total(record[1] if record else UNKNOWN for record in records)


def work_of_jobs(benchmarks: Path, patterns: Sequence[str]) -> JobsWork:
    """Return the work of all jobs whose benchmark files match.

    Parameters
    ----------
    benchmarks: folder that Snakemake writes the benchmark files of a run to.
    patterns: globs below it; a job counts once for each pattern that matches it.

    Raises
    ------
    StudyError: a pattern matches no file, or one without seconds.
    """
    works, without_record = [], 0
    for pattern in patterns:
        jobs = read_benchmarks(sorted(benchmarks.glob(pattern)))
        if jobs.empty or jobs["s"].isna().any():
            raise StudyError(
                f"{benchmarks}/{pattern}: no such benchmark file, or one without seconds, so what that stage cost "
                "isn't known. Run it again with this workflow, or drop experiments.amortisation."
            )
        for path in jobs["path"].unique():
            rows = jobs[jobs["path"] == path]
            record = read_record(path)
            without_record += record is None
            whole = Seconds(rows["s"].sum(), rows["cpu_time"].sum(skipna=False))
            works.append(record[1] if record else whole)
    return JobsWork(total(works), without_record)
