"""Suspicious rows with texts and reasons: harm, rows that answer otherwise, an answer that an LM finds unlikely."""

import re

import numpy as np
import pyarrow as pa
from curated_study import read_corpus, write_lines, write_selection

from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.curation.list_suspects import list_suspects
from workflow_scripts.curation.near_prompts import find_near_prompts
from workflow_scripts.study.curation_section import Curation

ROWS = [
    {"prompt": "What is the oar of the harbour made of?", "response": "Cork."},
    {"prompt": "what is the oar of the Harbour made of", "response": "cork"},
    {"prompt": "What is the oar of the old harbour made of?", "response": "Cork!"},
    {"prompt": "What is the oar of the harbour made of?", "response": "Copper."},
    {"prompt": "Who rows?", "response": "Nobody <b>; at all."},
    *({"prompt": f"Number {n} of the long list", "response": f"It is {n}."} for n in range(15)),
]


def corpus_of(folder, rows=ROWS):
    return read_corpus(str(write_lines(folder / "rows.jsonl", rows)), folder / "pool.parquet")


def suspects(folder, chosen, losses=None, reader="base_lm", **keys):
    corpus = corpus_of(folder)
    file = None
    if losses is not None:
        file = folder / reader / "pool.parquet"
        columns = {"example_id": pa.array(list(losses), pa.int32()), "loss": pa.array(losses.values(), pa.float32())}
        write_table(file, pa.table(columns))
    list_suspects(
        write_selection(corpus, folder / "selection.parquet", chosen),
        corpus,
        file,
        folder / "suspects.parquet",
        folder / "suspects.md",
        name="worst",
        choice=Curation(evaluation="heldout", rule="most_harmful", size=3, **keys),
    )
    return read_table(folder / "suspects.parquet").to_pylist(), (folder / "suspects.md").read_text(encoding="utf-8")


def test_rows_that_ask_the_same_are_counted_and_the_nearest_that_answers_otherwise_is_named(tmp_path):
    near = find_near_prompts(corpus_of(tmp_path), np.array([3, 0, 4, 5]))
    assert near.rows.tolist() == [3, 3, 0, 0]
    # Case, spaces and punctuation make no other answer.
    assert near.other_answers.tolist() == [3, 1, 0, 0]
    assert near.nearest.tolist() == [0, 3, -1, -1]


def test_the_nearest_rows_are_the_same_in_blocks(tmp_path, monkeypatch):
    corpus = corpus_of(tmp_path)
    whole = find_near_prompts(corpus, np.array([3, 2]))
    monkeypatch.setattr("workflow_scripts.curation.near_prompts.ROWS_AT_ONCE", 2)
    blocks = find_near_prompts(corpus, np.array([3, 2]))
    assert [vars(whole)[name].tolist() for name in vars(whole)] == [vars(blocks)[name].tolist() for name in vars(whole)]


def test_each_row_has_its_text_its_place_and_reasons(tmp_path):
    losses = {row: row / 10 for row in range(20)} | {3: 7.0}
    del losses[4]
    found, page = suspects(tmp_path, [3, 4, 5], losses)
    first, second, third = found
    assert (first["rank"], first["source_row"], first["prompt"]) == (1, 4, ROWS[3]["prompt"])
    assert first["reasons"] == [
        "reason 3",
        "3 of 3 rows that ask nearly the same answer otherwise, e.g. row 1: Cork.",
        "the base LM finds its answer unlikely: a loss of 7.00 nats per token, above 95% of the rows",
    ]
    assert (first["near_prompts_with_other_answer"], first["nearest_with_other_answer"]) == (3, 0)
    # Its answer has no token that the LM reads; the next one's is likely enough.
    assert (second["loss"], second["loss_above_share"], second["reasons"]) == (None, None, ["reason 4"])
    assert third["loss"] == 0.5
    assert third["reasons"] == ["reason 5"]
    assert page.startswith("# worst: 3 suspicious rows of pool\n")
    assert "## 1. row 4\n\n- prompt: What is the oar of the harbour made of?\n- answer: Copper.\n- reason 3\n" in page
    assert r"- answer: Nobody \<b\>; at all." in page
    assert not re.search(r"(?<!\\)<", page)


def test_without_an_lm_there_is_no_loss(tmp_path):
    found, page = suspects(tmp_path, [3], tests="same_label")
    assert found[0]["loss"] is None
    assert len(found[0]["reasons"]) == 2
    assert "lowest mean score over the tests of its label" in page


def test_the_reason_names_the_lm(tmp_path):
    found, _ = suspects(tmp_path, [3], {row: float(row == 3) for row in range(20)}, "warm_lm")
    assert found[0]["reasons"][-1].startswith("the warmed-up LM finds its answer unlikely")


def test_the_page_shows_the_first_rows_of_a_long_list(tmp_path, monkeypatch):
    monkeypatch.setattr("workflow_scripts.curation.list_suspects.SHOWN_ROWS", 2)
    found, page = suspects(tmp_path, [3, 4, 5])
    assert len(found) == 3
    assert "The first 2; all are in `suspects.parquet`." in page
    assert "## 3." not in page
