"""The report's section on experiments: for each, its question, a table, and a figure where it helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflow_scripts.core.frames import read_frame, rows_of
from workflow_scripts.report.charts import Axis, Tick, linear_axis
from workflow_scripts.report.formatting import count, decimal, duration, interval
from workflow_scripts.report.results import method_name

RANDOM_NAMES = {
    "random_removal": "Random examples",
    "random_selection": "Random examples",
    "full_data": "All data",
    "base_lm": "Base LM",
    "warm_lm": "Warmed-up LM",
}
DAMAGES = {
    "within_label": "Answers swapped within a label",
    "across_labels": "Answers swapped across labels",
    "trigger": "A planted trigger with one answer",
    "any": "All kinds of damage",
}
RANKINGS = {
    "all_tests": "all tests",
    "same_label": "tests of the same label",
    "nearest_tests": "nearest tests",
    "self_influence": "self-influence",
    "loss": "loss of the row",
}


@dataclass(frozen=True)
class Row:
    """One method's value with its interval; `note` is a remark on it."""

    method: str
    name: str
    value: float
    low: float | None
    high: float | None
    note: str = ""


@dataclass(frozen=True)
class ResultTable:
    """Values of one metric, best first; `ceiling` is the highest that can be expected, None if not known."""

    title: str
    column: str
    digits: int
    axis: Axis
    rows: list[Row]
    ceiling: float | None = None


@dataclass(frozen=True)
class Line:
    """A method's line in a figure: SVG points, and the position of its name in percent."""

    method: str
    name: str
    points: str
    x: float
    y: float


@dataclass(frozen=True)
class Figure:
    """A figure with one line per method."""

    title: str
    x_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]


@dataclass(frozen=True)
class Experiment:
    """One experiment of the report: its question, and its results as sentences, tables and figures."""

    title: str
    question: str
    sentences: list[str] = field(default_factory=list)
    tables: list[ResultTable] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def gather_experiments(tables: Sequence[Path], main: str) -> list[Experiment]:
    """Return the experiments of these tables, `evaluation/<name>.parquet`; a table without rows is left out.

    `main` is the method that stands for the study where one figure shows one trained encoder.
    """
    makers: dict[str, Callable[[pd.DataFrame], Experiment]] = {
        "loo": _leave_out,
        "removal": _removal,
        "selection": _selection,
        "classification": _classification,
        "amortisation": lambda rows: _amortisation(rows, main),
        "transfer": _transfer,
        "curated_data": _curated_data,
        "detection": _detection,
    }
    read = {path.stem: read_frame(path) for path in tables}
    return [make(read[name]) for name, make in makers.items() if name in read and not read[name].empty]


def _name(method: str) -> str:
    return RANDOM_NAMES.get(method) or method_name(method)


def _table(
    title: str,
    column: str,
    rows: pd.DataFrame,
    *,
    value: str = "value",
    digits: int = 2,
    ceiling: float | None = None,
    lowest_first: bool = False,
    note: Callable[[Any], str] = lambda row: "",
) -> ResultTable:
    rows = rows.sort_values(value, ascending=lowest_first, kind="stable")
    made = [
        Row(row.method, _name(row.method), getattr(row, value), row.ci_low, row.ci_high, note(row))
        for row in rows_of(rows)
    ]
    known = rows[[value, "ci_low", "ci_high"]].to_numpy()
    shown = [0.0, ceiling or 0.0, *known[np.isfinite(known)]]
    return ResultTable(title, column, digits, linear_axis(min(shown), max(shown)), made, ceiling)


def _leave_out(rows: pd.DataFrame) -> Experiment:
    tables = []
    for metric, chosen in rows.groupby("metric", sort=False):
        size, first = int(str(metric).split("_")[1]), chosen.iloc[0]
        agreement = decimal(first["seed_agreement"])
        title = f"{count(size)} left out on “{first['evaluation']}”, agreement between seeds {agreement}"
        tables.append(_table(title, "Correlation", chosen, ceiling=first["ceiling"]))
    question = (
        "Fine-tune once with a set of examples and once without some of them: does the loss of a test example rise as "
        "the scores of those say? Rank correlation over the groups that were left out, mean over test examples."
    )
    return Experiment("Leave one out", question, tables=tables)


def _removal(rows: pd.DataFrame) -> Experiment:
    rises = rows[rows["metric"] == "loss_rise"]
    largest = rises["removed"].max()
    over = rows[(rows["metric"] == "loss_rise_over_random") & (rows["removed"] == largest)]
    question = (
        "Fine-tune without the examples that a method ranks as most helpful for a test: the more the loss "
        "rises, the better the method found them. Random examples show what any removal does."
    )
    lines = {
        str(method): list(zip(of_method["removed"], of_method["value"], strict=True))
        for method, of_method in rises.groupby("method", sort=False)
    }
    figure = _figure("Rise of the test's loss, in nats per token", "examples removed", lines)
    title = f"Rise of the loss above a random removal, {count(largest)} examples removed"
    tables = [_table(title, "Above random", over, digits=3)]
    return Experiment("Removal curve", question, tables=tables, figures=[figure])


def _selection(rows: pd.DataFrame) -> Experiment:
    f1, losses = (rows[rows["metric"] == metric] for metric in ("f1", "loss"))
    first = _name(rows["method"].iloc[0])

    def against(difference: str) -> Callable[[Any], str]:
        found = {
            baseline: rows[rows["metric"] == f"{difference}_{key}"].set_index("method")
            for key, baseline in (("random", "random"), ("first", first))
        }

        def note(row: Any) -> str:
            return "; ".join(
                f"{_signed(table.loc[row.method])} against {baseline}"
                for baseline, table in found.items()
                if row.method in table.index
            )

        return note

    question = (
        "For each task, fine-tune on the examples that a method ranks first, and let the language model answer the "
        "task's tests. Unigram F1 of answer and response: mean over a task's tests, then over tasks. Differences are "
        "paired by test, and positive where a row is better."
    )
    tables = [
        _table(f"F1 on “{f1['evaluation'].iloc[0]}”", "F1", f1, digits=3, note=against("f1_over")),
        _table(
            "Loss of the tests' responses (lower is better)",
            "Loss",
            losses,
            digits=3,
            lowest_first=True,
            note=against("loss_below"),
        ),
    ]
    return Experiment("Data selection", question, tables=tables)


def _signed(row: Any) -> str:
    return f"{decimal(row['value'], 3, signed=True)} {interval(row['ci_low'], row['ci_high'], 3, signed=True)}"


def _classification(rows: pd.DataFrame) -> Experiment:
    tables = []
    for evaluation, chosen in rows.groupby("evaluation", sort=False):
        title = f"Accuracy on “{evaluation}”, {count(chosen['n_tests'].iloc[0])} labelled tests"
        tables.append(_table(title, "Accuracy", chosen, digits=3))
    question = "Does the training example that a method ranks first carry the test example's label?"
    return Experiment("Data classification", question, tables=tables)


def _amortisation(rows: pd.DataFrame, main: str) -> Experiment:
    rows = rows[rows["method"] == main]
    sentences = [_overtakes(row) for row in rows.itertuples()]
    if whole := int(rows["jobs_with_start_up"].max()):
        sentences.append(
            f"{count(whole)} jobs ran before jobs recorded their start-up, so it is among the seconds paid once."
        )
    first: Any = rows.iloc[0]
    costs = {main: (first["fixed_seconds"], first["seconds_per_example"])} | {
        row.rival: (row.rival_fixed_seconds, row.rival_seconds_per_example) for row in rows_of(rows)
    }
    met = rows["crossover_examples"].dropna()
    last = math.ceil(math.log10(max([*met, 1e5]))) + 1
    sizes = [10 ** (power / 4) for power in range(8, 4 * last + 1)]
    lines = {method: [(size, fixed + each * size) for size in sizes] for method, (fixed, each) in costs.items()}
    figure = _figure("Seconds in all, training included", "scored examples", lines, logarithmic=True)
    question = (
        "An encoder has to be trained first, and then embeds and scores fast. From which corpus size on has its "
        "training been paid for? From the seconds of work, without the start-up of jobs, that this run took on its own "
        "machine."
    )
    return Experiment("Amortisation", question, sentences, figures=[figure])


def _overtakes(row: Any) -> str:
    ours, theirs = _name(row.method), _name(row.rival)
    each = (
        f"{duration(row.seconds_per_example)} an example after {duration(row.fixed_seconds)}, against "
        f"{duration(row.rival_seconds_per_example)} after {duration(row.rival_fixed_seconds)}"
    )
    if math.isnan(row.crossover_examples):
        return f"{ours} never becomes cheaper than {theirs}: {each}."
    return f"{ours} is cheaper than {theirs} from {count(math.ceil(row.crossover_examples))} examples on: {each}."


def _transfer(rows: pd.DataFrame) -> Experiment:
    words = {
        "reuse": "Reuse the encoder for the other language model.",
        "fine-tune": "Go on from the encoder with some targets of the other language model: part of it carries over.",
        "retrain": "Train another encoder for the other language model: nothing shows that this one carries over.",
    }
    sentences = [words[advice] for advice in rows["advice"].dropna()][:1]

    several = set(rows.loc[rows.duplicated("method"), "method"])

    def note(row: Any) -> str:
        pooling = f"{row.pooling} pooling, " if row.method in several else ""
        kept = "" if math.isnan(row.retained) else f", {100 * row.retained:.0f} % of its share of the ceiling kept"
        return f"{pooling}{decimal(row.lds_home)} at home{kept}"

    first = rows.iloc[0]
    title = f"LDS on “{first['evaluation']}”, beside “{first['home']}”"
    table = _table(title, "LDS", rows, value="lds", ceiling=first["ceiling"], note=note)
    question = "What is an encoder that learned from one language model's targets worth for another language model?"
    return Experiment("Transfer", question, sentences, tables=[table])


def _curated_data(rows: pd.DataFrame) -> Experiment:
    losses = rows[rows["metric"] == "loss"]
    below = rows[rows["metric"] == "loss_below_random"].set_index(["method", "examples"])

    def note(row: Any) -> str:
        if (row.method, row.examples) not in below.index:
            return f"{count(row.examples)} rows"
        found: Any = below.loc[(row.method, row.examples)]
        value, low, high = (decimal(found[name], 3, signed=True) for name in ("value", "ci_low", "ci_high"))
        return f"{count(row.examples)} rows, {value} [{low}, {high}] below random"

    question = "Is the language model better on tests that chose nothing after the curated rows than after random ones?"
    title = f"Loss of the held-back tests of “{losses['evaluation'].iloc[0]}” (lower is better)"
    table = _table(title, "Loss", losses, digits=3, lowest_first=True, note=note)
    return Experiment("Curated data", question, tables=[table])


def _detection(rows: pd.DataFrame) -> Experiment:
    recall = rows[rows["metric"] == "recall_at_10"].set_index(["damage", "method", "ranking"])["value"].to_dict()
    tables = []
    for damage, chosen in rows[rows["metric"] == "average_precision"].groupby("damage", sort=False):
        first = chosen.iloc[0]

        def note(row: Any, damage: object = damage) -> str:
            found = recall[(damage, row.method, row.ranking)]
            return f"by {RANKINGS[row.ranking]}; {100 * found:.0f} % of them among the first tenth of the rows"

        title = (
            f"{DAMAGES[str(damage)]}: {count(first['damaged_rows'])} among {count(first['rows'])} rows, chance "
            f"{decimal(first['damaged_rows'] / first['rows'], 3)}"
        )
        tables.append(_table(title, "Average precision", chosen, digits=3, note=note))
    question = (
        "Rows of the pool are damaged on purpose. Does a ranking by harm to trusted tests put them first? Beside it: "
        "self-influence, and the loss of the row's answer."
    )
    return Experiment("Detection", question, tables=tables)


def _figure(title: str, x_title: str, lines: dict[str, list[tuple[float, float]]], logarithmic: bool = False) -> Figure:
    """Return a figure of lines through (x, y) points; both axes logarithmic, or both linear and from zero."""
    # All runs of a point may have diverged.
    lines = {method: [point for point in line if math.isfinite(point[1])] for method, line in lines.items()}
    points = [point for line in lines.values() for point in line] or [(1.0, 1.0)]
    if logarithmic:
        x_place, x_ticks = _log_scale([x for x, _ in points])
        y_place, y_ticks = _log_scale([y for _, y in points if y > 0])
    else:
        x_axis = linear_axis(0, max(x for x, _ in points))
        y_axis = linear_axis(min(0.0, *(y for _, y in points)), max(0.0, *(y for _, y in points)))
        (x_place, x_ticks), (y_place, y_ticks) = (x_axis.place, x_axis.ticks), (y_axis.place, y_axis.ticks)
        lines = {method: [(0.0, 0.0), *line] for method, line in lines.items()}
    made = []
    for method, line in lines.items():
        placed = [(x_place(x), round(100 - y_place(y), 2)) for x, y in sorted(line) if y > 0 or not logarithmic]
        if placed:
            text = " ".join(f"{x},{y}" for x, y in placed)
            made.append(Line(method, _name(method), text, *placed[-1]))
    return Figure(title, x_title, x_ticks, y_ticks, made)


def _log_scale(values: Sequence[float]) -> tuple[Callable[[float], float], list[Tick]]:
    first = math.floor(math.log10(min(values)))
    last = max(math.ceil(math.log10(max(values))), first + 1)

    def place(value: float) -> float:
        return round(100 * (math.log10(value) - first) / (last - first), 2)

    every = max(1, math.ceil((last - first) / 6))
    ticks = [Tick(place(10.0**power), f"{10.0**power:,.{max(0, -power)}f}") for power in range(first, last + 1, every)]
    return place, ticks
