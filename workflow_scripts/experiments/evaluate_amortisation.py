"""Compute from measured seconds the corpus size from which on an encoder has paid for its training."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workflow_scripts.core.benchmark_files import work_of_jobs
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import write_frame
from workflow_scripts.core.parquet import read_metadata
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import Seconds
from workflow_scripts.study.break_even import Cost, crossover

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("evaluation", pa.string()),
        ("rival", pa.string()),
        ("fixed_seconds", pa.float64()),
        ("seconds_per_example", pa.float64()),
        ("rival_fixed_seconds", pa.float64()),
        ("rival_seconds_per_example", pa.float64()),
        ("crossover_examples", pa.float64()),
        ("jobs_with_start_up", pa.int32()),
    ]
)


def evaluate_amortisation(
    scores: Sequence[Path],
    train: Path,
    table: Path,
    *,
    evaluation: str,
    trained: Sequence[str],
    benchmarks: str,
    fixed: Mapping[str, Sequence[str]],
) -> None:
    """Write the break-even point of every method with a trained encoder and every other method.

    All seconds are work on the clock, without start-up (`core.timing`). Those per example are embedding and scoring,
    tests included, divided by the examples of the pool.

    Parameters
    ----------
    scores: `scores/<method>/<evaluation>.parquet` of every method; their metadata has the seconds.
    train: `corpora/` file of the pool.
    table: Parquet file to write, one row per pair of methods; `crossover_examples` is the number of scored examples
        from which on the encoder is cheaper, 0 if it always is, null if it never is; `jobs_with_start_up` counts the
        jobs of the two fixed costs that ran before jobs recorded their start-up, so that it is among their seconds.
    evaluation: name of the evaluation.
    trained: names of the methods with a trained encoder.
    benchmarks: folder of Snakemake's benchmark files.
    fixed: for each method, globs below `benchmarks` of the jobs that it needs once, whatever it scores.

    Raises
    ------
    StudyError: a benchmark file is missing, or has no seconds, or scores don't say what they cost.
    """
    examples = pq.read_metadata(train).num_rows
    costs, whole_jobs = {}, {}
    for path in scores:
        metadata = read_metadata(path)
        seconds = (Seconds.read(metadata, "embedding") + Seconds.read(metadata, "scoring")).clock
        if math.isnan(seconds):
            raise StudyError(
                f"{path} doesn't say how long its embeddings or its scores took. Delete it and the embeddings of the "
                "method, and run again."
            )
        method = path.parent.name
        once = work_of_jobs(Path(benchmarks), fixed[method])
        costs[method] = Cost(once.seconds.clock, seconds / examples)
        whole_jobs[method] = once.without_record
    rows = []
    for method, rival in itertools.product(trained, [name for name in costs if name not in trained]):
        ours, theirs = costs[method], costs[rival]
        size = crossover(ours, theirs)
        known = size if math.isfinite(size) else None
        with_start_up = whole_jobs[method] + whole_jobs[rival]
        rows.append((method, evaluation, rival, *astuple(ours), *astuple(theirs), known, with_start_up))
        say(f"  {method} {_meets(size)} {rival}")
    write_frame(table, pd.DataFrame(rows, columns=SCHEMA.names), SCHEMA)


def _meets(size: float) -> str:
    if math.isfinite(size):
        return f"is cheaper from {math.ceil(size):,} scored examples on than"
    return "never becomes cheaper than"


if __name__ == "__main__":
    run_stage(evaluate_amortisation)
