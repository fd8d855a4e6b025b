"""The bad rows of real corpora, one line of each kind: every bad one is told with its line, every good one kept.

Where a verdict could be otherwise, the reason stands beside the line.
"""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from workflow_scripts.corpora.prepare_corpus import prepare_corpus
from workflow_scripts.study.sections import Corpus

GOOD = None
NO_ROW = "no row"


def _line(prompt="Name a tree.", response="Oak.", **others):
    row = {"instruction": prompt, "input": "", "output": response, **others}
    return json.dumps(row, ensure_ascii=False).encode()


def _chat(*turns):
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}).encode()


# (what it is, the line, part of the reason or GOOD)
LINES = [
    ("byte order mark before the first row", b"\xef\xbb\xbf" + _line(), GOOD),
    ("good", _line(), GOOD),
    ("no output", b'{"instruction": "a", "input": ""}', "no 'output'"),
    ("no instruction", b'{"input": "", "output": "a"}', "no 'instruction'"),
    ("no input", b'{"instruction": "a", "output": "b"}', GOOD),
    ("output null", _line(response=None), "'output' is null"),
    ("instruction null", _line(prompt=None), "'instruction' is null"),
    ("input null", _line(input=None), GOOD),
    ("empty answer", _line(response=""), "'output' is empty"),
    ("blank answer", _line(response="\n\u00a0\u3000"), "'output' is blank"),
    ("blank instruction", _line(prompt=" \t"), "'instruction' is blank"),
    ("all empty", _line("", ""), "'instruction' is empty"),
    # A number is text without a guess: corpora of sums have them as answers.
    ("integer answer", _line(response=42), GOOD),
    ("decimal answer", _line(response=2.5), GOOD),
    ("integer beyond 64 bits as prompt", _line(prompt=10**25), GOOD),
    ("integer of 5,000 digits", b'{"instruction": "a", "output": ' + b"9" * 5_000 + b"}", "not JSON"),
    ("NaN", b'{"instruction": "a", "output": NaN}', "'output' is not a finite number"),
    # As text it might be `true`, `True` or `yes`: that is a guess.
    ("boolean answer", _line(response=True), "'output' is true or false"),
    # Which of several answers to learn would be a guess.
    ("list of answers", _line(response=["oak", "elm"]), "'output' is a list"),
    ("nested list", _line(response=[["oak", []]]), "'output' is a list"),
    ("object as answer", _line(response={"text": "oak"}), "'output' is an object"),
    # Repeated rows are kept: real corpora have them, and their hash tells them.
    ("exact duplicate", _line(), GOOD),
    ("near duplicate", _line("  name a TREE "), GOOD),
    ("same prompt, other answer", _line(response="Rose."), GOOD),
    ("prompt of 100,000 characters", _line("word " * 20_000), GOOD),
    ("answer without a space", _line(response="a" * 50_000), GOOD),
    # Half a surrogate pair can't be written as UTF-8, so no file could hold the text unchanged.
    ("half a surrogate pair", b'{"instruction": "a", "output": "\\ud83d"}', "not valid Unicode"),
    ("surrogates in wrong order", b'{"instruction": "\\ude00\\ud83d", "output": "a"}', "not valid Unicode"),
    # Badly decoded once, but valid text now: nobody can tell it from text that is meant so.
    ("mojibake", _line(response="â€œcafÃ©â€\u009d"), GOOD),
    ("replacement characters", _line(response="\ufffd\ufffd lost"), GOOD),
    ("escaped control characters", b'{"instruction": "a", "output": "\\u0000\\u0007\\u001b[31m\x7f"}', GOOD),
    # strict JSON forbids them raw, and where they occur a file is usually damaged
    ("raw NUL and tab", b'{"instruction": "a", "output": "\t\x00"}', "a raw control character"),
    ("Unicode line ends", _line(response="one\u2028two\u2029three\u0085four\x0b"), GOOD),
    ("zero-width and bidi characters", _line("\ufeffa\u200b\u200d", "\u202etxet\u202c\u2066b\u2069"), GOOD),
    ("right-to-left", _line("ما هي عاصمة مصر؟", "القاهرة שלום"), GOOD),
    ("no spaces between words", _line("請介紹東京。", "東京は日本の首都です。"), GOOD),
    ("emoji sequence and stacked marks", _line(response="👨‍👩‍👧 Z͑ͫ̓a̷l"), GOOD),
    ("chat", _chat(("user", "Hi!"), ("assistant", "Hello.")), GOOD),
    ("chat without turns", _chat(), "'messages' is an empty list"),
    ("chat without answer", _chat(("system", "Be brief."), ("user", "Hi!")), "no assistant turn"),
    ("chat without user", _chat(("assistant", "Hi!"), ("assistant", "Hm?")), "no user turn before"),
    # The call is what the assistant says, so that nothing of the chat is lost.
    (
        "tool call",
        b'{"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": null, '
        b'"tool_calls": [{"name": "weather"}]}, {"role": "tool", "content": "4 C"}, '
        b'{"role": "assistant", "content": "4 degrees."}]}',
        GOOD,
    ),
    ("null content and no call", _chat(("user", "a"), ("assistant", None)), "turn 2 (assistant): 'content'"),
    ("content of text parts", _chat(("user", [{"type": "text", "text": "a"}]), ("assistant", "b")), GOOD),
    # The answer is about an image that would be missing.
    ("content with an image", _chat(("user", [{"type": "image_url"}]), ("assistant", "b")), "'image_url'"),
    ("turn without role", b'{"messages": [{"content": "a"}]}', "a turn has no role: turn 1"),
    ("unknown role", _chat(("user", "a"), ("critic", "b")), "unknown role: 'critic' in turn 2"),
    ("turn that is text", b'{"messages": ["a", {"role": "user"}]}', "a turn is text, not an object"),
    # It reads back without loss, and CSV files can't hold a chat in another way.
    ("chat as JSON text", json.dumps({"messages": '["a", "b"]'}).encode(), GOOD),
    ("ShareGPT", b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}', GOOD),
    ("completion with a special token", b'{"prompt": "Once", "completion": " a king<|endoftext|>"}', GOOD),
    ("inputs and targets", b'{"inputs": "a", "targets": "b", "task": "t"}', GOOD),
    ("label that is text", b'{"prompt": "a", "response": "b", "is_safe": "yes"}', GOOD),
    # The spelling of a header changes nothing of the text.
    ("names in other case", b'{" Instruction": "a", "INPUT": "", "Output ": "b"}', GOOD),
    ("templates and format strings", _line("<|im_start|> [INST]", "{{ x }} {0} %s $HOME `ls` \\n"), GOOD),
    ("array", b'["a", "", "b"]', "not an object: the row is a list"),
    ("bare string", b'"a"', "not an object: the row is text"),
    ("null", b"null", "not an object: the row is null"),
    ("empty object", b"{}", "the row is an empty object"),
    # Files end in blank lines, and a blank line holds nothing that could be lost.
    ("empty line", b"", NO_ROW),
    # Most parsers keep the last one without a word; which one is meant is a guess.
    ("key given twice", b'{"instruction": "a", "output": "b", "output": "c"}', "'output' is given twice"),
    ("other key given twice", b'{"instruction": "a", "output": "b", "n": 1, "n": 2}', GOOD),
    ("single quotes", b"{'instruction': 'a', 'output': 'b'}", "a name in double quotes is missing"),
    ("trailing comma", b'{"instruction": "a", "output": "b",}', "not JSON"),
    ("two objects", _line() + _line(), "more text after the end of the value"),
    ("deep nesting", b'{"output": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ("Latin-1", b'{"instruction": "caf\xe9", "output": "b"}', "not UTF-8: byte 21 of the line is 0xe9"),
    ("cut UTF-8 sequence", b'{"instruction": "a", "output": "\xf0\x9f\x98"}', "not UTF-8: byte 33"),
    ("surrogate as bytes", b'{"instruction": "a", "output": "\xed\xa0\xbd"}', "not UTF-8: byte 33"),
    ("UTF-16", _line().decode().encode("utf-16-le"), "damaged, or UTF-16"),
    ("byte order mark in the middle", b"\xef\xbb\xbf" + _line(), "not JSON"),
    ("CR LF", _line() + b"\r", GOOD),
    ("last good row", _line(), GOOD),
    ("truncated", b'{"instruction": "a", "output": "The keeper climbed', "a string without end"),
]


def _verdicts(source: Path, folder: Path):
    """Return {line: example} and {line: reason} of a source whose bad rows may be as many as they are."""
    corpus, rejected = folder / "corpus.parquet", folder / "corpus.rejected.parquet"
    settings = Corpus(source=str(source), max_rejected_share=1.0).model_dump(exclude={"without"})
    prepare_corpus(corpus, rejected, **settings)
    reasons = pq.read_table(rejected).to_pylist()
    assert {row["source_file"] for row in reasons} <= {source.name}
    return (
        {row["source_row"]: row for row in pq.read_table(corpus).to_pylist()},
        {row["source_row"]: row["reason"] for row in reasons},
    )


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad_rows")
    source = folder / "bad.jsonl"
    source.write_bytes(b"\n".join(line for _, line, _ in LINES))
    return _verdicts(source, folder)


@pytest.mark.parametrize(
    ("number", "reason"),
    [pytest.param(number, reason, id=what) for number, (what, _, reason) in enumerate(LINES, 1)],
)
def test_each_line_gets_its_verdict(verdicts, number, reason):
    examples, reasons = verdicts
    if reason is GOOD:
        assert number in examples, reasons.get(number)
    elif reason is NO_ROW:
        assert number not in {*examples, *reasons}
    else:
        assert number not in examples
        assert reason in reasons[number]


def test_no_line_is_lost_and_none_counted_twice(verdicts):
    examples, reasons = verdicts
    rows = [number for number, (_, _, reason) in enumerate(LINES, 1) if reason is not NO_ROW]
    assert sorted([*examples, *reasons]) == rows


def test_text_of_good_lines_is_unchanged(verdicts):
    examples, _ = verdicts
    for number, (_, line, reason) in enumerate(LINES, 1):
        row = {} if reason else json.loads(line.decode("utf-8-sig"))
        if isinstance(row.get("output"), str) and isinstance(row["instruction"], str):
            assert examples[number]["prompt"] == row["instruction"]
            assert examples[number]["response"] == row["output"]


def test_duplicates_share_a_hash(verdicts):
    examples, _ = verdicts
    good, duplicate, near = (
        next(number for number, (what, _, _) in enumerate(LINES, 1) if what == name)
        for name in ("good", "exact duplicate", "near duplicate")
    )
    assert examples[good]["hash"] == examples[duplicate]["hash"] != examples[near]["hash"]


SHARED_GOOD = {
    "nasty.jsonl": {1, 4, 7, 12, 13, 16, *range(20, 25), *range(27, 36), 39, *range(42, 49), 59},
    "nasty_rawbytes.jsonl": {1, 2, 8},
}
SHARED_LINES = {"nasty.jsonl": 60, "nasty_rawbytes.jsonl": 8}
SHARED_BLANK = {"nasty.jsonl": {53}, "nasty_rawbytes.jsonl": set()}


@pytest.fixture(scope="module")
def shared_data():
    folder = os.environ.get("AIRREP_SHARED_DATA")
    if not folder:
        pytest.skip("AIRREP_SHARED_DATA does not name the folder of shared corpora")
    return Path(folder)


@pytest.mark.parametrize("name", SHARED_GOOD)
def test_shared_bad_rows(shared_data, tmp_path, name):
    examples, reasons = _verdicts(shared_data / name, tmp_path)
    assert set(examples) == SHARED_GOOD[name]
    assert set(reasons) == set(range(1, SHARED_LINES[name] + 1)) - SHARED_GOOD[name] - SHARED_BLANK[name]
    assert all(reasons.values())


@pytest.mark.parametrize(
    ("name", "accepted", "rejected", "labels", "chats"),
    [
        ("flan_like", 13_200, 0, 66, 0),
        ("alpaca", 5_999, 1, 1, 0),
        ("tulu_like", 4_028, 0, 16, 760),
        ("safety_like", 3_125, 0, 2, 0),
        ("gsm8k", 3_737, 0, 1, 0),
    ],
)
def test_shared_real_corpora(shared_data, tmp_path, name, accepted, rejected, labels, chats):
    examples, reasons = _verdicts(shared_data / f"{name}.jsonl.gz", tmp_path)
    assert (len(examples), len(reasons)) == (accepted, rejected)
    assert len({row["label"] for row in examples.values()}) == labels
    assert sum(row["messages"] is not None for row in examples.values()) == chats
