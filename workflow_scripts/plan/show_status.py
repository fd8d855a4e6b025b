"""Print the progress of a study, from its files alone: nothing has to be running, here or on a cluster.

Run: python -m workflow_scripts.plan.show_status [CONFIG]
"""

import argparse
import contextlib
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.timing import benchmark_of_log
from workflow_scripts.provenance.verify import matches_spec
from workflow_scripts.report.formatting import duration
from workflow_scripts.report.results import read_plan
from workflow_scripts.study.artifacts import Artifact, artifacts, benchmark_stages
from workflow_scripts.study.config_files import read_study
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.specs import StageSpecs

# Long stages say something every ten seconds; a job that is silent for so long has ended or waits.
RECENT_SECONDS = 600
JOBS_SHOWN, SHOWN_CHARACTERS = 10, 160
FAILURE = re.compile(r"^(?:error in \w+: .*|\w*(?:Error|Exception|Interrupt)\b.*)", re.MULTILINE)


@dataclass(frozen=True)
class PoolStatus:
    """Progress of the fine-tuning runs of one pool.

    Parameters
    ----------
    pool: name of the pool.
    runs: number of runs of the study.
    finished: number of finished runs.
    diverged: number of runs that diverged.
    jobs_at_work: number of jobs that finished a run within the last ten minutes.
    seconds_left: wall seconds until all runs are finished at the current rate; None if there is none.
    measured_examples: number of examples that each run is evaluated on; None if not known yet.
    """

    pool: str
    runs: int
    finished: int
    diverged: int
    jobs_at_work: int
    seconds_left: float | None
    measured_examples: int | None


@dataclass(frozen=True)
class JobStatus:
    """A job that has a log and hasn't finished.

    Parameters
    ----------
    job: `<rule>` or `<rule>/<wildcards>`.
    state: `failed`, `at work` or `stopped`.
    said: its error, or the last line of its log.
    """

    job: str
    state: str
    said: str


def pool_status(plan: StudyPlan, pool: str, now: float, done: Collection[Path]) -> PoolStatus:
    """Return the progress of a pool's fine-tuning, including the runs of unfinished jobs.

    Results of other values don't count.

    Parameters
    ----------
    plan: what the study runs.
    pool: name of the pool.
    now: the time, in seconds since the epoch.
    done: the study's results that were made with its values.
    """
    folds, subsets, seeds = plan.runs(pool)
    measured = plan.measured_examples(pool)
    finished = diverged = at_work = 0
    rate = 0.0
    for block in plan.blocks(pool):
        whole = plan.results / "targets" / pool / f"{block}.parquet"
        if whole in done:
            # `tests: null`: how many there are is known from the first losses on.
            measured = measured or len(pc.unique(read_table(whole, ["example_id"])["example_id"]))
            finished += pq.read_metadata(whole).num_rows // measured
            diverged += pc.sum(pc.equal(read_table(whole, ["status"])["status"], "diverged")).as_py() // measured
            continue
        times = _times_of_runs(whole)
        finished += len(times)
        if times and now - times[-1] < RECENT_SECONDS:
            at_work += 1
            took = times[-1] - times[0]
            rate += (len(times) - 1) / took if took > 0 else 0.0
    runs = folds * subsets * seeds
    left = (runs - finished) / rate if rate else None
    return PoolStatus(pool, runs, finished, diverged, at_work, left, measured)


def _times_of_runs(block: Path) -> list[float]:
    """Return when each run of an unfinished job was written, sorted; of jobs with other values, the last one counts."""
    of_jobs: dict[Path, list[float]] = defaultdict(list)
    for path in block.parent.glob(f".{block.stem}.*.runs/*.parquet"):
        # The job may finish meanwhile, and then deletes them.
        with contextlib.suppress(FileNotFoundError):
            of_jobs[path.parent].append(path.stat().st_mtime)
    return sorted(max(of_jobs.values(), key=max, default=[]))


def unfinished_jobs(plan: StudyPlan, now: float) -> Iterator[JobStatus]:
    """Yield the jobs that have started and not finished; a finished job has a benchmark file newer than its log.

    Logs of jobs that the study no longer has don't count.

    A job that was killed leaves no message; after ten minutes without a line it counts as stopped.

    Parameters
    ----------
    plan: what the study runs.
    now: the time, in seconds since the epoch.
    """
    logs, benchmarks = plan.results / "logs", plan.results / "benchmarks"
    known = {benchmarks / path for path in benchmark_stages(StageSpecs(plan))}
    for log in sorted(logs.rglob("*.log")):
        # A name has no dot; that of a part, or of a format, has one.
        job = log.relative_to(logs).with_name(log.name.removesuffix(".log"))
        benchmark = benchmark_of_log(log, job.parts[0].partition("@")[0])
        if benchmark not in known:
            continue
        written = log.stat().st_mtime
        if benchmark.exists() and benchmark.stat().st_mtime >= written:
            continue
        words = log.read_text(encoding="utf-8", errors="replace")
        if failures := FAILURE.findall(words):
            yield JobStatus(str(job), "failed", failures[-1])
        else:
            state = "at work" if now - written < RECENT_SECONDS else "stopped"
            yield JobStatus(str(job), state, next(reversed(words.strip().splitlines()), ""))


def seconds_left(plan: StudyPlan, pools: Sequence[PoolStatus], done: Iterable[Artifact]) -> float | None:
    """Return the wall seconds of what isn't done yet according to `plan.json`; None without one of this study.

    For fine-tuning the share of runs that is done counts, for other stages the share of jobs whose results are there,
    made with the study's config. Results that will be made again because of their inputs alone count as done.
    """
    specs = StageSpecs(plan)
    planned = read_plan(plan.results / "plan.json", specs)
    if planned is None:
        return None
    jobs = Counter(one.counted_as for one in done)
    # Of temporary results, that the job has run is known.
    jobs |= Counter(
        stage
        for benchmark, stage in benchmark_stages(specs).items()
        if stage.startswith("score_part") and (plan.results / "benchmarks" / benchmark).exists()
    )
    left = 0.0
    for stage in planned["stages"]:
        if stage["stage"] == "finetune_shard":
            share = sum(pool.finished for pool in pools) / sum(pool.runs for pool in pools)
        else:
            share = jobs[stage["stage"]] / stage["jobs"]
        left += stage["wall_seconds"] * max(1 - share, 0.0)
    return left


def status_text(plan: StudyPlan, now: float) -> str:
    """Return the status of every pool, of the stages that follow, and of unfinished jobs, as text.

    Parameters
    ----------
    plan: what the study runs.
    now: the time, in seconds since the epoch.
    """
    results = plan.results
    found = {one.path: one for one in artifacts(StageSpecs(plan))}
    done = {path: one for path, one in found.items() if matches_spec(one)}
    pools = [pool_status(plan, pool, now, done) for pool in plan.pools]
    lines = [f"Study {plan.study.run}: {results}"]
    if pools:
        heading = f"  {'pool':<16}{'runs done':>16}{'targets done':>28}{'diverged':>10}{'jobs at work':>14}  time left"
        lines += [heading, *map(_pool_line, pools)]
    for name, (path, artifact) in _milestones(plan).items():
        is_there = f"there: {path}" if artifact in done else f"of other values: {path}"
        lines.append(f"  {name:<16}{is_there if path.exists() else 'not yet':>16}")
    jobs = list(unfinished_jobs(plan, now))
    for state in ("failed", "stopped", "at work"):
        of_state = [job for job in jobs if job.state == state]
        lines += [f"Jobs {state}: {len(of_state)}"] if of_state or state == "failed" else []
        lines += [f"  {job.job}: {job.said[:SHOWN_CHARACTERS]}" for job in of_state[:JOBS_SHOWN]]
        lines += [f"  and {len(of_state) - JOBS_SHOWN} more"] if len(of_state) > JOBS_SHOWN else []
    left = seconds_left(plan, pools, done.values())
    if not jobs and len(done) == len(found):
        lines.append("Time left: none, all is done")
    elif left is None:
        lines.append("Time left: unknown without a plan (make plan)")
    else:
        lines.append(f"Time left by the plan: {duration(left)}")
    return "\n".join(lines)


def _milestones(plan: StudyPlan) -> dict[str, tuple[Path, Path]]:
    """Return the main results of this study, and of each the artifact that says what it was made with.

    Without targets or an LDS, those are not among them.
    """
    encoder = "encoder.log.parquet" if plan.study.targets else "encoder"
    ends = [
        ("targets", "targets/train.parquet", "targets/train.parquet", plan.study.targets),
        ("encoder", "encoder", encoder, plan.study.targets or plan.trained_methods()),
        ("LDS", "evaluation/lds.parquet", "evaluation/lds.parquet", plan.lds_evaluations),
        ("report", "report.html", "report.html", True),
    ]
    return {name: (plan.results / path, plan.results / artifact) for name, path, artifact, is_made in ends if is_made}


def _pool_line(status: PoolStatus) -> str:
    runs = f"{status.finished:,} of {status.runs:,}"
    size = status.measured_examples
    targets = f"{status.finished * size:,} of {status.runs * size:,}" if size else "?"
    done = status.finished >= status.runs
    left = "done" if done else "?" if status.seconds_left is None else timedelta(seconds=round(status.seconds_left))
    return f"  {status.pool:<16}{runs:>16}{targets:>28}{status.diverged:>10,}{status.jobs_at_work:>14}  {left}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, default=Path("config.yaml"), help="the study's config")
    path = parser.parse_args().config
    try:
        print(status_text(StudyPlan(read_study(path)), time.time()))
    except StudyError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
