"""The LDS of every method on the average over evaluation sets (paper, table of section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from workflow_scripts.core.frames import rows_of
from workflow_scripts.evaluation.lds import interval, paired_difference

AVERAGE_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("pooling", pa.string()),
        ("chosen", pa.string()),
        ("lds", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("lead", pa.float64()),
        ("lead_ci_low", pa.float64()),
        ("lead_ci_high", pa.float64()),
        ("evaluations", pa.list_(pa.string())),
    ]
)
ROW = ["method", "pooling"]


@dataclass(frozen=True)
class EvaluatedSet:
    """The LDS of every row on one evaluation set.

    Parameters
    ----------
    rows: its rows of `evaluation/lds.parquet`.
    draws: float [rows, draws], their LDS in each bootstrap draw.
    """

    rows: pd.DataFrame
    draws: np.ndarray


def leading_place(methods: Sequence[str], main: str) -> int:
    """Return the place of the first row of `main`, with which others are compared; of the first row without one."""
    return methods.index(main) if main in methods else 0


def average_rows(sets: Mapping[str, EvaluatedSet], main: str, confidence: float) -> pd.DataFrame:
    """Return the mean LDS over evaluation sets, which count alike; no row where there are fewer than two sets.

    Tests and subsets of one set are drawn apart from those of the others, so a draw of the mean is the mean of one draw
    of each.

    Parameters
    ----------
    sets: what was evaluated, by the set's name.
    main: the method whose first row every other one is compared with: `lead` is its LDS minus theirs.
    confidence: coverage of the intervals, in (0, 1).

    Returns
    -------
    A frame with the columns of `AVERAGE_SCHEMA`, the best row first.
    """
    if len(sets) < 2:
        return pd.DataFrame(columns=AVERAGE_SCHEMA.names)
    lds = {name: of_set.rows.set_index(ROW)["lds"] for name, of_set in sets.items()}
    # A row that a set lacks has no mean.
    means = pd.concat(lds, axis=1).dropna().mean(axis=1)
    drawn = [pd.DataFrame(of_set.draws, index=lds[name].index).loc[means.index] for name, of_set in sets.items()]
    draws = np.mean(drawn, axis=0)
    leading = leading_place(means.index.get_level_values("method").tolist(), main)
    rows = means.rename("lds").reset_index()
    rows[["ci_low", "ci_high"]] = [interval(own, confidence) for own in draws]
    rows["lead"] = means.iloc[leading] - rows["lds"]
    rows[["lead_ci_low", "lead_ci_high"]] = [paired_difference(draws[leading], own, confidence) for own in draws]
    rows.loc[leading, ["lead", "lead_ci_low", "lead_ci_high"]] = np.nan
    chosen = next(iter(sets.values())).rows[[*ROW, "chosen"]]
    rows = rows.merge(chosen, on=ROW).assign(evaluations=pd.Series([list(sets)] * len(rows)))
    return rows.sort_values("lds", ascending=False, kind="stable")


def average_table(rows: pd.DataFrame, lds: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of a table: the average first, then each set; nothing where there is no average.

    Parameters
    ----------
    rows: result of `average_rows`.
    lds: rows of `evaluation/lds.parquet`.
    """
    if not len(rows):
        return
    sets = list(rows.iloc[0]["evaluations"])
    yield f"Average LDS over {', '.join(sets)}"
    of_set = lds.set_index(["evaluation", *ROW])["lds"]
    longest = max(16, *rows["method"].str.len())
    widths = [max(len(name), 6) for name in sets]
    heads = "".join(f"  {name:>{width}}" for name, width in zip(sets, widths, strict=True))
    yield f"  {'method':<{longest}} {'pooling':<10} {'mean':>6}  {'interval':<16}  {'lead':<24}{heads}"
    for row in rows_of(rows):
        spread = f"{row.ci_low:.3f} to {row.ci_high:.3f}"
        lead = "" if math.isnan(row.lead) else f"{row.lead:+.3f} [{row.lead_ci_low:+.3f}, {row.lead_ci_high:+.3f}]"
        cells = "".join(
            f"  {of_set[name, row.method, row.pooling]:>{width}.3f}" for name, width in zip(sets, widths, strict=True)
        )
        yield f"  {row.method:<{longest}} {row.pooling:<10} {row.lds:>6.3f}  {spread:<16}  {lead:<24}{cells}"
