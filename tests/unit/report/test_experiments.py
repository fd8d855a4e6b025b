"""The report's section on experiments: names, order, notes, and where lines run."""

import pyarrow as pa
import pytest

from workflow_scripts.core.parquet import write_table
from workflow_scripts.report.experiments import gather_experiments


def value(method, metric, number, **more):
    row = {"method": method, "evaluation": "heldout", "metric": metric, "value": number}
    return {**row, "ci_low": number - 0.1, "ci_high": number + 0.1, **more}


def found(method, ranking, damage, metric, number):
    sizes = {"damaged_rows": 30, "rows": 1000}
    return value(method, metric, number, ranking=ranking, damage=damage, first_ranking=None, **sizes)


TABLES = {
    "loo": [
        value("tfidf", "leave_1_out", 0.2, ceiling=0.5, seed_agreement=0.3),
        value("airrep@mean", "leave_1_out", 0.4, ceiling=0.5, seed_agreement=0.3),
        value("tfidf", "leave_8_out", 0.1, ceiling=0.9, seed_agreement=0.8),
    ],
    "removal": [
        value(method, metric, number * removed, removed=removed)
        for removed in (2, 4)
        for method, metric, number in [
            ("airrep", "loss_rise", 0.1),
            ("airrep", "loss_rise_over_random", 0.08),
            ("random_removal", "loss_rise", 0.02),
        ]
    ],
    "selection": [
        value("airrep", "f1", 0.6),
        value("airrep", "f1_over_random", 0.2),
        value("airrep", "loss", 1.0),
        value("full_data", "f1", 0.7),
        value("full_data", "f1_over_random", 0.3),
        value("full_data", "f1_over_first", 0.1),
        value("full_data", "loss", 0.9),
        value("full_data", "loss_below_first", 0.1),
        value("random_selection", "f1", 0.4),
    ],
    "classification": [value("airrep", "accuracy", 0.8, n_tests=200)],
    "amortisation": [
        {
            "method": "airrep",
            "evaluation": "heldout",
            "rival": rival,
            "fixed_seconds": 1000.0,
            "seconds_per_example": 0.01,
            "rival_fixed_seconds": 0.0,
            "rival_seconds_per_example": each,
            "crossover_examples": meets,
            "jobs_with_start_up": 0,
        }
        for rival, each, meets in [("tfidf", 0.001, None), ("logra", 0.11, 10_000.0)]
    ],
    "transfer": [
        {
            "method": "airrep",
            "pooling": "attention",
            "home": "heldout",
            "evaluation": "away",
            "lds_home": 0.5,
            "lds": 0.4,
            "ci_low": 0.3,
            "ci_high": 0.5,
            "ceiling": 0.9,
            "retained": 0.85,
            "advice": "fine-tune",
        }
    ],
    "curated_data": [
        value("best", "loss", 1.5, examples=500),
        value("best", "loss_below_random", 0.25, examples=500),
        value("random_selection", "loss", 1.75, examples=500),
    ],
    "detection": [
        found(method, ranking, damage, metric, number)
        for damage in ("trigger", "any")
        for method, ranking, precision in (("airrep", "same_label", 0.5), ("warm_lm", "loss", 0.75))
        for metric, number in (("average_precision", precision), ("recall_at_10", 0.875))
    ],
}


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    for name, rows in TABLES.items():
        write_table(folder / f"{name}.parquet", pa.Table.from_pylist(rows))
    return {one.title: one for one in gather_experiments([folder / f"{name}.parquet" for name in TABLES], "airrep")}


def test_rows_stand_best_first_and_variants_and_random_ones_have_names(experiments):
    first, second = experiments["Leave one out"].tables
    assert [row.name for row in first.rows] == ["AirRep, variant mean", "TF-IDF"]
    assert first.title == "1 left out on “heldout”, agreement between seeds 0.30"
    assert (first.ceiling, second.ceiling) == (0.5, 0.9)
    f1, loss = experiments["Data selection"].tables
    assert [row.name for row in f1.rows] == ["All data", "AirRep", "Random examples"]
    assert [row.note for row in f1.rows] == [
        "+0.300 [+0.200, +0.400] against random; +0.100 [+0.000, +0.200] against AirRep",
        "+0.200 [+0.100, +0.300] against random",
        "",
    ]
    assert [row.name for row in loss.rows] == ["All data", "AirRep"]
    assert loss.rows[0].note == "+0.100 [+0.000, +0.200] against AirRep"


def test_removal_lines_begin_at_nothing_removed(experiments):
    (figure,) = experiments["Removal curve"].figures
    main, random = figure.lines
    assert (main.name, main.method, random.name) == ("AirRep", "airrep", "Random examples")
    assert main.points.split()[0] == "0.0,100.0"
    assert main.points.split()[-1] == "100.0,0.0"  # 4 removed, a rise of 0.4: the ends of both axes


def test_the_crossover_is_a_sentence(experiments):
    never, from_on = experiments["Amortisation"].sentences
    assert never.startswith("AirRep never becomes cheaper than TF-IDF")
    assert from_on == (
        "AirRep is cheaper than logra from 10,000 examples on: 10 ms an example after 16 min 40 s, against 0.1 s "
        "after 0 s."
    )


def test_the_advice_is_a_sentence(experiments):
    (sentence,) = experiments["Transfer"].sentences
    assert sentence.startswith("Go on from the encoder")
    assert experiments["Transfer"].tables[0].rows[0].note == "0.50 at home, 85 % of its share of the ceiling kept"


def test_each_kind_of_damage_has_a_table_and_each_row_its_ranking(experiments):
    trigger, everything = experiments["Detection"].tables
    assert trigger.title == "A planted trigger with one answer: 30 among 1,000 rows, chance 0.030"
    assert everything.title.startswith("All kinds of damage")
    assert [row.name for row in trigger.rows] == ["Warmed-up LM", "AirRep"]
    assert trigger.rows[1].note == "by tests of the same label; 88 % of them among the first tenth of the rows"


def test_a_value_that_is_not_known_stands_last(tmp_path):
    rows = [value("full_data", "f1", 0.6), value("airrep", "f1", 0.5), value("random_selection", "f1", 0.4)]
    rows[0] |= {"value": None, "ci_low": None, "ci_high": None}  # all of its runs diverged
    write_table(tmp_path / "selection.parquet", pa.Table.from_pylist([*rows, value("airrep", "loss", 1.0)]))
    (experiment,) = gather_experiments([tmp_path / "selection.parquet"], "airrep")
    assert [row.name for row in experiment.tables[0].rows] == ["AirRep", "Random examples", "All data"]


def test_a_study_without_experiments_has_no_section():
    assert gather_experiments([], "airrep") == []
