"""The report's section on labels: heat maps of which training rows help which tests, predicted and measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflow_scripts.core.frames import read_frame, rows_of
from workflow_scripts.report.charts import linear_axis
from workflow_scripts.report.experiments import ResultTable, Row
from workflow_scripts.report.formatting import count, decimal, share
from workflow_scripts.report.results import method_name

NO_LABEL = "no label"
MEASURED = "Measured by fine-tuning"
# Of the colour in a cell with the largest value; more would leave its number hard to read.
FULL_SHADE = 70


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map.

    Parameters
    ----------
    text: its value.
    title: the value with its interval.
    shade: how much colour it has, in percent.
    helps: whether the value is above zero, or above what random rows would have.
    is_clear: whether its interval leaves that out.
    """

    text: str
    title: str
    shade: int
    helps: bool
    is_clear: bool


@dataclass(frozen=True)
class HeatMap:
    """A matrix of training labels (rows) x test labels (columns).

    Parameters
    ----------
    title: what a cell shows.
    note: its unit.
    columns: name of each test label.
    rows: name and cells of each training label.
    """

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class LabelInfluence:
    """What one evaluation says about labels.

    Parameters
    ----------
    evaluation: its name.
    facts: numbers of rows, and what was left out.
    maps: the measured matrix, and that of the main method.
    others: name and maps of each other method.
    agreements: tables of how well each method agrees with the measured matrix.
    """

    evaluation: str
    facts: str
    maps: list[HeatMap]
    others: list[tuple[str, list[HeatMap]]]
    agreements: list[ResultTable]


def gather_label_influence(influence: Path, agreements: Path, main: str) -> list[LabelInfluence]:
    """Return the section's content for each evaluation whose training rows have labels, in the order of the tables.

    Parameters
    ----------
    influence: table that `evaluate_label_influence` wrote.
    agreements: its table of agreements with the measured matrix.
    main: method whose maps are shown first; where it isn't in the tables, another.
    """
    rows, agreed = read_frame(influence), read_frame(agreements)
    return [
        _of_evaluation(str(name), of_one, agreed[agreed["evaluation"] == name], main)
        for name, of_one in rows.groupby("evaluation", sort=False)
    ]


def _of_evaluation(name: str, rows: pd.DataFrame, agreed: pd.DataFrame, main: str) -> LabelInfluence:
    methods = list(dict.fromkeys(rows["method"]))
    main = main if main in methods else methods[0]
    of_method = {method: rows[rows["method"] == method] for method in methods}
    first = of_method[main]
    has_measured = bool(first["measured"].notna().any())
    measured = [_effects(first, "measured", MEASURED, "nats per response token")] if has_measured else []
    return LabelInfluence(
        evaluation=name,
        facts=_facts(first),
        maps=measured + _maps(main, first),
        others=[(method_name(method), _maps(method, of_method[method])) for method in methods if method != main],
        agreements=_agreements(agreed),
    )


def _facts(rows: pd.DataFrame) -> str:
    trained = int(rows.drop_duplicates("train_label")["train_rows"].sum())
    tested = int(rows.drop_duplicates("test_label")["tests"].sum())
    text = f"{count(trained)} training rows and {count(tested)} tests."
    left_out = [
        f"{count(number)} {'label' if number == 1 else 'labels'} of {of} with fewer rows"
        for of, column in (("training rows", "train_labels_left_out"), ("tests", "test_labels_left_out"))
        if (number := int(rows[column].iloc[0]))
    ]
    return text + (f" Left out: {' and '.join(left_out)}." if left_out else "")


def _maps(method: str, rows: pd.DataFrame) -> list[HeatMap]:
    name = method_name(method)
    maps = (
        [_effects(rows, "advantage", f"Predicted by {name}", "score above that of other rows")]
        if rows["advantage"].notna().any()
        else []
    )
    return [*maps, _top_shares(rows, f"Share of the most helpful rows by {name}")]


def _effects(rows: pd.DataFrame, column: str, title: str, unit: str) -> HeatMap:
    known = rows[column].to_numpy()[np.isfinite(rows[column])]
    largest = float(np.abs(known).max(initial=0.0))
    # Two digits at most fit a narrow cell.
    power = math.floor(math.log10(largest)) - 1 if largest else 0

    def cell(row: Any) -> Cell:
        value, low, high = (getattr(row, f"{column}{end}") for end in ("", "_low", "_high"))
        if math.isnan(value):
            return Cell("–", "not known", 0, False, False)
        numbers = [decimal(number, max(1 - power, 0), signed=True) for number in (value, low, high)]
        return Cell(
            text=decimal(value / 10.0**power, 0),
            title=f"{numbers[0]} [{numbers[1]}, {numbers[2]}]",
            shade=round(FULL_SHADE * abs(value) / largest) if largest else 0,
            helps=value > 0,
            is_clear=low > 0 or high < 0,
        )

    return _map(title, f"{unit}, × {10.0**power:g}" if power else unit, rows, cell)


def _top_shares(rows: pd.DataFrame, title: str) -> HeatMap:
    largest = float((rows["top_share"] - rows["corpus_share"]).abs().max())

    def cell(row: Any) -> Cell:
        above = row.top_share - row.corpus_share
        return Cell(
            text=f"{100 * row.top_share:.0f}",
            title=f"{share(row.top_share, 1)} [{share(row.top_share_low, 1)}, {share(row.top_share_high, 1)}], "
            f"of the corpus {share(row.corpus_share, 1)}",
            shade=round(FULL_SHADE * abs(above) / largest) if largest else 0,
            helps=above > 0,
            is_clear=row.top_share_low > row.corpus_share or row.top_share_high < row.corpus_share,
        )

    return _map(title, "in %; coloured by how far it is from the label's share of the corpus", rows, cell)


def _map(title: str, note: str, rows: pd.DataFrame, cell: Any) -> HeatMap:
    columns = [_label(label) for label in dict.fromkeys(rows["test_label"])]
    made = [cell(row) for row in rows_of(rows)]
    labels = [_label(label) for label in dict.fromkeys(rows["train_label"])]
    width = len(columns)
    return HeatMap(title, note, columns, [(label, made[width * n : width * (n + 1)]) for n, label in enumerate(labels)])


def _label(label: object) -> str:
    return NO_LABEL if pd.isna(label) else str(label)  # type: ignore[call-overload]  # one value, of whatever kind


def _agreements(rows: pd.DataFrame) -> list[ResultTable]:
    titles = {
        "mean_score": "Agreement of mean scores with what was measured",
        "top_share": "Agreement of the lists of most helpful rows",
    }
    known = rows[rows["agreement"].notna()].sort_values("agreement", ascending=False, kind="stable")
    parts = [(title, known[known["prediction"] == prediction]) for prediction, title in titles.items()]
    return [_table(title, part) for title, part in parts if len(part)]


def _table(title: str, rows: pd.DataFrame) -> ResultTable:
    ceiling = next(iter(rows["ceiling"].dropna()), None)
    values = rows[["agreement", "ci_low", "ci_high"]].to_numpy()
    shown: Sequence[float] = [0.0, ceiling or 0.0, *values[np.isfinite(values)]]
    made = [Row(row.method, method_name(row.method), row.agreement, row.ci_low, row.ci_high) for row in rows_of(rows)]
    return ResultTable(title, "Rank correlation", 2, linear_axis(min(shown), max(shown)), made, ceiling)
