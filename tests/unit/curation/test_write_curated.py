"""Selected rows with every column of their source, from any kind of file, and corpora without the rows of a review."""

import csv
import datetime
import gzip
import json
import math
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated_study import read_corpus, read_lines, write_lines, write_selection

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, read_table, table_metadata
from workflow_scripts.curation.drop_rows import drop_rows
from workflow_scripts.curation.write_curated import write_curated
from workflow_scripts.study.sections import Corpus

ROWS = [
    {
        "prompt": f"How many of {number}?",
        "response": f"Exactly {number}.",
        "id": number,
        "weight": number / 7,
        "tags": ["a", {"deep": [number, None]}],
        "when": None,
        "Stra\u00dfe \u2028": "\u00e4\u2028\U0001f600",
    }
    for number in range(30)
]
ADDED = {"curation_rank", "curation_score", "curation_test_file", "curation_test_row"}


def curate(tmp_path, source, chosen, *, form="jsonl", for_review=False, prefix="curation_", **keys):
    corpus = tmp_path / "corpus.parquet"
    if not corpus.exists():
        read_corpus(str(source), corpus, **keys)
    selection = write_selection(corpus, tmp_path / "selection.parquet", chosen)
    curated = tmp_path / f"chosen.{form}"
    values = {"prefix": prefix, "form": form, "for_review": for_review}
    write_curated(selection, corpus, None, curated, origin=Corpus(source=str(source), **keys), **values)
    return read_lines(curated) if form == "jsonl" else pq.read_table(curated)


def own_columns(rows, prefix="curation_"):
    return [{name: value for name, value in row.items() if not name.startswith(prefix)} for row in rows]


def test_rows_have_every_column_of_their_source_in_its_order(tmp_path):
    source = write_lines(tmp_path / "rows.jsonl", ROWS)
    found = curate(tmp_path, source, [20, 3, 11])
    assert own_columns(found) == [ROWS[3], ROWS[11], ROWS[20]]
    assert [list(row)[: len(ROWS[0])] for row in found] == [list(ROWS[0])] * 3
    assert [(row["curation_rank"], row["curation_score"]) for row in found] == [
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
        (1, 1),
    ]
    assert {(row["curation_test_file"], row["curation_test_row"]) for row in found} == {("tests.jsonl", 8)}
    assert all(set(row) - set(ROWS[0]) == ADDED for row in found)


def test_refused_rows_blank_lines_and_parts_shift_nothing(tmp_path):
    lines = [json.dumps(row) for row in ROWS]
    lines[4] = "{broken"
    lines.insert(9, "")
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    corpus = read_corpus(str(path), tmp_path / "corpus.parquet", part=(0.0, 0.6))
    texts = read_table(corpus)["response"].to_pylist()
    found = curate(tmp_path, path, list(range(len(texts))))
    assert [row["response"] for row in found] == texts
    assert own_columns(found) == [ROWS[row["id"]] for row in found]


def test_several_files_of_one_name_are_told_apart(tmp_path):
    for place, rows in {"a": ROWS[:15], "b": ROWS[15:]}.items():
        (tmp_path / place).mkdir()
        write_lines(tmp_path / place / "rows.jsonl", rows)
    found = curate(tmp_path, tmp_path / "*/rows.jsonl", [2, 17])
    assert own_columns(found) == [ROWS[2], ROWS[17]]


def test_a_csv_file_gives_its_cells(tmp_path):
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["prompt", "response", "n"], ["a, b", 'say "c"', "007"], ["d", "e\nf", ""]])
    assert own_columns(curate(tmp_path, tmp_path / "rows.csv", [0, 1])) == [
        {"prompt": "a, b", "response": 'say "c"', "n": "007"},
        {"prompt": "d", "response": "e\nf", "n": ""},
    ]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(("header", "named"), [("topic", "the column 'topic'"), ("", "a column without a name")])
def test_two_columns_of_one_name_are_told(tmp_path, form, header, named):
    (tmp_path / "rows.csv").write_text(f"prompt,response,{header},{header}\na,b,,\n")
    with pytest.raises(StudyError, match=f"row 1 of rows.csv: {named} stands there twice. Rename or remove one"):
        curate(tmp_path, tmp_path / "rows.csv", [0], form=form)


def test_parquet_keeps_the_types_of_a_parquet_source(tmp_path):
    schema = pa.schema(
        [
            ("prompt", pa.large_string()),
            ("response", pa.string()),
            ("small", pa.int8()),
            ("half", pa.float16()),
            ("at", pa.timestamp("ns", "UTC")),
            ("price", pa.decimal128(9, 2)),
            ("raw", pa.binary()),
            ("kind", pa.dictionary(pa.int16(), pa.string())),
            ("deep", pa.list_(pa.struct([("x", pa.float32()), ("y", pa.string())]))),
        ]
    )
    at = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    rows = [
        {"prompt": f"p{n}", "response": f"r{n}", "small": n, "half": n / 2, "at": at, "price": Decimal("1.10")}
        | {"raw": bytes([n, 255]), "kind": "ab"[n % 2], "deep": [{"x": n / 4, "y": None}]}
        for n in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "rows.parquet")
    found = curate(tmp_path, tmp_path / "rows.parquet", [4, 1], form="parquet")
    own = found.select(schema.names)
    assert {field.name: field.type for field in own.schema} == {field.name: field.type for field in schema}
    assert own.to_pylist() == pa.Table.from_pylist([rows[1], rows[4]], schema).to_pylist()
    assert found["curation_rank"].to_pylist() == [2, 1]
    with pytest.raises(StudyError, match=r"row 2 of rows.parquet: a value is raw bytes, which JSON has no form for"):
        curate(tmp_path, tmp_path / "rows.parquet", [4, 1])


def test_dates_and_decimals_have_a_form_in_json(tmp_path):
    row = {"prompt": "a", "response": "b", "day": datetime.date(2026, 1, 2), "price": Decimal("1.10"), "bad": math.nan}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    (found,) = own_columns(curate(tmp_path, tmp_path / "rows.parquet", [0]))
    assert found == {"prompt": "a", "response": "b", "day": "2026-01-02", "price": "1.10", "bad": None}


def test_columns_that_rows_lack_and_numbers_of_both_kinds_make_one_parquet_file(tmp_path, monkeypatch):
    monkeypatch.setattr("workflow_scripts.curation.row_files.BATCH_ROWS", 2)
    rows = [{"prompt": f"p{n}", "response": f"r{n}", "n": n, "o": {"a": n}} for n in range(3)]
    rows += [{"prompt": "q", "response": "s", "n": 0.5, "o": {"b": [n]}, "late": True} for n in range(2)]
    with table_metadata(stage="write_curated"):
        found = curate(tmp_path, write_lines(tmp_path / "rows.jsonl", rows), [4, 3, 2, 1, 0], form="parquet")
    assert found["n"].to_pylist() == [0.0, 1.0, 2.0, 0.5, 0.5]
    assert found["late"].to_pylist() == [None, None, None, True, True]
    assert found["o"].to_pylist()[2:4] == [{"a": 2, "b": None}, {"a": None, "b": [0]}]
    assert read_metadata(tmp_path / "chosen.parquet")["stage"] == "write_curated"


def test_a_column_of_two_kinds_is_refused_in_parquet_and_written_in_json(tmp_path):
    rows = [{"prompt": f"p{n}", "response": f"r{n}", "mixed": value} for n, value in enumerate([1, "two", [3]])]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(StudyError, match=r"row 1 of rows.jsonl and those after it: column 'mixed' can't be written"):
        curate(tmp_path, source, [0, 1, 2], form="parquet")
    assert not (tmp_path / "chosen.parquet").exists()
    assert own_columns(curate(tmp_path, source, [0, 1, 2])) == rows


def test_half_a_surrogate_pair_survives(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b", "odd": "\\ud800"}\n')
    curate(tmp_path, tmp_path / "rows.jsonl", [0])
    assert '"odd": "\\ud800"' in (tmp_path / "chosen.jsonl").read_text()


def test_a_column_of_an_added_name_is_refused_and_another_prefix_helps(tmp_path):
    rows = [{**row, "curation_rank": 5} for row in ROWS]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(StudyError, match=r"row 4 of rows.jsonl has a column 'curation_rank' of its own. Write another"):
        curate(tmp_path, source, [3])
    (found,) = curate(tmp_path, source, [3], prefix="mine_")
    assert (found["curation_rank"], found["mine_rank"]) == (5, 1)


@pytest.mark.parametrize("change", ["edited", "inserted", "cut"])
def test_a_source_that_changed_is_refused(tmp_path, change):
    source = write_lines(tmp_path / "rows.jsonl", ROWS)
    curate(tmp_path, source, [3, 20])
    changed = {
        "edited": [*ROWS[:3], {**ROWS[3], "response": "Other."}, *ROWS[4:]],
        "inserted": [ROWS[0], *ROWS],
        "cut": ROWS[:15],
    }[change]
    write_lines(source, changed)
    with pytest.raises(StudyError, match=r"row \d+ of rows.jsonl isn't what it was when .*corpus.parquet was made"):
        curate(tmp_path, source, [3, 20])


def test_a_list_for_review_begins_with_the_best_rank_and_says_why(tmp_path):
    source = write_lines(tmp_path / "rows.jsonl", ROWS)
    found = curate(tmp_path, source, [20, 3, 11], for_review=True)
    assert own_columns(found) == [ROWS[20], ROWS[3], ROWS[11]]
    assert [row["curation_reason"] for row in found] == ["reason 20", "reason 3", "reason 11"]
    assert [row["curation_example_id"] for row in found] == [20, 3, 11]


def drop(tmp_path, source, reviewed, form="jsonl"):
    kept = tmp_path / f"kept.{form}"
    corpus = tmp_path / "corpus.parquet"
    drop_rows(corpus, reviewed, None, kept, origin=Corpus(source=str(source)), prefix="curation_", form=form)
    return read_lines(kept) if form == "jsonl" else pq.read_table(kept).to_pylist()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_rows_that_the_reader_left_in_the_list_are_dropped(tmp_path, form):
    source = write_lines(tmp_path / "rows.jsonl", [{**row, "tags": ["a"]} for row in ROWS])
    listed = curate(tmp_path, source, [20, 3, 11], for_review=True)
    reviewed = write_lines(tmp_path / "reviewed.jsonl", [listed[0], listed[2]])
    kept = drop(tmp_path, source, reviewed, form)
    assert [row["id"] for row in kept] == [n for n in range(30) if n not in (20, 11)]
    assert all(set(row) == set(ROWS[0]) for row in kept)


def test_a_review_of_other_rows_is_refused(tmp_path):
    source = write_lines(tmp_path / "rows.jsonl", ROWS)
    listed = curate(tmp_path, source, [20], for_review=True)
    other = write_lines(tmp_path / "reviewed.jsonl", [{**listed[0], "curation_example_id": 19}])
    with pytest.raises(StudyError, match=r"reviewed.jsonl, row 1: example 19 of .* is no longer the row that"):
        drop(tmp_path, source, other)
    plain = write_lines(tmp_path / "reviewed.jsonl", ROWS[:1])
    with pytest.raises(StudyError, match=r"row 1: it has no curation_example_id and curation_hash; copy rows of the"):
        drop(tmp_path, source, plain)
