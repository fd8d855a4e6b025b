"""The LDS table of an evaluation as lines of text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator

import pandas as pd

# Column of `evaluation/lds.parquet` -> heading: what each new corpus costs, and what is paid once.
PER_CORPUS = {"embedding_seconds": "embed", "scoring_seconds": "score", "seconds": "sum"}
ONCE = {"fitting_seconds": "fit", "warmup_seconds": "warm-up"}


def lds_table(rows: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of a table, best first: 100 characters a line, and more for long names of methods.

    Parameters
    ----------
    rows: rows of `evaluation/lds.parquet` of one evaluation.
    """
    costs = {**PER_CORPUS, **ONCE}
    longest = max(16, *rows["method"].str.len())
    yield f"  {'':<{longest + 36}}{'seconds per corpus':>25}{'seconds once':>17}"
    heads = "".join(f"{head:>{_width(name)}}" for name, head in costs.items())
    yield f"  {'method':<{longest}} {'pooling':<10} {'LDS':>6}  {'interval':<16}{heads}"
    for row in rows.sort_values("lds", ascending=False, kind="stable").itertuples():
        spread = f"{row.ci_low:.3f} to {row.ci_high:.3f}"
        cells = "".join(f"{_seconds(getattr(row, name)):>{_width(name)}}" for name in costs)
        yield f"  {row.method:<{longest}} {row.pooling:<10} {row.lds:>6.3f}  {spread:<16}{cells}"
    # Tables of earlier versions don't have the column.
    named = rows[rows["chosen"].notna()] if "chosen" in rows else rows[:0]
    if choices := [f"{row.method} {row.chosen}" for row in named.itertuples()]:
        text = f"chosen on held-back folds: {'; '.join(choices)}"
        yield from textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="    ")


def _width(column: str) -> int:
    return 9 if column in ONCE else 8


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
