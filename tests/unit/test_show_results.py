"""The table that `make run` ends with."""

import pyarrow as pa

from workflow_scripts.evaluate_lds import LDS_SCHEMA
from workflow_scripts.lib.tables import write_table
from workflow_scripts.show_results import results_text


def row(method, evaluation, lds):
    numbers = {"ci_low": lds - 0.1, "ci_high": lds + 0.1, "ceiling": 0.9, "n_tests": 200, "n_subsets": 1000}
    return {"method": method, "evaluation": evaluation, "pooling": "mean", "lds": lds, **numbers}


def test_one_table_for_each_evaluation_best_first_and_the_reports_path(tmp_path):
    rows = [row("tfidf", "a", 0.3), row("airrep", "a", 0.6), row("airrep", "b", 0.5)]
    table = pa.Table.from_pylist([dict.fromkeys(LDS_SCHEMA.names) | r for r in rows], schema=LDS_SCHEMA)
    write_table(tmp_path / "evaluation" / "lds.parquet", table)
    assert results_text(tmp_path).splitlines() == [
        "",
        "LDS on a (200 tests, 1,000 subsets, noise ceiling 0.900)",
        "  method        pooling       LDS   interval",
        "  airrep        mean        0.600   0.500 to 0.700",
        "  tfidf         mean        0.300   0.200 to 0.400",
        "",
        "LDS on b (200 tests, 1,000 subsets, noise ceiling 0.900)",
        "  method        pooling       LDS   interval",
        "  airrep        mean        0.500   0.400 to 0.600",
        "",
        f"Report: {tmp_path / 'report.html'}",
    ]
