"""Evaluate how much a test's loss rises without its most helpful examples according to a method."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from workflow_scripts.core.frames import write_frame
from workflow_scripts.core.progress import say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.evaluation.lds import interval
from workflow_scripts.experiments.removal import RANDOM, WHOLE
from workflow_scripts.experiments.runs import known_in_all, loss_rises, read_measured
from workflow_scripts.experiments.tables import KEYS, VALUES

SCHEMA = pa.schema([*KEYS, ("removed", pa.int32()), *VALUES])


def evaluate_removal(
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
    """Write two rows per method and number of removed examples, and one per number for random removals.

    `loss_rise` is the loss (nats per response token) without the examples minus the loss with them, mean over seeds
    and tests; `loss_rise_over_random` is the difference from random removals of as many. Intervals are of the bootstrap
    over tests, with the same draws for all rows. A test for which a run diverged is left out of all rows.

    Parameters
    ----------
    runs: file that `draw_removal` wrote.
    measured: files that `finetune_runs` wrote, of all jobs.
    table: Parquet file to write.
    evaluation: name of the evaluation.
    bootstrap: number of bootstrap draws.
    confidence: coverage of the intervals, in (0, 1).
    seed: seed of the bootstrap.
    max_diverged_share: largest share of the runs that may diverge, in [0, 1].

    Raises
    ------
    StudyError: too many runs diverged, all those on the whole base set, or a run wasn't measured.
    """
    losses = read_measured(runs, ["method", "size"], measured, max_diverged_share)
    whole = losses["method"] == WHOLE
    tests = losses.loc[whole, "test_id"].unique()
    rises = loss_rises(losses, whole).groupby(["method", "size", "test_id"])["rise"].mean().unstack()[tests]
    rises = known_in_all(rises)
    by_test: dict[tuple[str, int], np.ndarray] = dict(zip(rises.index, rises.to_numpy(), strict=True))
    counts = generator(seed, "bootstrap", "removal").multinomial(
        rises.shape[1], np.full(rises.shape[1], 1 / rises.shape[1]), size=bootstrap
    )
    rows = []
    for method, size in sorted(by_test, key=lambda key: (key[0] == RANDOM, key)):
        measures = {"loss_rise": by_test[method, size]}
        if method != RANDOM:
            measures["loss_rise_over_random"] = by_test[method, size] - by_test[RANDOM, size]
        for metric, values in measures.items():
            low, high = interval(counts @ values / len(values), confidence)
            rows.append(
                {
                    "method": method,
                    "evaluation": evaluation,
                    "metric": metric,
                    "removed": size,
                    "value": float(values.mean()),
                    "ci_low": low,
                    "ci_high": high,
                }
            )
            say(f"  {method:<20} without {size:>5,}: {metric} {values.mean():.4f}   {low:.4f} to {high:.4f}")
    write_frame(table, pd.DataFrame(rows), SCHEMA)


if __name__ == "__main__":
    run_stage(evaluate_removal)
