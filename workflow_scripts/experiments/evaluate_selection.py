"""Evaluate selected training data by the answers of the LM that was fine-tuned on it (paper, section 4.1)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from workflow_scripts.core.frames import write_frame
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.evaluation.lds import interval
from workflow_scripts.experiments.runs import known_in_all, read_measured
from workflow_scripts.experiments.selection import RANDOM, group_by_task
from workflow_scripts.experiments.tables import KEYS, VALUES
from workflow_scripts.experiments.unigram_f1 import unigram_f1

SCHEMA = pa.schema([*KEYS, *VALUES])


def evaluate_selection(
    runs: Path,
    test: Path,
    measured: Sequence[Path],
    table: Path,
    *,
    evaluation: str,
    bootstrap: int,
    confidence: float,
    seed: int,
    max_diverged_share: float,
) -> None:
    """Write each method's unigram F1 of answer and response, and its response loss: means over tasks.

    A task's value is the mean over its tests, of the mean over seeds. The differences are paired by test and positive
    where the method is better: `f1_over_random` and `loss_below_random` than random examples, `f1_over_first` and
    `loss_below_first` than the first method. Intervals are of the bootstrap over tasks and over the tests of each, with
    the same draws for all rows. A test for which a method's runs diverged is left out of all rows.

    Parameters
    ----------
    runs: file that `draw_selection` wrote.
    test: `corpora/` file of the tests.
    measured: files that `finetune_runs` wrote, of all jobs.
    table: Parquet file to write, one row per method and metric; losses are in nats per response token.
    evaluation: name of the evaluation.
    bootstrap: number of bootstrap draws.
    confidence: coverage of the intervals, in (0, 1).
    seed: seed of the bootstrap.
    max_diverged_share: largest share of the runs that may diverge, in [0, 1].

    Raises
    ------
    StudyError: too many runs diverged, or a run wasn't measured.
    """
    answers = read_measured(runs, ["method"], measured, max_diverged_share)
    responses = read_table(test, ["response"])["response"].take(pa.array(answers["test_id"])).to_pylist()
    pairs = zip(answers["answer"], responses, strict=True)
    answers["f1"] = [np.nan if pd.isna(answer) else unigram_f1(answer, response) for answer, response in pairs]
    by_test = answers.groupby(["method", "test_id"], sort=False)[["f1", "loss"]].mean()
    test_ids = known_in_all(by_test["loss"].unstack()).columns
    tests_of = group_by_task(test, test_ids.to_numpy(), None)
    means = TaskMeans(list(tests_of.values()), bootstrap, generator(seed, "bootstrap", "selection"))
    of_method = {str(method): values.droplevel("method") for method, values in by_test.groupby("method", sort=False)}
    baselines = {"random": RANDOM, "first": next(iter(of_method))}
    rows = []
    for method, own in of_method.items():
        metrics = {"f1": own["f1"], "loss": own["loss"]}
        for name, baseline in baselines.items():
            if baseline != method:
                metrics[f"f1_over_{name}"] = own["f1"] - of_method[baseline]["f1"]
                metrics[f"loss_below_{name}"] = of_method[baseline]["loss"] - own["loss"]
        for metric, by_test_id in metrics.items():
            value, draws = means(by_test_id)
            low, high = interval(draws, confidence)
            row = {"method": method, "evaluation": evaluation, "metric": metric}
            rows.append({**row, "value": value, "ci_low": low, "ci_high": high})
            say(f"  {method:<20} {metric:<17} {value:>7.3f}   {low:.3f} to {high:.3f}")
    write_frame(table, pd.DataFrame(rows), SCHEMA)


class TaskMeans:
    """Means over tasks of means over their tests, for the data and for resamples.

    Parameters
    ----------
    tests_of: for each task, int [tests], the ids of its tests.
    draws: number of resamples.
    rng: source of randomness.
    """

    def __init__(self, tests_of: Sequence[np.ndarray], draws: int, rng: np.random.Generator):
        self.tests_of = tests_of
        self.tasks = rng.multinomial(len(tests_of), np.full(len(tests_of), 1 / len(tests_of)), size=draws)
        self.tests = [rng.multinomial(len(one), np.full(len(one), 1 / len(one)), size=draws) for one in tests_of]

    def __call__(self, values: pd.Series) -> tuple[float, np.ndarray]:
        """Return the mean of values by test id, and that of each resample, float64 [draws]; NaN values are left out."""
        by_task = [values.loc[tests].to_numpy() for tests in self.tests_of]
        draws = np.stack([_weighted_mean(one, counts) for one, counts in zip(by_task, self.tests, strict=True)], axis=1)
        return float(np.nanmean([np.nanmean(one) for one in by_task])), _weighted_mean(draws, self.tasks)


def _weighted_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis with weights `counts` [draws, values], without values that are NaN."""
    weights = counts * np.isfinite(values)
    total = (weights * np.nan_to_num(values)).sum(axis=1)
    return np.divide(total, weights.sum(axis=1), out=np.full(len(counts), np.nan), where=weights.sum(axis=1) > 0)


if __name__ == "__main__":
    run_stage(evaluate_selection)
