"""Judge an encoder trained on one LM's targets by another LM's subsets, and say what to do with it."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from workflow_scripts.core.parquet import read_table, write_table
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
    """Write one row per method and pooling that is judged on both evaluations.

    `retained` is the LDS there as a share of its ceiling, divided by the same at home. `advice` stands in the row of
    `method` alone:

    - `reuse`: it keeps nine tenths of its LDS, or is above every method that reads no trained encoder (paired
      interval above zero).
    - `fine-tune`: it is above the untrained encoder, but another method does as well: what it learned carries over
      in part, so go on from it with targets of the new LM.
    - `retrain`: nothing shows that it carries over.

    Parameters
    ----------
    differences: paired differences between `method` and every other row. trained: methods that read a trained encoder.
    """
    rows = read_table(lds).to_pylist()
    at_home = {(row["method"], row["pooling"]): row for row in rows if row["evaluation"] == home}
    leads = [row for row in read_table(differences).to_pylist() if row["evaluation"] == evaluation]
    written: list[dict[str, Any]] = []
    for row in (row for row in rows if row["evaluation"] == evaluation):
        before = at_home.get((row["method"], row["pooling"]))
        if before is None:
            continue
        retained = None
        if before["lds"] > 0 and min(before["ceiling"], row["ceiling"]) > 0:
            retained = (row["lds"] / row["ceiling"]) / (before["lds"] / before["ceiling"])
        kept = {name: row[name] for name in ("method", "pooling", "lds", "ci_low", "ci_high", "ceiling")}
        judged = {"home": home, "evaluation": evaluation, "lds_home": before["lds"], "retained": retained}
        what = advice(retained, leads, trained) if row["method"] == method else None
        written.append({**kept, **judged, "advice": what})
        share = "" if retained is None else f", {retained:.0%} of it kept"
        say(f"  {row['method']:<20} {before['lds']:.3f} -> {row['lds']:.3f}{share}{f': {what}' if what else ''}")
    write_table(table, pa.Table.from_pylist(written, SCHEMA))


def advice(retained: float | None, leads: list[dict[str, Any]], trained: list[str]) -> str:
    """Return what to do with an encoder, as `evaluate_transfer` says."""
    rivals = [row for row in leads if row["method_b"] not in trained]
    if (retained is not None and retained >= ENOUGH) or (rivals and all(row["ci_low"] > 0 for row in rivals)):
        return "reuse"
    before_training = [row for row in rivals if row["method_b"].startswith("untrained")]
    if before_training and all(row["ci_low"] > 0 for row in before_training):
        return "fine-tune"
    return "retrain"


if __name__ == "__main__":
    run_stage(snakemake, evaluate_transfer)  # noqa: F821
