"""The report's heat maps: values, units, colours, what is clear, and what was left out."""

import math

import pyarrow as pa
import pytest
from report_run import make_run

from workflow_scripts.core.parquet import write_table
from workflow_scripts.evaluation.evaluate_label_influence import AGREEMENT_SCHEMA, SCHEMA
from workflow_scripts.report.label_influence import gather_label_influence
from workflow_scripts.report.write_report import write_report


def row(train, test, advantage, measured, top_share, **more):
    values = {"advantage": advantage, "measured": measured, "top_share": top_share, "mean_score": advantage}
    ends = {
        f"{name}{end}": None if value is None else value + shift
        for name, value in values.items()
        for end, shift in (("_low", -0.004), ("_high", 0.004))
    }
    names = {"evaluation": "heldout", "method": "tfidf", "train_label": train, "test_label": test}
    left_out = {"train_labels_left_out": 1, "test_labels_left_out": 2}
    return {**names, "train_rows": 1500, "tests": 20, "corpus_share": 0.5, **values, **ends, **left_out, **more}


ROWS = [
    row("sums", "sums", 8.4, 0.031, 0.9),
    row("sums", None, -2.1, -0.002, 0.5),
    row(None, "sums", -8.4, -0.015, 0.1),
    row(None, None, 2.1, math.nan, 0.5),
]


def gathered(folder, rows, agreements=(), main="airrep"):
    paths = [folder / "influence.parquet", folder / "agreements.parquet"]
    write_table(paths[0], pa.Table.from_pylist(rows, SCHEMA))
    write_table(paths[1], pa.Table.from_pylist(list(agreements), AGREEMENT_SCHEMA))
    return gather_label_influence(*paths, main)


def test_cells_have_values_of_two_digits_and_the_colour_of_their_sign(tmp_path):
    (one,) = gathered(tmp_path, ROWS)
    measured, predicted, shares = one.maps
    assert measured.columns == ["sums", "no label"]
    assert [label for label, _ in measured.rows] == ["sums", "no label"]
    assert [[cell.text for cell in cells] for _, cells in measured.rows] == [["31", "−2"], ["−15", "–"]]
    assert measured.note == "nats per response token, × 0.001"
    assert [[cell.text for cell in cells] for _, cells in predicted.rows] == [["84", "−21"], ["−84", "21"]]
    assert predicted.note == "score above that of other rows, × 0.1"
    assert [[cell.text for cell in cells] for _, cells in shares.rows] == [["90", "50"], ["10", "50"]]
    (first, second), (third, _) = (cells for _, cells in measured.rows)
    assert [(cell.helps, cell.is_clear) for cell in (first, second, third)] == [
        (True, True),
        (False, False),  # its interval has zero in it
        (False, True),
    ]
    assert first.title == "+0.0310 [+0.0270, +0.0350]"
    assert first.shade > third.shade > second.shade > 0
    assert shares.rows[0][1][0].title == "90 % [90 %, 90 %], of the corpus 50 %"
    assert not shares.rows[0][1][1].is_clear


def test_what_was_left_out_is_said(tmp_path):
    (one,) = gathered(tmp_path, ROWS)
    assert one.facts == (
        "3,000 training rows and 40 tests. Left out: 1 label of training rows with fewer rows and 2 labels of tests "
        "with fewer rows."
    )
    complete = [{**one, "train_labels_left_out": 0, "test_labels_left_out": 0} for one in ROWS]
    assert gathered(tmp_path, complete)[0].facts == "3,000 training rows and 40 tests."


def test_nothing_is_shown_of_what_is_not_known(tmp_path):
    assert gathered(tmp_path, []) == []
    (alone,) = gathered(tmp_path, [{**one, "measured": None} for one in ROWS])
    assert [one.title for one in alone.maps] == ["Predicted by TF-IDF", "Share of the most helpful rows by TF-IDF"]
    assert alone.agreements == []
    (lists,) = gathered(tmp_path, [{**one, "measured": None, "advantage": None} for one in ROWS])
    assert [one.title for one in lists.maps] == ["Share of the most helpful rows by TF-IDF"]


def test_airrep_comes_first_and_agreements_the_best_first(tmp_path):
    rows = ROWS + [{**one, "method": "airrep"} for one in ROWS]
    agreements = [
        {
            "evaluation": "heldout",
            "method": method,
            "prediction": "mean_score",
            "agreement": value,
            "ci_low": value - 0.1,
        }
        | {"ci_high": value + 0.1, "ceiling": 0.9, "n_cells": 4, "n_subsets": 9}
        for method, value in (("tfidf", 0.2), ("airrep", 0.6), ("ekfac", None))
        if value is not None
    ]
    (one,) = gathered(tmp_path, rows, agreements)
    assert one.maps[1].title == "Predicted by AirRep"
    assert [name for name, _ in one.others] == ["TF-IDF"]
    (table,) = one.agreements
    assert [(made.method, made.name, made.value) for made in table.rows] == [
        ("airrep", "AirRep", 0.6),
        ("tfidf", "TF-IDF", 0.2),
    ]
    (other,) = gathered(tmp_path, rows, agreements, main="tfidf")
    assert (other.maps[1].title, [name for name, _ in other.others]) == ("Predicted by TF-IDF", ["AirRep"])
    assert table.ceiling == 0.9


def test_the_page_has_the_section_only_where_there_are_labels(tmp_path):
    run = make_run(tmp_path)
    write_report(**run)
    page = run["report"].read_text(encoding="utf-8")
    assert '<a href="#labels">Labels</a>' in page
    assert page.count('<figure class="heat">') == 3 + 6 * 2
    assert "no label" in page
    for name, schema in (("influence", SCHEMA), ("agreements", AGREEMENT_SCHEMA)):
        write_table(run[name], schema.empty_table())
    write_report(**run)
    assert 'id="labels"' not in run["report"].read_text(encoding="utf-8")


def test_a_hostile_label_is_only_text(tmp_path):
    run = make_run(tmp_path)
    hostile = "<script>alert(1)</script>\x00"
    write_table(run["influence"], pa.Table.from_pylist([row(hostile, hostile, 1.0, 0.1, 0.5)], SCHEMA))
    write_report(**run)
    page = run["report"].read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "\x00" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_matrices_without_a_difference_are_drawn(tmp_path, value):
    (one,) = gathered(tmp_path, [{**one, "measured": 0.0, "advantage": value, "top_share": 0.5} for one in ROWS])
    assert all(cell.shade == 0 for made in one.maps for _, cells in made.rows for cell in cells)
