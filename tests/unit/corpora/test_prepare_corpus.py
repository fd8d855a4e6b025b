"""The stage: tables of the contract, parts, limits, appended rows, and every way to end in a clear error."""

import json

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workflow_scripts.core.errors import StudyError
from workflow_scripts.corpora import prepare_corpus as stage
from workflow_scripts.corpora.prepare_corpus import prepare_corpus
from workflow_scripts.study.sections import Corpus


def _rows(count):
    return [{"prompt": f"Question {number}?", "response": f"Answer {number}."} for number in range(count)]


def _write(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return str(path)


def _prepare(folder, source, **values):
    corpus, rejected = folder / "corpus.parquet", folder / "corpus.rejected.parquet"
    without = values.pop("without", [])
    given = Corpus(source=source, **values).model_dump(exclude={"without"})
    prepare_corpus(corpus, rejected, without, **given)
    return pq.read_table(corpus).to_pylist(), pq.read_table(rejected).to_pylist()


def _error(folder, source, **values):
    with pytest.raises(StudyError) as error:
        _prepare(folder, source, **values)
    assert not (folder / "corpus.parquet").exists()
    assert not (folder / "corpus.rejected.parquet").exists()
    return str(error.value)


def test_tables_have_the_columns_of_the_contract(tmp_path):
    chat = {"messages": [{"role": role, "content": role} for role in ("system", "user", "assistant")]}
    source = _write(tmp_path, [{"question": "a", "answer": "b", "task": "t"}, {"question": "a"}, chat])
    (first, second), (bad,) = _prepare(tmp_path, source, max_rejected_share=0.5)
    assert pq.read_schema(tmp_path / "corpus.parquet").equals(stage.CORPUS_SCHEMA)
    assert pq.read_schema(tmp_path / "corpus.rejected.parquet").equals(stage.REJECTED_SCHEMA)
    assert len(first.pop("hash")) == 16
    assert first == {
        "example_id": 0,
        "prompt": "a",
        "response": "b",
        "messages": None,
        "label": "t",
        "source_row": 1,
        "source_file": "rows.jsonl",
    }
    assert (second["example_id"], second["source_row"]) == (1, 3)
    assert second["messages"] == chat["messages"]
    assert bad == {
        "source_row": 2,
        "source_file": "rows.jsonl",
        "reason": "the row has 'question', but no 'answer'",
    }


def test_a_summary_says_what_was_read(tmp_path, capsys):
    source = _write(tmp_path, [*_rows(1_200), {}])
    _prepare(tmp_path, source)
    assert f"{source}: 1,201 rows read, 1,200 accepted, 1 rejected\n" in capsys.readouterr().err
    accepted, _ = _prepare(tmp_path, source, part=(0.0, 0.5))
    outside = 1_200 - len(accepted)
    words = f"1,201 rows read, {len(accepted)} accepted, 1 rejected, {outside} outside the part\n"
    assert words in capsys.readouterr().err


def test_long_reading_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_LINES", 0)
    _prepare(tmp_path, _write(tmp_path, _rows(3)))
    assert "prepare_corpus: 2 rows read, 2 accepted, 0 rejected so far\n" in capsys.readouterr().err


def test_batches_of_any_size_give_the_same_tables(tmp_path, monkeypatch):
    source = _write(tmp_path, [*_rows(25), {}, *_rows(8)])
    whole = _prepare(tmp_path, source)
    monkeypatch.setattr(stage, "BATCH_ROWS", 10)
    assert _prepare(tmp_path, source) == whole
    monkeypatch.setattr(stage, "BATCH_CHARACTERS", 100)
    assert _prepare(tmp_path, source) == whole


def test_appended_rows_change_no_earlier_row(tmp_path):
    before, _ = _prepare(tmp_path, _write(tmp_path, _rows(50)), part=(0.2, 0.9))
    after, _ = _prepare(tmp_path, _write(tmp_path, _rows(80)), part=(0.2, 0.9))
    assert len(before) < len(after)
    assert after[: len(before)] == before
    assert [row["example_id"] for row in after] == list(range(len(after)))


def test_parts_that_do_not_overlap_share_no_prompt_and_lose_no_row(tmp_path):
    rows = [*_rows(200), *({**row, "prompt": row["prompt"].upper() + " !"} for row in _rows(200)), {}]
    source = _write(tmp_path, rows)
    parts = [(0.0, 0.3), (0.3, 0.5), (0.5, 1.0)]
    results = [_prepare(tmp_path, source, part=part) for part in parts]
    prompts = [{row["prompt"].lower().strip(" ?!") for row in accepted} for accepted, _ in results]
    assert [len(accepted) for accepted, _ in results] == [2 * len(texts) for texts in prompts]
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 200
    assert all([row["source_row"] for row in rejected] == [401] for _, rejected in results)
    share = len(prompts[0]) / 200
    assert 0.15 < share < 0.45


def test_the_limit_stops_reading(tmp_path):
    source = _write(tmp_path, [*_rows(5), {}, *_rows(5), *[{}] * 100])
    accepted, rejected = _prepare(tmp_path, source, limit=7, max_rejected_share=0.2)
    assert [row["source_row"] for row in accepted] == [1, 2, 3, 4, 5, 7, 8]
    assert [row["source_row"] for row in rejected] == [6]


def test_repeated_rows_are_kept_and_share_a_hash(tmp_path):
    accepted, _ = _prepare(tmp_path, _write(tmp_path, _rows(1) * 3))
    assert len(accepted) == 3
    assert len({row["hash"] for row in accepted}) == 1


def test_the_column_map_is_used(tmp_path):
    source = _write(tmp_path, [{"q": "a", "A": "b", "kind": "k"}])
    (row,), _ = _prepare(tmp_path, source, columns={"prompt": "q", "response": "a", "label": "kind"})
    assert (row["prompt"], row["response"], row["label"]) == ("a", "b", "k")


def test_the_builtin_corpus_is_read(tmp_path):
    (first, second), _ = _prepare(tmp_path, "builtin:mini", limit=2)
    assert first["prompt"] != second["prompt"]
    assert all(row["response"] and row["label"] for row in (first, second))


def test_too_many_bad_rows_stop_the_study_and_stay_readable(tmp_path):
    rows = [*_rows(7), {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "response": ""}]
    message = _error(tmp_path, _write(tmp_path, rows), max_rejected_share=0.2)
    assert "3 of 10 rows can't be used, more than max_rejected_share: 0.2" in message
    assert "2 x the row has 'prompt', but no 'response', e.g. rows.jsonl, row 8" in message
    assert "1 x 'response' is empty, e.g. rows.jsonl, row 10" in message
    kept = tmp_path / "corpus.rejected.failed.parquet"
    assert str(kept) in message
    assert [row["source_row"] for row in pq.read_table(kept).to_pylist()] == [8, 9, 10]

    _prepare(tmp_path, _write(tmp_path, rows), max_rejected_share=0.3)
    assert not kept.exists()


def test_faults_that_differ_in_detail_alone_are_counted_together(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{\n" * 30 + b'{"a": \n' * 30)
    message = _error(tmp_path, str(path))
    assert "60 x not JSON, e.g. rows.jsonl, row 1: not JSON: " in message


@pytest.mark.parametrize(
    ("rows", "values", "words"),
    [
        ([], {}, "has no rows"),
        ([{}], {"max_rejected_share": 1.0}, "1 rows read, 0 accepted, 1 rejected; no row is left"),
        (_rows(1), {"part": (0.999, 1.0)}, "no row is left in part: [0.999, 1.0]; widen it"),
        (
            _rows(3),
            {"columns": {"prompt": "query"}},
            "columns: prompt: query: {source} has no such column; it has 'prompt', 'response'",
        ),
        (_rows(3), {"columns": {"label": "kind"}}, "columns: label: kind: {source} has no such column"),
    ],
)
def test_studies_without_a_corpus_end_in_a_clear_error(tmp_path, rows, values, words):
    source = _write(tmp_path, rows)
    assert words.format(source=source) in _error(tmp_path, source, **values)


def test_a_missing_file_ends_in_a_clear_error(tmp_path):
    assert "there is no file" in _error(tmp_path, str(tmp_path / "nowhere.jsonl"))


def test_a_file_that_breaks_off_leaves_no_table(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(_rows(30))[:-20])
    assert "not JSON" in _error(tmp_path, str(path))
    assert list(tmp_path.iterdir()) == [path]


TEXT = st.text(st.characters(), max_size=30)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
ROLE = st.sampled_from(["user", "human", "assistant", "gpt", "system", "tool", "critic"])
TURN = st.fixed_dictionaries({}, optional={"role": ROLE, "from": ROLE, "content": TEXT, "value": VALUES})
CHAT = st.lists(TURN | VALUES, max_size=4)
COLUMNS = [
    *("instruction", "input", "output", "inputs", "targets", "prompt", "response", "completion"),
    *("question", "answer", "messages", "conversations", "data", "label", "task", "is_safe", "Prompt"),
]
ANY_ROW = st.dictionaries(st.sampled_from(COLUMNS) | TEXT, VALUES | CHAT, max_size=5)
PAIR = st.fixed_dictionaries({"prompt": TEXT, "response": TEXT}, optional={"label": SCALARS})
ALPACA = st.fixed_dictionaries({"instruction": TEXT, "output": TEXT}, optional={"input": SCALARS})
CHAT_ROW = st.fixed_dictionaries({"messages": CHAT}) | st.fixed_dictionaries({"data": CHAT})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_ROW | PAIR | ALPACA | CHAT_ROW, min_size=1, max_size=12))
def test_any_rows_are_accepted_unchanged_or_rejected_with_a_reason(tmp_path, rows):
    good = {"prompt": "Name a tree.", "response": "Oak."}
    source = _write(tmp_path, [*rows, good])
    accepted, rejected = _prepare(tmp_path, source, max_rejected_share=1.0)
    numbers = [row["source_row"] for row in (*accepted, *rejected)]
    assert sorted(numbers) == list(range(1, len(rows) + 2))
    assert all(row["reason"].strip() for row in rejected)
    for example in accepted:
        row = [*rows, good][example["source_row"] - 1]
        assert example["prompt"].strip()
        assert example["response"].strip()
        # Numbers become text.
        texts = {name for name, value in row.items() if isinstance(value, str)}
        if {"prompt", "response"} == texts - {"label"} == set(row) - {"label"}:
            assert example["prompt"].encode() == row["prompt"].encode()
            assert example["response"].encode() == row["response"].encode()
        elif {"instruction", "output"} == texts == set(row):
            assert example["prompt"].encode() == row["instruction"].encode()


def _is_blank(line, *, first):
    try:
        return not line.decode("utf-8-sig" if first else "utf-8").strip()
    except UnicodeDecodeError:
        return False


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")), min_size=1, max_size=8))
def test_any_bytes_cost_no_other_line(tmp_path, lines):
    path = tmp_path / "rows.jsonl"
    good = b'{"prompt": "a", "response": "b"}'
    path.write_bytes(b"\n".join(part for line in lines for part in (line, good)))
    accepted, rejected = _prepare(tmp_path, str(path), max_rejected_share=1.0)
    numbers = [row["source_row"] for row in (*accepted, *rejected)]
    # White space alone is no row; a byte order mark is white space before the first one.
    blank = {2 * place + 1 for place, line in enumerate(lines) if _is_blank(line, first=place == 0)}
    assert sorted(numbers) == sorted({*range(1, 2 * len(lines) + 1)} - blank)
    assert {row["source_row"] for row in accepted} >= set(range(2, 2 * len(lines) + 1, 2))
    assert all(row["reason"].strip() for row in rejected)


def test_prompts_of_other_corpora_are_left_out(tmp_path, capsys):
    _prepare(tmp_path, _write(tmp_path, [{"prompt": "question  3", "response": "x"}], "other.jsonl"))
    other = (tmp_path / "corpus.parquet").rename(tmp_path / "other.parquet")
    accepted, _ = _prepare(tmp_path, _write(tmp_path, _rows(5)), without=[other])
    assert [row["prompt"] for row in accepted] == [f"Question {number}?" for number in (0, 1, 2, 4)]
    assert [row["example_id"] for row in accepted] == [0, 1, 2, 3]
    assert "4 accepted, 0 rejected, 1 with a prompt of the corpora under `without`" in capsys.readouterr().err


def test_the_response_is_the_last_or_the_first_assistant_turn(tmp_path):
    source = _write(tmp_path, [{"data": ["one", "two", "three", "four"]}])
    (last,), _ = _prepare(tmp_path, source)
    assert (last["prompt"], last["response"]) == ("User: one\nAssistant: two\nUser: three", "four")
    (first,), _ = _prepare(tmp_path, source, response_turn="first")
    assert (first["prompt"], first["response"], first["messages"]) == ("one", "two", None)


def test_a_greeting_before_the_first_question_is_no_response(tmp_path):
    turns = [("assistant", "Hi!"), ("user", "Why?"), ("assistant", "Because."), ("user", "Ah."), ("assistant", "Yes.")]
    source = _write(tmp_path, [{"messages": [{"role": role, "content": text} for role, text in turns]}])
    (row,), _ = _prepare(tmp_path, source, response_turn="first")
    assert (row["prompt"], row["response"]) == ("Assistant: Hi!\nUser: Why?", "Because.")


def test_one_line_names_the_columns_that_are_not_read(tmp_path, capsys):
    rows = [{**row, "id": number, "tools": "" if number % 2 else "[1]"} for number, row in enumerate(_rows(4))]
    _prepare(tmp_path, _write(tmp_path, rows))
    lines = [line for line in capsys.readouterr().err.splitlines() if "aren't read" in line]
    assert [line.split(": ", 2)[2] for line in lines] == ["columns that aren't read: 'id', 'tools'"]
    _prepare(tmp_path, _write(tmp_path, _rows(4)))
    assert "aren't read" not in capsys.readouterr().err


def test_several_columns_make_the_prompt(tmp_path):
    source = _write(tmp_path, [{"context": "c", "ask": "a", "reply": "r"}])
    message = _error(tmp_path, source, columns={"prompt": ["context", "question"], "response": "reply"})
    assert "columns: prompt: question: " in message
    (row,), _ = _prepare(tmp_path, source, columns={"prompt": ["context", "ask"], "response": "reply"})
    assert (row["prompt"], row["response"]) == ("c\n\na", "r")


def test_a_column_that_no_row_before_the_limit_has(tmp_path):
    source = _write(tmp_path, [*_rows(5), {"prompt": "a", "response": "b", "task": "t"}])
    values = {"columns": {"label": "task"}}
    said = "label: task: {} has no such column in the 3 rows that `limit` had read; it has 'prompt', 'response'"
    assert said.format(source) in _error(tmp_path, source, **values, limit=3)
    said = f"label: kind: {source} has no such column; it has"
    assert said in _error(tmp_path, source, columns={"label": "kind"}, limit=30)
    accepted, _ = _prepare(tmp_path, source, **values, limit=6)
    assert accepted[-1]["label"] == "t"
