"""Local files of every kind, plain and compressed, and the hub: rows in, faults named."""

import csv
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.corpora import readers
from workflow_scripts.corpora.readers import read_rows

ROWS = [
    {"prompt": "Name a colour.", "response": "Grün, naïve 色 👩‍👩‍👧"},
    {"prompt": 'Quotes " and, commas', "response": "two\nlines\r\nand \u2028 more"},
]


def _as_json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _as_json(rows):
    return json.dumps(rows, indent=1).encode()


def _as_csv(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig")


def _as_parquet(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


WRITERS = {"jsonl": _as_json_lines, "json": _as_json, "csv": _as_csv, "parquet": _as_parquet}


def _write(path: Path, data: bytes) -> str:
    compression = readers.COMPRESSIONS.get(path.suffix)
    with pa.output_stream(path, compression=compression) as file:
        file.write(data)
    return str(path)


def _cells(source: str) -> list:
    return [row.cells for row in read_rows(source)]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind, compression):
    source = _write(tmp_path / f"rows.v1.{kind}{compression}", WRITERS[kind](ROWS))
    rows = list(read_rows(source))
    assert [row.cells for row in rows] == ROWS
    assert [row.number for row in rows] == [1, 2]
    assert {row.file for row in rows} == {Path(source).name}


def test_json_lines_in_a_json_file_are_read(tmp_path):
    assert _cells(_write(tmp_path / "rows.json", b"\xef\xbb\xbf" + _as_json_lines(ROWS))) == ROWS


def test_joined_gzip_files_are_read_to_the_end(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    _write(path, _as_json_lines(ROWS[:1]))
    first = path.read_bytes()
    _write(path, _as_json_lines(ROWS[1:]))
    path.write_bytes(first + path.read_bytes())
    assert _cells(str(path)) == ROWS


def test_a_glob_reads_files_in_order_of_their_paths_and_counts_rows_in_each(tmp_path):
    for name in ("b", "a", "sub/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _write(tmp_path / f"{name}.jsonl", _as_json_lines(ROWS))
    rows = list(read_rows(f"{tmp_path}/**/*.jsonl"))
    assert [(row.file, row.number) for row in rows] == [
        (f"{name}.jsonl", number) for name in "abc" for number in (1, 2)
    ]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("en/train.jsonl", "de/train.jsonl", "de/more/extra.jsonl"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_as_json_lines(ROWS[:1]))
    every = [row.file for row in read_rows(f"{tmp_path}/data/**/*.jsonl")]
    assert sorted(every) == ["de/more/extra.jsonl", "de/train.jsonl", "en/train.jsonl"]
    assert [row.file for row in read_rows(f"{tmp_path}/data/de/**/*.jsonl")] == ["extra.jsonl", "train.jsonl"]


def test_a_name_with_glob_characters_is_a_file_if_there_is_one(tmp_path):
    assert _cells(_write(tmp_path / "rows[1].jsonl", _as_json_lines(ROWS))) == ROWS


def test_a_bad_row_of_a_json_array_or_csv_costs_no_other(tmp_path):
    array = b'[{"prompt": "a"}, 3, {"prompt": "b", "prompt": "c"}, {"prompt": "\xe9"}]'
    first, number, repeated, bytes_row = read_rows(_write(tmp_path / "rows.json", array))
    assert first.cells == {"prompt": "a"}
    assert number.reason == "not an object: the row is a number"
    assert repeated.cells is not None
    assert bytes_row.cells == {"prompt": "\udce9"}

    table = b'prompt,response\na,b\nc\n\nd,e,f\n"g"h,i\n\xe9,k\nl,m\n'
    rows = list(read_rows(_write(tmp_path / "rows.csv", table)))
    assert [row.reason for row in rows] == [
        "",
        "not as wide as the header: 1 cells under 2 names",
        "not as wide as the header: 3 cells under 2 names",
        "not CSV: ',' expected after '\"'",
        "",
        "",
    ]
    assert rows[-1].cells == {"prompt": "l", "response": "m"}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_may_have_other_separators(tmp_path, separator):
    rows = [["prompt", "response", "label"], ["a, b; c", "d", "x"], ["e", "f\tg\nh", ""]]
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(rows)
    expected = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert _cells(_write(tmp_path / "rows.csv", text.getvalue().encode())) == expected


def test_a_long_csv_cell_is_read(tmp_path):
    long = "a" * 300_000
    assert _cells(_write(tmp_path / "rows.csv", f"prompt\n{long}\n".encode())) == [{"prompt": long}]


def test_a_parquet_cell_that_is_not_utf8_costs_its_row_alone(tmp_path):
    column = pa.array([b"a", b"\xe9", b"b"]).view(pa.string())
    _one_bad_cell(pa.table({"prompt": column}), tmp_path)


def test_a_date_that_python_cannot_hold_costs_its_row_alone(tmp_path):
    # As databases write infinity.
    dates = pa.array([0, 2**63 - 1, 0], pa.timestamp("us"))
    _one_bad_cell(pa.table({"prompt": ["a", "c", "b"], "at": dates}), tmp_path)


def _one_bad_cell(table, tmp_path):
    pq.write_table(table, tmp_path / "rows.parquet")
    good, bad, last = read_rows(str(tmp_path / "rows.parquet"))
    assert (good.cells["prompt"], last.cells["prompt"]) == ("a", "b")
    assert bad.cells is None
    assert bad.reason.startswith("a cell can't be read: ")
    assert (good.number, bad.number, last.number) == (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("rows.txt", b"a\n", "unknown kind; its name must end in one of .jsonl"),
        ("rows.gz", b"a\n", "unknown kind"),
        ("rows.parquet", b"not parquet", "can't be read"),
        ("rows.json", b'[{"a": 1}, {"a": ]', "not JSON: a value is missing"),
        ("rows.json", b'[{"a": 1} {"a": 1}]', "',' or ']' is missing"),
        ("rows.json", b'[{"a": 1}] {"a": 1}', "more text after the end of the list"),
        ("rows.json", b'[{"a": 1},', "a value is missing"),
        ("rows.csv", b'a,b\n1,2\n"3,4\n5,6\n', "a quote that opens after line 2 is never closed"),
        ("rows.csv", b'"a"b,c\nx,y\n', "in the line of column names"),
        ("rows.csv", b'a,"b\n', "in the line of column names"),
        (
            "rows.csv",
            "a,b\n1,2\n".encode("utf-16"),
            "not UTF-8: it has NUL characters, as UTF-16 does; save it as UTF-8",
        ),
    ],
)
def test_files_that_cannot_be_read_end_in_a_clear_error(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(StudyError) as error:
        list(read_rows(str(tmp_path / name)))
    assert words in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_compressed_file_is_not_taken_for_a_short_one(tmp_path, suffix):
    draw = random.Random(0)
    rows = [{"prompt": "a", "response": str(draw.random())} for _ in range(5_000)]
    path = tmp_path / f"rows.jsonl{suffix}"
    _write(path, _as_json_lines(rows))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StudyError, match="can't be read"):
        list(read_rows(str(path)))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.jsonl", "there is no file nowhere.jsonl"),
        ("./nowhere", "there is no file ./nowhere"),
        ("no/*.jsonl", "no file matches no/*.jsonl"),
        ("folder", "folder is a folder; write the files in it, e.g. folder/*.jsonl"),
        ("builtin:maxi", "there is no 'builtin:maxi'; the builtin corpora are builtin:mini, builtin:mini-pretraining"),
    ],
)
def test_sources_that_are_not_there_say_so(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StudyError) as error:
        read_rows(source)
    assert words in str(error.value)


@pytest.mark.parametrize("data_files", [None, "rows.json"])
def test_a_format_is_no_source(tmp_path, monkeypatch, data_files):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match="source: json is a format; data_files must then be a file's address"):
        read_rows("json", data_files=data_files)


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    pair = pa.array(["a"])
    pq.write_table(pa.table([pair, pair, pair], names=["prompt", "response", "response"]), tmp_path / "rows.parquet")
    with pytest.raises(StudyError, match=r"rows\.parquet: it has several columns of the name 'response'; mend"):
        list(read_rows(str(tmp_path / "rows.parquet")))
    turn = pa.StructArray.from_arrays([pair, pair], names=["content", "content"])
    messages = pa.ListArray.from_arrays([0, 1], turn)
    pq.write_table(pa.table({"messages": messages}), tmp_path / "chat.parquet")
    with pytest.raises(StudyError, match=r"of the name 'messages\[\]\.content'"):
        list(read_rows(str(tmp_path / "chat.parquet")))


def test_a_broken_link_is_not_passed_over(tmp_path):
    _write(tmp_path / "a.jsonl", _as_json_lines(ROWS))
    (tmp_path / "b.jsonl").symlink_to("moved/b.jsonl")
    for source in ("*.jsonl", "b.jsonl"):
        with pytest.raises(StudyError, match=r"b\.jsonl is a link to moved/b\.jsonl, where nothing is"):
            read_rows(str(tmp_path / source))
    assert len(_cells(str(tmp_path / "a.jsonl"))) == 2


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl", b'{"a": "1"}\n\n{"a": "2"}\n \t\r\n\n'),
        ("rows.json", b'{"a": "1"}\n\n{"a": "2"}\n\n'),
        ("rows.csv", b"a,b\n1,1\n\n2,2\n,\n,\n"),
    ],
)
def test_blank_lines_are_no_rows_and_move_no_number(tmp_path, name, data):
    rows = list(read_rows(_write(tmp_path / name, data)))
    assert [(row.number, row.cells["a"]) for row in rows] == [(1, "1"), (3, "2")]


def test_all_rows_of_a_parquet_file_have_one_schema(tmp_path):
    pq.write_table(pa.table({"prompt": ["a", "b", "c"]}), tmp_path / "rows.parquet")
    schemas = [row.schema for row in read_rows(str(tmp_path / "rows.parquet"))]
    assert len(schemas) == 3
    # Whoever writes the rows again tells files apart by it.
    assert len({id(schema) for schema in schemas}) == 1
