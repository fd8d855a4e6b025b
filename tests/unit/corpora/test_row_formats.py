"""Rows of every recognised shape become examples, and the others say why they don't."""

import json
from decimal import Decimal

import pytest

from workflow_scripts.core.errors import UnusableRowError
from workflow_scripts.corpora.row_formats import Example, read_example

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Green."},
]
CHAT_PROMPT = "System: Be brief.\nUser: Hi!\nAssistant: Hello.\nUser: Name a colour."


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"instruction": "Sum up.", "input": "Bees.", "output": "B."}, "Sum up.\n\nBees.", "B."),
        ({"instruction": "Sum up.", "input": "", "output": "B."}, "Sum up.", "B."),
        ({"instruction": "Sum up.", "input": None, "output": "B."}, "Sum up.", "B."),
        ({"instruction": "Sum up.", "input": " \n", "output": "B."}, "Sum up.", "B."),
        ({"instruction": "Sum up.", "output": "B."}, "Sum up.", "B."),
        ({"inputs": "Is it good?", "targets": "yes"}, "Is it good?", "yes"),
        ({"prompt": "Once", "response": "there was"}, "Once", "there was"),
        ({"prompt": "Once", "completion": " there was"}, "Once", " there was"),
        ({"question": "2 + 2?", "answer": "4"}, "2 + 2?", "4"),
        ({"messages": CHAT[1:3]}, "Hi!", "Hello."),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "a", "b"),
        ({"id": "7", "data": ["a", "b"]}, "a", "b"),
        ({" Instruction": "Name a colour.", "INPUT": "", "Output ": "Green."}, "Name a colour.", "Green."),
        # A table that mixes shapes has null in the columns of the others.
        ({"messages": None, "prompt": None, "response": None, "question": "a", "answer": "b"}, "a", "b"),
        # A number is exact as text, unlike a boolean.
        ({"question": 10**30, "answer": 42}, str(10**30), "42"),
        ({"question": "Pi?", "answer": 3.14}, "Pi?", "3.14"),
        ({"question": "Price?", "answer": Decimal("1.50")}, "Price?", "1.50"),
    ],
)
def test_single_turn_shapes(row, prompt, response):
    assert read_example(row, {}) == Example(prompt, response)


def test_chat_of_several_turns_keeps_its_messages():
    example = read_example({"messages": CHAT}, {})
    assert example == Example(CHAT_PROMPT, "Green.", CHAT)


def test_a_system_turn_makes_a_single_pair_a_chat():
    example = read_example({"messages": CHAT[:3]}, {})
    assert example == Example("System: Be brief.\nUser: Hi!", "Hello.", CHAT[:3])


def test_ultrachat_strings_are_said_in_turn():
    example = read_example({"data": ["a", "b", "c", "d"]}, {})
    assert example.prompt == "User: a\nAssistant: b\nUser: c"
    assert example.response == "d"
    assert [message["role"] for message in example.messages] == ["user", "assistant"] * 2


def test_turns_after_the_response_and_empty_system_turns_are_left_out():
    turns = [{"role": "system", "content": ""}, *CHAT[1:3], {"role": "user", "content": "Thanks"}]
    assert read_example({"messages": turns}, {}) == Example("Hi!", "Hello.")


def test_tool_calls_are_part_of_what_the_assistant_says():
    calls = [{"name": "weather", "arguments": {"city": "Oslo", "days": 1.5}}]
    turns = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": ""},
        {"role": "assistant", "content": "I can't say.", "tool_calls": None},
    ]
    example = read_example({"messages": turns}, {})
    assert json.loads(example.messages[1]["content"]) == calls
    assert example.prompt.splitlines()[1] == f"Assistant: {json.dumps(calls)}"


def test_text_parts_are_joined_and_json_text_of_a_chat_is_read():
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]
    turns = [{"role": "user", "content": parts}, CHAT[2]]
    assert read_example({"messages": turns}, {}) == Example("Hi!", "Hello.")
    assert read_example({"messages": json.dumps(turns)}, {}) == Example("Hi!", "Hello.")


def _chat(*turns):
    return {"messages": [dict(zip(("role", "content"), turn, strict=True)) for turn in turns]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "empty object"),
        ({"text": "a"}, "no known column: the row has ['text']"),
        ({"instruction": "a", "input": ""}, "has 'instruction', but no 'output'"),
        ({"input": "", "output": "a"}, "has 'output', but no 'instruction'"),
        ({"instruction": "a", "output": None}, "'output' is null"),
        ({"instruction": None, "output": "a"}, "'instruction' is null"),
        ({"instruction": "a", "output": ""}, "'output' is empty"),
        ({"instruction": "a", "output": " \n\t\u00a0\u3000"}, "'output' is blank"),
        ({"instruction": " \n", "output": "a"}, "'instruction' is blank"),
        ({"instruction": "a", "output": True}, "'output' is true or false"),
        ({"instruction": "a", "output": float("nan")}, "'output' is not a finite number"),
        ({"instruction": "a", "output": ["b"]}, "'output' is a list"),
        ({"instruction": "a", "output": {"b": 1}}, "'output' is an object"),
        ({"instruction": "a", "output": b"b"}, "'output' is raw bytes"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "'input' is a list"),
        ({"instruction": "a", "output": "\ud83d"}, "'output' is not valid Unicode"),
        ({"question": "a", "answer": "b", "label": "\ud83d"}, "'label' is not valid Unicode"),
        ({"Output": "a", "OUTPUT": "b", "instruction": "c"}, "'output' is given twice"),
        ({"messages": None}, "'messages' is null: it must be a list of turns"),
        ({"messages": 3}, "'messages' is a number"),
        ({"messages": "Hi"}, "not JSON"),
        (_chat(), "'messages' is an empty list"),
        (_chat(("user", "a")), "no assistant turn"),
        (_chat(("assistant", "a"), ("assistant", "b")), "no user turn before the last assistant turn"),
        (_chat(("user", "a"), ("critic", "b")), "unknown role: 'critic' in turn 2"),
        (_chat(("user", "a"), (["b"], "b")), "unknown role"),
        (_chat(("user", "a"), (None, "b")), "a turn has no role: turn 2"),
        (_chat(("user", ""), ("assistant", "b")), "turn 1 (user): 'content' is empty"),
        (_chat(("user", "a"), ("assistant", None)), "turn 2 (assistant): 'content' is null"),
        (_chat(("user", [{"type": "image_url"}]), ("assistant", "b")), "no text: 'image_url'"),
        ({"messages": [{"role": "user", "content": "a"}, "b"]}, "a turn is text, not an object: turn 2"),
        ({"data": ["a"]}, "no assistant turn"),
        ({"data": ["a", 3]}, "a turn is text, not an object: turn 1"),
    ],
)
def test_unusable_rows_say_why(row, reason):
    with pytest.raises(UnusableRowError) as error:
        read_example(row, {})
    assert reason in str(error.value)


def test_deep_tool_calls_are_refused_not_a_crash():
    calls = []
    for _ in range(100_000):
        calls = [calls]
    row = _chat(("user", "a"), ("assistant", "b"))
    row["messages"][1]["tool_calls"] = calls
    with pytest.raises(UnusableRowError, match="can't be written as JSON"):
        read_example(row, {})


PAIR = {"prompt": "a", "response": "b"}


@pytest.mark.parametrize(
    ("extra", "label"),
    [
        ({}, None),
        ({"task": "task363", "category": "sentiment"}, "task363"),
        ({"dataset": "dolly", "source": "web"}, "dolly"),
        ({"is_safe": True, "category": "risk", "source": "web"}, "safe"),
        ({"is_safe": False}, "unsafe"),
        ({"is_safe": "yes"}, "yes"),
        ({"label": 3, "task": "t"}, "3"),
        ({"label": True}, "true"),
        ({"label": None, "task": "t"}, None),
        ({"label": ""}, None),
        ({"label": float("nan")}, None),
        ({"label": ["x", "y"], "category": "c"}, "c"),
        ({"task_name": "t", "category": "c"}, "t"),
    ],
)
def test_labels_are_recognised_in_order_of_preference(extra, label):
    assert read_example({**PAIR, **extra}, {}).label == label


@pytest.mark.parametrize(
    ("row", "columns", "example"),
    [
        ({"q": "a", "a": "b", **PAIR}, {"prompt": "q", "response": "a"}, Example("a", "b")),
        ({"q": "x", "response": "b"}, {"prompt": "q"}, Example("x", "b")),
        ({"prompt": "a", "best": "x", "response": "b"}, {"response": "best"}, Example("a", "x")),
        ({"talk": CHAT[1:3], **PAIR}, {"messages": "talk"}, Example("Hi!", "Hello.")),
        ({"messages": CHAT, **PAIR}, {"prompt": "prompt", "response": "response"}, Example("a", "b")),
        ({**PAIR, "task": "t", "Kind": "k"}, {"label": "Kind"}, Example("a", "b", label="k")),
        ({**PAIR, "task": "t"}, {"label": "kind"}, Example("a", "b")),
        # The user's word is taken as it is: the instruction alone.
        ({"instruction": "a", "input": "x", "output": "b"}, {"prompt": "instruction"}, Example("a", "b")),
    ],
)
def test_the_column_map_wins(row, columns, example):
    assert read_example(row, columns) == example


def test_a_mapped_label_must_be_one_value():
    with pytest.raises(UnusableRowError, match="'tags' is a list"):
        read_example({**PAIR, "tags": ["x"]}, {"label": "tags"})


def test_the_place_ignores_case_spaces_and_punctuation():
    one, same, other = (Example(text, "x").place for text in ("Name the capital.", " name THE\ncapital!?", "Name it."))
    assert one == same != other
    assert 0 <= Example("...", "x").place < 1


def test_the_hash_depends_on_prompt_response_and_messages_alone():
    example = Example("a", "b", [{"role": "user", "content": "a"}], "label")
    assert example.hash == Example("a", "b", [{"role": "user", "content": "a"}]).hash
    assert len({example.hash, Example("a", "b").hash, Example("ab", "").hash, Example("", "ab").hash}) == 4
    assert len(example.hash) == 16
    assert int(example.hash, 16) >= 0
