"""Compare the LM after fine-tuning on curated data with the LM after random rows, on tests that chose nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from workflow_scripts.core.frames import write_frame
from workflow_scripts.core.progress import say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.evaluation.lds import interval
from workflow_scripts.experiments.runs import read_measured
from workflow_scripts.experiments.selection import RANDOM
from workflow_scripts.experiments.tables import KEYS, VALUES

SCHEMA = pa.schema([*KEYS, ("examples", pa.int32()), *VALUES])


def evaluate_curated_data(
    runs: Path,
    measured: Sequence[Path],
    table: Path,
    *,
    evaluation: str,
    bootstrap: int,
    confidence: float,
    seed: int,
    max_diverged_share: float,
) -> None:
    """Write the mean loss on the held-back tests after each list, and how far it is below that after random rows.

    `loss` is in nats per response token, the mean over runs and tests; `loss_below_random` is the loss after as many
    random rows minus that after the selection, of the same tests: above zero, curating helped. Intervals are of the
    bootstrap over tests, with the same draws for all rows, and over the runs of each list.

    Parameters
    ----------
    runs: file that `draw_curated_data` wrote.
    measured: files that `finetune_runs` wrote, of all jobs.
    table: Parquet file to write.
    evaluation: name of the evaluation.
    bootstrap: number of bootstrap draws.
    confidence: coverage of the intervals, in (0, 1).
    seed: seed of the bootstrap.
    max_diverged_share: largest share of the runs that may diverge, in [0, 1].

    Raises
    ------
    StudyError: too many runs diverged, or a run wasn't measured.
    """
    losses = read_measured(runs, ["method", "examples", "draw"], measured, max_diverged_share)
    tests = np.sort(losses["test_id"].unique())
    rng = generator(seed, "bootstrap", "curated_data")
    counts = _counts(rng, len(tests), bootstrap)
    found: dict[tuple[str, int], tuple[float, np.ndarray]] = {}
    keys: Any
    for keys, own in losses.groupby(["method", "examples"], sort=False):
        method, examples = keys
        # A draw of random rows is one thing that could have come out differently, a selection's seed another.
        unit = "draw" if method == RANDOM else "seed"
        by_run = own.groupby([unit, "test_id"])["loss"].mean().unstack()[tests].dropna().to_numpy()
        if not len(by_run):
            # All runs diverged.
            found[method, examples] = (np.nan, np.full(bootstrap, np.nan))
            continue
        resampled = _counts(rng, len(by_run), bootstrap) @ by_run
        found[method, examples] = (float(by_run.mean()), (counts * resampled).sum(axis=1))
    rows = []
    for (method, examples), (value, draws) in found.items():
        metrics = {"loss": (value, draws)}
        if method != RANDOM:
            random_value, random_draws = found[RANDOM, examples]
            metrics["loss_below_random"] = (random_value - value, random_draws - draws)
        for metric, (number, resamples) in metrics.items():
            low, high = interval(resamples, confidence)
            row = {"method": method, "evaluation": evaluation, "metric": metric, "examples": examples}
            rows.append({**row, "value": number, "ci_low": low, "ci_high": high})
            say(f"  {method:<20} {examples:>6,} rows  {metric:<18} {number:>7.3f}   {low:.3f} to {high:.3f}")
    write_frame(table, pd.DataFrame(rows), SCHEMA)


def _counts(rng: np.random.Generator, number: int, draws: int) -> np.ndarray:
    """Return how often each of `number` things is in each resample, as weights whose sum is 1, [draws, number]."""
    return rng.multinomial(number, np.full(number, 1 / number), size=draws) / number


if __name__ == "__main__":
    run_stage(evaluate_curated_data)
