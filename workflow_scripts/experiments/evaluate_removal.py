"""Measure how far a test's loss rises without the examples that a method holds to be its most helpful."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.evaluation.lds import interval
from workflow_scripts.experiments.draw_removal import RANDOM, WHOLE
from workflow_scripts.experiments.runs import read_measured
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
    and tests; `loss_rise_over_random` is how far that lies above random removals of as many. Intervals are of the
    bootstrap over tests, the same draws for all rows.
    """
    plan = read_table(runs, ["method", "size", "test_id", "draw", "run", "seed", "test_ids"]).to_pylist()
    seeds = 1 + max(row["seed"] for row in plan)
    results = read_measured(measured, max_diverged_share)
    whole = next(row for row in plan if row["method"] == WHOLE)
    tests = whole["test_ids"]
    base = dict(zip(tests, results.losses_of(whole["run"], seeds, tests).T, strict=True))
    rises: dict[tuple[str, int], dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for row in plan:
        if row["method"] != WHOLE and row["seed"] == 0:
            measured_losses = results.losses_of(row["run"], seeds, row["test_ids"]).T
            for test, losses in zip(row["test_ids"], measured_losses, strict=True):
                rises[row["method"], row["size"]][test].append(losses - base[test])
    by_test = {key: np.array([np.nanmean(values[test]) for test in tests]) for key, values in rises.items()}
    counts = generator(seed, "bootstrap", "removal").multinomial(
        len(tests), np.full(len(tests), 1 / len(tests)), size=bootstrap
    )
    rows: list[dict[str, Any]] = []
    for method, size in sorted(by_test, key=lambda key: (key[0] == RANDOM, key)):
        measures = {"loss_rise": by_test[method, size]}
        if method != RANDOM:
            measures["loss_rise_over_random"] = by_test[method, size] - by_test[RANDOM, size]
        for metric, values in measures.items():
            low, high = interval(counts @ values / len(tests), confidence)
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
    write_table(table, pa.Table.from_pylist(rows, SCHEMA))


if __name__ == "__main__":
    run_stage(snakemake, evaluate_removal)  # noqa: F821
