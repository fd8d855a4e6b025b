"""The report's section on experiments: for each, what was asked, a table, and a figure where it helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_scripts.core.parquet import read_table
from workflow_scripts.report.charts import Axis, Tick, linear_axis
from workflow_scripts.report.formatting import count, decimal, duration
from workflow_scripts.report.results import MAIN_METHOD, method_name

RANDOM_NAMES = {
    "random_removal": "Random examples",
    "random_selection": "Random examples",
    "full_data": "All data",
}


@dataclass(frozen=True)
class Row:
    """One method's value with its interval; `note` is a further word on it."""

    name: str
    value: float
    low: float | None
    high: float | None
    main: bool
    note: str = ""


@dataclass(frozen=True)
class ResultTable:
    """Values of one metric, best first; `ceiling` is the highest that can be expected, where known."""

    title: str
    column: str
    digits: int
    axis: Axis
    rows: list[Row]
    ceiling: float | None = None


@dataclass(frozen=True)
class Line:
    """A method's line in a figure: SVG points, and where its name stands, in percent."""

    name: str
    points: str
    x: float
    y: float
    main: bool


@dataclass(frozen=True)
class Figure:
    """Lines of several methods."""

    title: str
    x_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]


@dataclass(frozen=True)
class Experiment:
    """One experiment of the report."""

    title: str
    question: str
    sentences: list[str] = field(default_factory=list)
    tables: list[ResultTable] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def gather_experiments(tables: Sequence[Path]) -> list[Experiment]:
    """Return the experiments whose tables are given, `evaluation/<name>.parquet`; a table without a row is left out."""
    makers: dict[str, Callable[[list[dict[str, Any]]], Experiment]] = {
        "loo": _leave_out,
        "removal": _removal,
        "selection": _selection,
        "classification": _classification,
        "amortisation": _amortisation,
        "transfer": _transfer,
    }
    read = {path.stem: read_table(path).to_pylist() for path in tables}
    return [make(read[name]) for name, make in makers.items() if read.get(name)]


def _name(method: str) -> str:
    return RANDOM_NAMES.get(method) or method_name(method)


def _is_main(method: str) -> bool:
    return method == MAIN_METHOD


def _table(
    title: str,
    column: str,
    rows: Sequence[dict[str, Any]],
    *,
    value: str = "value",
    digits: int = 2,
    ceiling: float | None = None,
    lowest_first: bool = False,
    note: Callable[[dict[str, Any]], str] = lambda row: "",
) -> ResultTable:
    made = [
        Row(_name(row["method"]), row[value], row["ci_low"], row["ci_high"], _is_main(row["method"]), note(row))
        for row in rows
    ]
    made.sort(key=lambda row: row.value if lowest_first else -row.value)
    shown = [0.0, *([ceiling] if ceiling is not None else [])]
    shown += [one for row in made for one in (row.value, row.low, row.high) if one is not None and math.isfinite(one)]
    return ResultTable(title, column, digits, linear_axis(min(shown), max(shown)), made, ceiling)


def _leave_out(rows: list[dict[str, Any]]) -> Experiment:
    tables = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        chosen = [row for row in rows if row["metric"] == metric]
        size = int(metric.split("_")[1])
        ceiling, agreement = chosen[0]["ceiling"], chosen[0]["seed_agreement"]
        title = f"{count(size)} left out on “{chosen[0]['evaluation']}”, agreement between seeds {decimal(agreement)}"
        tables.append(_table(title, "Correlation", chosen, ceiling=ceiling))
    question = (
        "Fine-tune once with a set of examples and once without some of them: does the loss of a test example rise as "
        "the scores of those say? Rank correlation over the groups that were left out, mean over test examples."
    )
    return Experiment("Leave one out", question, tables=tables)


def _removal(rows: list[dict[str, Any]]) -> Experiment:
    rises = [row for row in rows if row["metric"] == "loss_rise"]
    over = [row for row in rows if row["metric"] == "loss_rise_over_random"]
    largest = max(row["removed"] for row in rises)
    question = (
        "Fine-tune without the examples that a method holds to be a test's most helpful ones: the more the loss "
        "rises, the better the method found them. Random examples show what any removal does."
    )
    lines = {
        method: [(row["removed"], row["value"]) for row in rises if row["method"] == method]
        for method in dict.fromkeys(row["method"] for row in rises)
    }
    figure = _figure("Rise of the test's loss, in nats per token", "examples removed", lines)
    tables = [
        _table(
            f"Rise of the loss above a random removal, {count(largest)} examples removed",
            "Above random",
            [row for row in over if row["removed"] == largest],
            digits=3,
        )
    ]
    return Experiment("Removal curve", question, tables=tables, figures=[figure])


def _selection(rows: list[dict[str, Any]]) -> Experiment:
    f1 = [row for row in rows if row["metric"] == "f1"]
    over = {row["method"]: row for row in rows if row["metric"] == "f1_over_random"}

    def note(row: dict[str, Any]) -> str:
        found = over.get(row["method"])
        if found is None:
            return ""
        bounds = f"[{decimal(found['ci_low'], signed=True)}, {decimal(found['ci_high'], signed=True)}]"
        return f"{decimal(found['value'], signed=True)} {bounds} against random"

    question = (
        "For each task, fine-tune on the examples that a method ranks first, and let the language model answer the "
        "task's tests. Unigram F1 of answer and response: mean over a task's tests, then over tasks."
    )
    losses = [row for row in rows if row["metric"] == "loss"]
    tables = [
        _table(f"F1 on “{f1[0]['evaluation']}”", "F1", f1, note=note),
        _table("Loss of the tests' responses (lower is better)", "Loss", losses, digits=3, lowest_first=True),
    ]
    return Experiment("Data selection", question, tables=tables)


def _classification(rows: list[dict[str, Any]]) -> Experiment:
    tables = []
    for evaluation in dict.fromkeys(row["evaluation"] for row in rows):
        chosen = [row for row in rows if row["evaluation"] == evaluation]
        title = f"Accuracy on “{evaluation}”, {count(chosen[0]['n_tests'])} labelled tests"
        tables.append(_table(title, "Accuracy", chosen, digits=3))
    question = "Does the training example that a method ranks first carry the test example's label?"
    return Experiment("Data classification", question, tables=tables)


def _amortisation(rows: list[dict[str, Any]]) -> Experiment:
    main = next((row["method"] for row in rows if _is_main(row["method"])), rows[0]["method"])
    rows = [row for row in rows if row["method"] == main]
    sentences = [_overtakes(row) for row in rows]
    ours = (rows[0]["fixed_seconds"], rows[0]["seconds_per_example"])
    costs = {main: ours} | {
        row["rival"]: (row["rival_fixed_seconds"], row["rival_seconds_per_example"]) for row in rows
    }
    met = [row["crossover_examples"] for row in rows if row["crossover_examples"]]
    last = math.ceil(math.log10(max([*met, 1e5]))) + 1
    sizes = [10 ** (power / 4) for power in range(8, 4 * last + 1)]
    lines = {method: [(size, fixed + each * size) for size in sizes] for method, (fixed, each) in costs.items()}
    figure = _figure("Seconds in all, training included", "scored examples", lines, logarithmic=True)
    question = (
        "An encoder has to be trained first, and then embeds and scores fast. From which corpus size on has its "
        "training been paid for? From the seconds that this run took on its own machine."
    )
    return Experiment("Amortisation", question, sentences, figures=[figure])


def _overtakes(row: dict[str, Any]) -> str:
    ours, theirs = _name(row["method"]), _name(row["rival"])
    each = (
        f"{duration(row['seconds_per_example'])} an example after {duration(row['fixed_seconds'])}, against "
        f"{duration(row['rival_seconds_per_example'])} after {duration(row['rival_fixed_seconds'])}"
    )
    if row["crossover_examples"] is None:
        return f"{ours} never becomes cheaper than {theirs}: {each}."
    return f"{ours} is cheaper than {theirs} from {count(math.ceil(row['crossover_examples']))} examples on: {each}."


def _transfer(rows: list[dict[str, Any]]) -> Experiment:
    words = {
        "reuse": "Reuse the encoder for the other language model.",
        "fine-tune": "Go on from the encoder with some targets of the other language model: part of it carries over.",
        "retrain": "Train an encoder anew for the other language model: nothing shows that this one carries over.",
    }
    sentences = [words[row["advice"]] for row in rows if row["advice"]][:1]

    def note(row: dict[str, Any]) -> str:
        kept = "" if row["retained"] is None else f", {100 * row['retained']:.0f} % of its share of the ceiling kept"
        return f"{decimal(row['lds_home'])} at home{kept}"

    title = f"LDS on “{rows[0]['evaluation']}”, beside “{rows[0]['home']}”"
    table = _table(title, "LDS", rows, value="lds", ceiling=rows[0]["ceiling"], note=note)
    question = "What is an encoder that learned from one language model's targets worth for another language model?"
    return Experiment("Transfer", question, sentences, tables=[table])


def _figure(title: str, x_title: str, lines: dict[str, list[tuple[float, float]]], logarithmic: bool = False) -> Figure:
    """Return a figure of lines through (x, y) points; both axes logarithmic, or both linear and from zero."""
    points = [point for line in lines.values() for point in line]
    if logarithmic:
        x_place, x_ticks = _log_scale([x for x, _ in points])
        y_place, y_ticks = _log_scale([y for _, y in points if y > 0])
    else:
        x_axis = linear_axis(0, max(x for x, _ in points))
        y_axis = linear_axis(min(0.0, *(y for _, y in points)), max(y for _, y in points))
        (x_place, x_ticks), (y_place, y_ticks) = (x_axis.place, x_axis.ticks), (y_axis.place, y_axis.ticks)
        lines = {method: [(0.0, 0.0), *line] for method, line in lines.items()}
    made = []
    for method, line in lines.items():
        placed = [(x_place(x), round(100 - y_place(y), 2)) for x, y in sorted(line) if y > 0 or not logarithmic]
        if placed:
            text = " ".join(f"{x},{y}" for x, y in placed)
            made.append(Line(_name(method), text, *placed[-1], main=_is_main(method)))
    return Figure(title, x_title, x_ticks, y_ticks, made)


def _log_scale(values: Sequence[float]) -> tuple[Callable[[float], float], list[Tick]]:
    first = math.floor(math.log10(min(values)))
    last = max(math.ceil(math.log10(max(values))), first + 1)

    def place(value: float) -> float:
        return round(100 * (math.log10(value) - first) / (last - first), 2)

    every = max(1, math.ceil((last - first) / 6))
    ticks = [Tick(place(10.0**power), f"{10.0**power:,.{max(0, -power)}f}") for power in range(first, last + 1, every)]
    return place, ticks
