"""The page of a selection: counts beside the corpus, what was folded and refused, examples; texts do nothing."""

import re

from curated_study import read_corpus, write_lines, write_selection

from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.curation.summarize_curation import summarize_curation
from workflow_scripts.study.curation_section import Curation


def summary(tmp_path, chosen, **keys):
    rows = [
        {"prompt": f"p{n} <b>|", "response": f"[r{n}](http://x)", "label": "ab"[n % 2] if n < 8 else None}
        for n in range(12)
    ]
    source = write_lines(tmp_path / "rows.jsonl", [*rows, {"prompt": "", "response": "x"}])
    corpus = read_corpus(str(source), tmp_path / "pool.parquet")
    table = read_table(write_selection(corpus, tmp_path / "selection.parquet", chosen))
    table = table.set_column(3, "near_duplicates", table["rank"])
    entries = {
        "rows": "12",
        "ranked": "9",
        "tests": "4",
        "over_quota": "3",
        "equal_tests": "0",
        "quantiles": "[-1.5, 0, 2.5]",
    }
    write_table(tmp_path / "selection.parquet", table, **entries)
    page = tmp_path / "summary.md"
    choice = Curation(evaluation="heldout", **{"rule": "mean_score", "size": 3, **keys})
    rejected = tmp_path / "pool.rejected.parquet"
    summarize_curation(tmp_path / "selection.parquet", corpus, rejected, page, name="best", choice=choice)
    return page.read_text(encoding="utf-8")


def test_the_page_counts_labels_beside_the_corpus(tmp_path):
    page = summary(tmp_path, [0, 2, 9], near_duplicates="once", quotas={"a": 2})
    assert page.startswith("# best: 3 of 12 rows\n")
    assert "| a | 2 | 66.7% | 4 | 33.3% |" in page
    assert "| b | 0 | 0.0% | 4 | 33.3% |" in page
    assert r"| \(no label\) | 1 | 33.3% | 4 | 33.3% |" in page
    assert "- 6 near duplicates were folded" in page
    assert "- Quotas by label: a: 2; 3 rows were passed over." in page
    assert "- 1 rows of the source were rejected when it was read: 1 x 'prompt' is empty" in page
    assert "| selected | 0.3333 |" in page
    assert "| corpus | -1.5 | 0 | 2.5 |" in page
    assert "1. row 1 (and 1 near duplicates): p0" in page
    assert "   reason 9" in page


def test_a_list_for_review_says_how_many_are_below_zero(tmp_path):
    assert "- 0 of them have a mean score below 0; the others only help less" in summary(
        tmp_path, [0, 2, 9], rule="most_harmful"
    )


def test_the_page_says_which_tests_a_mean_is_over(tmp_path):
    assert "by the mean score over all tests, the lowest first" in summary(tmp_path, [0], rule="most_harmful")
    page = summary(tmp_path, [0], rule="most_harmful", tests="same_label")
    assert "by the mean score over the tests of its label, the lowest first" in page


def test_texts_of_a_corpus_are_shown_and_do_nothing(tmp_path):
    page = summary(tmp_path, [0, 2, 9])
    assert r"p0 \<b\>\| -\> \[r0\]\(http://x\)" in page
    assert not re.search(r"(?<!\\)<", page)
