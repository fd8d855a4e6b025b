"""Evaluate an encoder trained on one LM's targets by another LM's subsets, and advise what to do with it."""

import math
from pathlib import Path

import pandas as pd
import pyarrow as pa

from workflow_scripts.core.frames import read_frame, rows_of, write_frame
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("pooling", pa.string()),
        ("home", pa.string()),
        ("evaluation", pa.string()),
        ("lds_home", pa.float64()),
        ("lds", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("ceiling", pa.float64()),
        ("retained", pa.float64()),
        ("advice", pa.string()),
    ]
)
# An encoder that keeps so much of its LDS, each measured against its ceiling, is as good as a new one.
ENOUGH = 0.9


def evaluate_transfer(
    lds: Path, differences: Path, table: Path, *, evaluation: str, home: str, method: str, trained: list[str]
) -> None:
    """Write one row per method and pooling that has an LDS on both evaluations.

    `retained` is the LDS on `evaluation` as a share of its ceiling, divided by the same on `home`; null where an
    interval of the two isn't above zero. `advice` is null except for `method`:

    - `reuse`: `retained` is known, and it keeps nine tenths of its LDS, or is above every method that reads no trained
      encoder (paired interval above zero).
    - `fine-tune`: it is above the untrained encoder, but another method does as well: what it learned transfers in
      part, so continue its training with targets of the new LM.
    - `retrain`: there is no evidence that it transfers.

    Parameters
    ----------
    lds: file that `evaluate_lds` wrote.
    differences: file that `evaluate_lds` wrote, the paired differences between `method` and every other row.
    table: Parquet file to write.
    evaluation: name of the evaluation with the other LM.
    home: name of the evaluation with the LM of the targets.
    method: name of the method that is advised on.
    trained: names of the methods that read a trained encoder, and of blends with one.
    """
    rows, leads = read_frame(lds), read_frame(differences)
    keys = ["method", "pooling"]
    before = rows.loc[rows["evaluation"] == home, [*keys, "lds", "ci_low", "ceiling"]]
    rows_away = rows[rows["evaluation"] == evaluation].merge(before, on=keys, suffixes=("", "_home"))
    shares = (rows_away["lds"] / rows_away["ceiling"]) / (rows_away["lds_home"] / rows_away["ceiling_home"])
    # Where nothing shows that it predicts anything, a share says nothing.
    comparable = (rows_away[["ci_low", "ci_low_home", "ceiling", "ceiling_home"]] > 0).all(axis=1)
    rows_away = rows_away.assign(home=home, retained=shares.where(comparable))
    leads = leads[(leads["evaluation"] == evaluation) & (leads["method_a"] == method)]
    advised = rows_away["retained"].map(lambda retained: advice(retained, leads, trained)).astype("str")
    rows_away["advice"] = advised.where(rows_away["method"] == method)
    for row in rows_of(rows_away):
        kept = "" if math.isnan(row.retained) else f", {row.retained:.0%} of it kept"
        said = f": {row.advice}" if row.method == method else ""
        say(f"  {row.method:<20} {row.lds_home:.3f} -> {row.lds:.3f}{kept}{said}")
    write_frame(table, rows_away, SCHEMA)


def advice(retained: float, leads: pd.DataFrame, trained: list[str]) -> str:
    """Return the advice of `evaluate_transfer` for an encoder: `reuse`, `fine-tune` or `retrain`.

    Parameters
    ----------
    retained: share of its LDS that it keeps; NaN if unknown.
    leads: paired differences to the other methods, with the columns `method_b` and `ci_low`.
    trained: names of the methods that read a trained encoder, which don't count as rivals.
    """
    rivals = leads[~leads["method_b"].isin(trained)]
    before_training = rivals[rivals["method_b"].str.match(r"untrained[^+]*$")]
    if retained >= ENOUGH or (retained > 0 and _is_above(rivals)):
        return "reuse"
    return "fine-tune" if _is_above(before_training) else "retrain"


def _is_above(rivals: pd.DataFrame) -> bool:
    """Return whether there are rivals and every paired interval is above zero."""
    return not rivals.empty and bool((rivals["ci_low"] > 0).all())


if __name__ == "__main__":
    run_stage(evaluate_transfer)
