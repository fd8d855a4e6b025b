"""Time and memory of jobs, read from the benchmark files that Snakemake writes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from workflow_scripts.core.errors import StudyError

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


def benchmark_seconds(benchmarks: Path, patterns: Sequence[str]) -> float:
    """Return the wall-clock seconds of all jobs whose benchmark files match.

    Parameters
    ----------
    benchmarks: folder that Snakemake writes the benchmark files of a run to.
    patterns: globs below it; a job counts once for each pattern that matches it.

    Raises
    ------
    StudyError: a pattern matches no file, or one without seconds.
    """
    seconds = 0.0
    for pattern in patterns:
        jobs = read_benchmarks(sorted(benchmarks.glob(pattern)))
        if jobs.empty or jobs["s"].isna().any():
            raise StudyError(
                f"{benchmarks}/{pattern}: no such benchmark file, or one without seconds, so what that stage cost "
                "isn't known. Run it again with this workflow, or drop experiments.amortisation."
            )
        seconds += jobs["s"].sum()
    return seconds
