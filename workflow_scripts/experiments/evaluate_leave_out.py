"""Correlate what leaving examples out does to the loss with their scores (paper, section 4.1: LOO)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import write_frame
from workflow_scripts.core.progress import say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.evaluation.blends import Blend, read_blend
from workflow_scripts.evaluation.lds import (
    Bootstrap,
    bootstrap_lds,
    interval,
    linear_datamodeling_score,
    noise_ceiling,
    seed_agreement,
)
from workflow_scripts.experiments.base_set import read_base, read_base_scores
from workflow_scripts.experiments.runs import loss_rises, read_measured
from workflow_scripts.experiments.tables import KEYS, VALUES
from workflow_scripts.study.choices import SMALLEST_NUMBER_OF_SUBSETS

SCHEMA = pa.schema([*KEYS, *VALUES, ("ceiling", pa.float64()), ("seed_agreement", pa.float64())])


def evaluate_leave_out(
    base: Path,
    runs: Path,
    measured: Sequence[Path],
    groups: Sequence[Path],
    table: Path,
    blends: Sequence[Path] = (),
    *,
    evaluation: str,
    bootstrap: int,
    confidence: float,
    seed: int,
    max_diverged_share: float,
) -> None:
    """Write how well each method's scores predict what leaving a group out does to the loss.

    A group's effect on a test is the loss without the group minus the loss with it, mean over seeds. A test's value
    is Spearman's correlation, over the groups, of effects with the sum of the group's scores; the metric is its mean
    over tests, with a bootstrap interval over tests and groups. The ceiling follows from the agreement of seeds, as
    that of the LDS does.

    Parameters
    ----------
    base: file that `draw_base` wrote.
    runs: file that `draw_leave_out` wrote.
    measured: files that `finetune_runs` wrote, of all jobs.
    groups: each method's scores of the base set, `.../<method>/<evaluation>.parquet`.
    table: Parquet file to write, one row per method or blend, and group size; `metric` is `leave_1_out`, ...
    blends: `blends/<method>+<method>.parquet`: with their weights both methods' scores are added, each standardised for
        each test over the base set.
    evaluation: name of the evaluation.
    bootstrap: number of bootstrap draws.
    confidence: coverage of the intervals, in (0, 1).
    seed: seed of the bootstrap.
    max_diverged_share: largest share of the runs that may diverge, in [0, 1].

    Raises
    ------
    StudyError: too many runs diverged, a run wasn't measured, or too few groups are left.
    """
    by_run = read_measured(runs, ["size", "group", "left_out"], measured, max_diverged_share)
    rises = loss_rises(by_run, by_run["size"] == 0)
    base_ids = read_base(base)
    scores = {path.parent.name: read_base_scores(path, base_ids) for path in groups}
    for path in blends:
        blend = read_blend(path)
        first, second = (scores[method] for method in blend.methods)
        scores[path.stem] = _blended(blend, first, second)
    tests = next(iter(scores.values())).index
    rows = []
    for size, of_size in rises.groupby("size"):
        of_size = of_size[of_size["test_id"].isin(tests)].sort_values(["test_id", "group", "seed"])
        left_out = of_size.drop_duplicates("group")["left_out"]
        effects = of_size["rise"].to_numpy().reshape(len(tests), len(left_out), -1)
        known = np.isfinite(effects).any(axis=2).all(axis=0)
        if known.sum() < SMALLEST_NUMBER_OF_SUBSETS:
            raise StudyError(
                f"experiments.leave_out: {int(known.sum())} groups of {size} examples have a run that didn't diverge, "
                f"and {SMALLEST_NUMBER_OF_SUBSETS} are needed. Raise `groups`, or lower finetuning.learning_rate."
            )
        effects = effects[:, known]
        members = left_out[known]
        by_method = {
            method: np.stack([one[group].to_numpy().sum(axis=1, dtype=np.float64) for group in members], axis=1)
            for method, one in scores.items()
        }
        # The loss falls where the effect rises, so minus the effect takes the place of a subset's loss.
        losses = -np.nanmean(effects, axis=2)
        agreement = seed_agreement(-effects)
        resamples = Bootstrap.draw(
            len(tests), len(members), bootstrap, generator(seed, "bootstrap", "leave_out", str(size))
        )
        draws = bootstrap_lds(np.stack(list(by_method.values())), losses, resamples)
        say(f"leave {size} out of {len(base_ids)}: {losses.shape[1]} groups, seed agreement {agreement:.3f}")
        for (method, values), its_draws in zip(by_method.items(), draws, strict=True):
            low, high = interval(its_draws, confidence)
            row = {
                "method": method,
                "evaluation": evaluation,
                "metric": f"leave_{size}_out",
                "value": linear_datamodeling_score(values, losses),
                "ci_low": low,
                "ci_high": high,
                "ceiling": noise_ceiling(agreement, effects.shape[2]),
                "seed_agreement": agreement,
            }
            say(f"  {method:<20} {row['value']:>7.3f}   {low:.3f} to {high:.3f}")
            rows.append(row)
    write_frame(table, pd.DataFrame(rows), SCHEMA)


def _blended(blend: Blend, first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Return the blended scores of all examples, with the rows (tests) and columns (examples) of `first`."""
    values = blend.scores(first.to_numpy().T, second.loc[first.index].to_numpy().T).T
    return pd.DataFrame(values, first.index, first.columns)


if __name__ == "__main__":
    run_stage(evaluate_leave_out)
