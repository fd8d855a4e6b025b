"""How far a study is, from its files alone: nothing has to be running, here or on a cluster.

Run: python -m workflow_scripts.show_status [CONFIG]
"""

import argparse
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from workflow_scripts.lib.config import load_study
from workflow_scripts.lib.errors import StudyError
from workflow_scripts.lib.specs import StudyPlan
from workflow_scripts.lib.tables import read_table

RECENT_SECONDS = 600


@dataclass(frozen=True)
class PoolStatus:
    """Fine-tuning runs of one pool: all, finished, diverged; jobs that wrote lately; seconds left, if known."""

    pool: str
    runs: int
    finished: int
    diverged: int
    jobs_at_work: int
    seconds_left: float | None
    judged_examples: int | None


def pool_status(plan: StudyPlan, pool: str, now: float) -> PoolStatus:
    """Read the status of a pool's fine-tuning from its folder, including the runs of unfinished jobs."""
    folds, subsets, seeds = plan.runs(pool)
    judged = plan.judged_examples(pool)
    folder = Path("results") / plan.study.run / "targets" / pool
    finished = diverged = at_work = 0
    rate = 0.0
    for block in plan.blocks(pool):
        whole = folder / f"{block}.parquet"
        singles = sorted(folder.glob(f".{block}.*.runs/*.parquet"), key=lambda path: path.stat().st_mtime)
        if whole.exists() and not singles:
            # `tests: null`: how many there are is known from the first losses on.
            judged = judged or len(pc.unique(read_table(whole, ["example_id"])["example_id"]))
            finished += pq.read_metadata(whole).num_rows // judged
            diverged += pc.sum(pc.equal(read_table(whole, ["status"])["status"], "diverged")).as_py() // judged
            continue
        finished += len(singles)
        if singles and now - singles[-1].stat().st_mtime < RECENT_SECONDS:
            at_work += 1
            took = singles[-1].stat().st_mtime - singles[0].stat().st_mtime
            rate += (len(singles) - 1) / took if took > 0 else 0.0
    runs = folds * subsets * seeds
    left = (runs - finished) / rate if rate else None
    return PoolStatus(pool, runs, finished, diverged, at_work, left, judged)


def show(plan: StudyPlan) -> None:
    """Print the status of every pool and of the stages that follow."""
    results = Path("results") / plan.study.run
    print(f"Study {plan.study.run}: {results}")
    print(f"  {'pool':<16}{'runs done':>16}{'targets done':>28}{'diverged':>10}{'jobs at work':>14}  time left")
    for pool in plan.pools:
        status = pool_status(plan, pool, time.time())
        runs = f"{status.finished:,} of {status.runs:,}"
        size = status.judged_examples
        targets = f"{status.finished * size:,} of {status.runs * size:,}" if size else "?"
        done = status.finished >= status.runs
        left = "done" if done else "?" if status.seconds_left is None else timedelta(seconds=round(status.seconds_left))
        print(f"  {pool:<16}{runs:>16}{targets:>28}{status.diverged:>10,}{status.jobs_at_work:>14}  {left}")
    for name, path in {
        "targets": results / "targets" / "train.parquet",
        "encoder": results / "encoder",
        "LDS": results / "evaluation" / "lds.parquet",
        "report": results / "report.html",
    }.items():
        print(f"  {name:<16}{'there: ' + str(path) if path.exists() else 'not yet':>16}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, default=Path("config.yaml"), help="the study's config")
    path = parser.parse_args().config
    try:
        if not path.exists():
            raise StudyError(f"there is no config {path}; write the path of a study's YAML file")
        show(StudyPlan(load_study(yaml.safe_load(path.read_text()), origin=str(path))))
    except StudyError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
