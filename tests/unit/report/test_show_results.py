"""The table that `make run` ends with."""

import pandas as pd
import pyarrow as pa

from workflow_scripts.core.parquet import write_table
from workflow_scripts.evaluation.average import AVERAGE_SCHEMA
from workflow_scripts.evaluation.evaluate_lds import LDS_SCHEMA
from workflow_scripts.evaluation.lds_table import lds_table
from workflow_scripts.report.show_results import results_text
from workflow_scripts.study.config import load_study

HEADS = [
    "                                                             seconds per corpus     seconds once",
    "  method           pooling       LDS  interval           embed   score     sum      fit  warm-up",
]


def row(method, evaluation, lds):
    numbers = {"ci_low": lds - 0.1, "ci_high": lds + 0.1, "ceiling": 0.9, "n_tests": 200, "n_subsets": 1000}
    numbers |= {"embedding_seconds": 0.25, "scoring_seconds": 1.5, "seconds": 1.75, "fitting_seconds": 1234.5}
    return {"method": method, "evaluation": evaluation, "pooling": "mean", "chosen": None, "lds": lds, **numbers}


def study(subsets, evaluations):
    """A study that takes a trained encoder, so that it needs no targets."""
    evaluation = {"train": "pool", "test": "tests", "tests": None, "subsets": subsets, "subset_examples": 10}
    values = {
        "run": "mine",
        "corpora": {"pool": {"source": "pool.jsonl"}, "tests": {"source": "tests.jsonl"}},
        "language_model": {"model": "some/model"},
        "encoder": {"model": "some/encoder"},
        "evaluations": dict.fromkeys(evaluations, evaluation),
        "scoring": {"methods": ["airrep"]},
    }
    return load_study(values)


def test_one_table_for_each_evaluation_best_first_and_the_reports_path(tmp_path):
    rows = [row("tfidf", "a", 0.3), row("airrep", "a", 0.6), row("airrep", "b", 0.5)]
    table = pa.Table.from_pylist([dict.fromkeys(LDS_SCHEMA.names) | r for r in rows], schema=LDS_SCHEMA)
    write_table(tmp_path / "evaluation" / "lds.parquet", table)
    assert results_text(tmp_path, study(100, ["a", "b"])).splitlines() == [
        "",
        "LDS on a (200 tests, 1,000 subsets, noise ceiling 0.900)",
        *HEADS,
        "  airrep           mean        0.600  0.500 to 0.700      0.25    1.50    1.75    1,234        -",
        "  tfidf            mean        0.300  0.200 to 0.400      0.25    1.50    1.75    1,234        -",
        "",
        "LDS on b (200 tests, 1,000 subsets, noise ceiling 0.900)",
        *HEADS,
        "  airrep           mean        0.500  0.400 to 0.600      0.25    1.50    1.75    1,234        -",
        "",
        f"Report: {tmp_path / 'report.html'}",
    ]


def test_an_evaluation_without_lds_ends_nothing(tmp_path):
    table = pa.Table.from_pylist([dict.fromkeys(LDS_SCHEMA.names) | row("tfidf", "a", 0.3)], schema=LDS_SCHEMA)
    write_table(tmp_path / "evaluation" / "lds.parquet", table)
    shown = results_text(tmp_path, study(100, ["a", "b"]))
    assert "LDS on b: it can't be computed there; the report says why" in shown
    assert shown.splitlines()[-1] == f"Report: {tmp_path / 'report.html'}"


def test_the_average_over_evaluations_comes_first(tmp_path):
    rows = [row("airrep", "a", 0.6), row("airrep", "b", 0.5)]
    table = pa.Table.from_pylist([dict.fromkeys(LDS_SCHEMA.names) | r for r in rows], schema=LDS_SCHEMA)
    write_table(tmp_path / "evaluation" / "lds.parquet", table)
    mean = {
        "method": "airrep",
        "pooling": "mean",
        "lds": 0.55,
        "ci_low": 0.5,
        "ci_high": 0.6,
        "evaluations": ["a", "b"],
    }
    table = pa.Table.from_pylist([dict.fromkeys(AVERAGE_SCHEMA.names) | mean], schema=AVERAGE_SCHEMA)
    write_table(tmp_path / "evaluation" / "average_lds.parquet", table)
    lines = results_text(tmp_path, study(100, ["a", "b"])).splitlines()
    assert lines[:2] == ["", "Average LDS over a, b"]
    assert lines[3].split() == ["airrep", "mean", "0.550", "0.500", "to", "0.600", "0.600", "0.500"]
    assert lines[5].startswith("LDS on a ")


def test_best_examples_where_nothing_was_judged(tmp_path):
    # The second row of the source was refused.
    pool = {"prompt": ["p0", "p1 \x1b[2J", "p2"], "response": ["r0", "r1", "r2 " * 100], "source_row": [1, 3, 4]}
    pool["source_file"] = ["pool.jsonl"] * 3
    write_table(tmp_path / "corpora" / "pool.parquet", pa.table(pool))
    tests = {"prompt": [f"q{i}" for i in range(7)], "response": ["a"] * 7, "source_row": [1, 2, 3, 4, 1, 2, 3]}
    tests["source_file"] = ["a.jsonl"] * 4 + ["b.jsonl"] * 3
    write_table(tmp_path / "corpora" / "tests.parquet", pa.table(tests))
    scores = [
        {"test_id": test, "sign": sign, "rank": rank + 1, "example_id": example, "score": 0.5 - rank}
        for test in (6, 1, 0, 5, 4, 3, 2)
        for sign, order in (("helpful", (1, 2)), ("harmful", (0, 2)))
        for rank, example in enumerate(order)
    ]
    path = tmp_path / "scores" / "airrep" / "mine.parquet"
    write_table(path, pa.Table.from_pylist(scores))
    lines = results_text(tmp_path, study(0, ["mine"])).splitlines()
    assert lines[:5] == [
        "",
        f"Most helpful training examples on mine by airrep (7 tests; all scores: {path})",
        "  test, row 1 of a.jsonl: q0 -> a",
        "     0.5000  row 3: p1 [2J -> r1",
        "    -0.5000  row 4: p2 -> " + ("r2 " * 100)[:49] + "…",
    ]
    shown = ["row 1 of a.jsonl", "row 2 of a.jsonl", "row 3 of a.jsonl", "row 4 of a.jsonl", "row 1 of b.jsonl"]
    assert [line.split(":")[0] for line in lines if line.startswith("  test")] == [f"  test, {row}" for row in shown]
    assert lines[-3:] == ["  ... and 2 tests more", "", f"Report: {tmp_path / 'report.html'}"]


def test_tables_of_earlier_versions_are_shown(tmp_path):
    table = pd.DataFrame([dict.fromkeys(LDS_SCHEMA.names, 0.0) | row("airrep", "heldout", 0.5)]).drop(columns="chosen")
    assert "airrep" in "\n".join(lds_table(table))
