"""Tokens of prompt and response, what the limit cuts, and chat templates."""

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.corpora.tables import CORPUS_SCHEMA
from workflow_scripts.language_model.tokenize_corpus import tokenize_corpus

ROWS = [("what is it", "a cat"), ("what is it", "a very long answer " * 20), ("so many words " * 40, "lost")]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.fixture
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny.language_model)


def tokenized(tiny, folder, rows=ROWS, messages=None, **changes):
    where = {"messages": messages, "source_file": "rows.jsonl", "hash": ""}
    table = [
        {"example_id": i, "prompt": prompt, "response": response, "source_row": i + 3, **where}
        for i, (prompt, response) in enumerate(rows)
    ]
    write_table(folder / "corpus.parquet", pa.Table.from_pylist(table, schema=CORPUS_SCHEMA))
    spec = {"model": "builtin:tiny", "revision": None, "trust_remote_code": False, "max_tokens": 40}
    paths = folder / "corpus.parquet", folder / "tokens.parquet", folder / "rejected.parquet"
    tokenize_corpus(*paths, **{"language_model": tiny.language_model, "chat_template": False, **spec, **changes})
    return read_table(paths[1]).to_pylist(), read_table(paths[2]).to_pylist()


def test_prompt_response_and_end_are_tokens(tiny, tokenizer, tmp_path):
    (row, *_), _ = tokenized(tiny, tmp_path)
    prompt, response = row["input_ids"][: row["prompt_tokens"]], row["input_ids"][row["prompt_tokens"] :]
    assert tokenizer.decode(prompt) == "Question: what is it\nAnswer: "
    assert tokenizer.decode(response[:-1]) == "a cat"
    assert response[-1] == tokenizer.eos_token_id
    assert row["cut_tokens"] == 0


def test_what_the_limit_cuts_is_counted(tiny, tokenizer, tmp_path, capsys):
    (_, row), _ = tokenized(tiny, tmp_path)
    assert len(row["input_ids"]) == 40
    whole = len(tokenizer(ROWS[1][1])["input_ids"]) + 1
    assert row["cut_tokens"] == whole - (40 - row["prompt_tokens"])
    said = capsys.readouterr().err
    assert "1 responses (33.3 %) shortened and 1 (33.3 %) removed by the limit of 40 tokens" in said


def test_a_row_without_response_token_is_rejected(tiny, tmp_path):
    rows, rejected = tokenized(tiny, tmp_path)
    assert [row["example_id"] for row in rows] == [0, 1]
    reason = "no response token within the first 40 tokens"
    assert rejected == [{"example_id": 2, "source_file": "rows.jsonl", "source_row": 5, "reason": reason}]


def test_an_empty_table_of_tokens_has_its_columns(tiny, tmp_path):
    rows, rejected = tokenized(tiny, tmp_path, rows=ROWS[2:])
    assert rows == []
    assert len(rejected) == 1
    assert read_table(tmp_path / "tokens.parquet").column_names == [
        "example_id",
        "input_ids",
        "prompt_tokens",
        "cut_tokens",
    ]


def test_a_chat_template_renders_every_turn_but_the_last(tiny, tokenizer, tmp_path):
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat")
    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "a cat"},
    ]
    of_chat = {"language_model": tmp_path / "chat", "chat_template": True}
    (row,), _ = tokenized(tiny, tmp_path, rows=ROWS[:1], messages=messages, **of_chat)
    assert tokenizer.decode(row["input_ids"][: row["prompt_tokens"]]) == "<system>be short<user>hi<bot>"
    (row,), _ = tokenized(tiny, tmp_path, rows=ROWS[:1], **of_chat)
    assert tokenizer.decode(row["input_ids"][: row["prompt_tokens"]]) == "<user>what is it<bot>"
    assert tokenizer.decode(row["input_ids"][row["prompt_tokens"] : -1]) == "a cat"


def test_a_missing_chat_template_is_told(tiny, tmp_path):
    with pytest.raises(StudyError, match=r"has no chat template\. Write `chat_template: false`"):
        tokenized(tiny, tmp_path, chat_template=True)


STRICT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}<bot>"
)


def chat(*roles):
    return [{"role": role, "content": "hi"} for role in (*roles, "assistant")]


def test_rows_that_a_chat_template_refuses_are_rejected_and_named(tiny, tokenizer, tmp_path, capsys):
    tokenizer.chat_template = STRICT_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat")
    of_chat = {"language_model": tmp_path / "chat", "chat_template": True, "model": "strict"}
    turns = [None, chat("system", "user"), chat("user", "user"), chat("user"), ("user", "assistant", "user")]
    turns[-1] = chat(*turns[-1])
    where = {"source_file": "rows.jsonl", "hash": "", "prompt": "hi", "response": "hi"}
    table = [{"example_id": i, "source_row": i + 3, "messages": m, **where} for i, m in enumerate(turns)]
    write_table(tmp_path / "some.parquet", pa.Table.from_pylist(table, schema=CORPUS_SCHEMA))
    spec = {"revision": None, "trust_remote_code": False, "max_tokens": 40}
    paths = tmp_path / "some.parquet", tmp_path / "tokens.parquet", tmp_path / "rejected.parquet"
    tokenize_corpus(*paths, **of_chat, **spec)
    assert read_table(paths[1])["example_id"].to_pylist() == [0, 3, 4]
    assert [(row["source_row"], row["reason"]) for row in read_table(paths[2]).to_pylist()] == [
        (4, "the chat template refuses the turns: System role not supported"),
        (5, "the chat template refuses the turns: Roles must alternate"),
    ]
    assert "refuses 2 of 5 rows of some, e.g. row 4 of rows.jsonl: " in capsys.readouterr().err
    with pytest.raises(StudyError, match=r"refuses 3 of 3 rows of corpus, e\.g\. row 3 of rows\.jsonl: .*System role"):
        tokenized(tiny, tmp_path, messages=chat("system", "user"), **of_chat)
