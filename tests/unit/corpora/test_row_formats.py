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
        ({"severity_category": 0, "safety_category": [0, 0]}, "safe"),
        ({"severity_category": 2, "safety_category": [0, 1]}, "unsafe"),
        ({"severity_category": None, "safety_category": [False, True]}, "unsafe"),
        ({"safety_category": {"Violence": False, "Theft": False}}, "safe"),
        ({"severity_category": float("nan"), "safety_category": {"Violence": True}}, "unsafe"),
        ({"severity_category": "", "safety_category": [0, 1]}, "unsafe"),
        ({"safety_category": {"Violence": float("nan"), "Theft": 0}}, "safe"),
        ({"safety_category": {"Violence": None, "Theft": True}}, "unsafe"),
        ({"safety_category": {"Violence": None}}, None),
        # Of two layouts in one table, each row has its own.
        ({"is_safe": None, "severity_category": 2}, "unsafe"),
        ({"is_safe": None}, None),
        ({"is_safe": None, "source": "web", "severity_category": 2}, "unsafe"),
        ({"is_safe": "", "category": "x", "severity_category": "2"}, "unsafe"),
        ({"is_safe": " ", "severity_category": "0"}, "safe"),
        ({"severity_category": "nan", "safety_category": "{'Violence': None, 'Theft': True}"}, "unsafe"),
        ({"severity_category": " ", "safety_category": "[nan, 1.0]"}, "unsafe"),
        ({"safety_category": "{'nanotechnology': False}"}, "safe"),
        # As cells of CSV have them.
        ({"is_safe": "False"}, "unsafe"),
        ({"is_safe": 1}, "safe"),
        ({"severity_category": "0"}, "safe"),
        ({"severity_category": "3"}, "unsafe"),
        ({"safety_category": "{'Violence': False, 'Theft': True}"}, "unsafe"),
        ({"severity_category": "Severe"}, "Severe"),
        ({"safety_category": ["violence"]}, None),
        ({"severity_category": 2, "is_safe": True}, "safe"),
        ({"severity_category": 2, "source": "web"}, "web"),
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


TURNS = {"user": "Hi!", "assistant": "Hello."}


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"instruction": "a", "context": "c", "response": "b"}, "a\n\nc", "b"),
        ({"instruction": "a", "input": "i", "context": "c", "output": "b"}, "a\n\ni\n\nc", "b"),
        ({"context": "c", "question": "a", "answer": "b"}, "c\n\na", "b"),
        ({"context": ["c", "d"], "question": "a", "answer": "b"}, "c\nd\n\na", "b"),
        ({"context": " ", "question": "a", "answer": "b"}, "a", "b"),
        ({"context": float("nan"), "question": "a", "answer": "b"}, "a", "b"),
        ({"question": "a", "choices": ["x", "y"], "answer": 0}, "a\nA. x\nB. y", "x"),
        ({"question": "a", "choices": ["x", "y"], "answer": 1.0}, "a\nA. x\nB. y", "y"),
        ({"question": "a", "choices": ["x", "y"], "answer": "B"}, "a\nA. x\nB. y", "y"),
        ({"question": "a", "choices": ["x", "y"], "answer": "y"}, "a\nA. x\nB. y", "y"),
        ({"question": "a", "choices": ["x", "y"], "answer": "b"}, "a\nA. x\nB. y", "y"),
        ({"question": "a", "choices": ["x", "y"], "answer": "(B)."}, "a\nA. x\nB. y", "y"),
        ({"question": "a", "choices": ["b", "a"], "answer": "b"}, "a\nA. b\nB. a", "b"),
        ({"question": "a", "choices": ["C", "D", "B"], "answer": "b"}, "a\nA. C\nB. D\nC. B", "b"),
        ({"question": "a", "choices": ["Yes", "No"], "answer": "N"}, "a\nA. Yes\nB. No", "N"),
        ({"question": "a", "choices": ["是的", "不是"], "answer": "是"}, "a\nA. 是的\nB. 不是", "是"),
        ({"question": "a", "choices": ["x", "y"], "answer": "é"}, "a\nA. x\nB. y", "é"),
        ({"question": "a", "choices": {"x": "3", "X": "4"}, "answer": "(x)"}, "a\nx. 3\nX. 4", "(x)"),
        ({"question": "a", "choices": {"label": ["1", "2"], "text": ["x", "y"]}, "answer": "z"}, "a\n1. x\n2. y", "z"),
        ({"question": "a", "choices": '["x", "y"]', "answer": "1"}, "a\nA. x\nB. y", "y"),
        ({"question": "a", "choices": ["x", "y"], "answer": "It is y."}, "a\nA. x\nB. y", "It is y."),
        ({"question": "a", "options": {"A": "x", "B": "y"}, "answer": "B"}, "a\nA. x\nB. y", "y"),
        (
            {"question": "a", "choices": {"label": ["1", "2"], "text": ["x", "y"]}, "answerKey": "1"},
            "a\n1. x\n2. y",
            "x",
        ),
        ({"question": "a", "choices": {"label": ["1", "2"], "text": ["x", "y"]}, "answer": 1}, "a\n1. x\n2. y", "x"),
        # An index is taken for one even where the texts are numbers.
        ({"question": "a", "choices": ["4", "0"], "answer": 0}, "a\nA. 4\nB. 0", "4"),
        ({"question": "a", "system": "", "history": [], "answer": "b"}, "a", "b"),
    ],
)
def test_context_and_choices_belong_to_the_prompt(row, prompt, response):
    example = read_example(row, {})
    assert example == Example(prompt, response)
    assert example.unread == ()


@pytest.mark.parametrize("system", ["system", "system_prompt"])
@pytest.mark.parametrize(
    "history",
    [
        [["Hi!", "Hello."]],
        '[["Hi!", "Hello."]]',
        [{"role": role, "content": text} for role, text in TURNS.items()],
    ],
)
def test_system_and_history_become_turns(system, history):
    row = {"instruction": "Name a colour.", "input": "", "output": "Green.", system: "Be brief.", "history": history}
    assert read_example(row, {}) == Example(CHAT_PROMPT, "Green.", CHAT)


def test_a_system_column_comes_before_a_chat():
    chat = {"conversations": [{"from": "human", "value": "Hi!"}, {"from": "gpt", "value": "Hello."}]}
    example = read_example({**chat, "system": "Be brief.", "tools": "[]"}, {})
    assert example == Example("System: Be brief.\nUser: Hi!", "Hello.", CHAT[:3])
    assert example.unread == ("tools",)
    assert read_example({"messages": CHAT[:3], "system": "Be brief."}, {}) == example


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"train": False},
        {"train": "no"},
        {"loss": False},
        {"training": False},
        {"train_on_turn": False},
        {"loss_weight": 0.0},
        {"loss_mask": 0},
    ],
)
def test_a_turn_that_does_not_count_is_never_the_response(mark):
    masked = [*CHAT[:4], {**CHAT[4], **mark}]
    assert read_example({"messages": masked}, {}) == Example("System: Be brief.\nUser: Hi!", "Hello.", CHAT[:3])
    masked = [*CHAT[:2], {**CHAT[2], **mark}, *CHAT[3:]]
    assert read_example({"messages": masked}, {}, "first") == Example(CHAT_PROMPT, "Green.", CHAT)
    counted = [{**turn, "weight": None, "train": True} for turn in CHAT]
    assert read_example({"messages": counted}, {}) == Example(CHAT_PROMPT, "Green.", CHAT)
    with pytest.raises(UnusableRowError, match="no assistant turn that counts"):
        read_example({"messages": [{**turn, **mark} for turn in CHAT]}, {})


def test_a_function_call_beside_text_is_part_of_the_response():
    call = {"name": "next", "arguments": "{}"}
    turns = [CHAT[1], {"role": "assistant", "content": "One moment.", "function_call": call}]
    assert read_example({"messages": turns}, {}).response == f"One moment.\n{json.dumps(call)}"
    turns[1]["content"] = None
    assert read_example({"messages": turns}, {}).response == json.dumps(call)


def test_turns_of_two_layouts_in_one_struct_are_read():
    empty = dict.fromkeys(("role", "content", "from", "value", "function_call"))
    turns = [{**empty, "from": "human", "value": "Hi!"}, {**empty, "role": "assistant", "content": "Hello."}]
    example = read_example({"messages": turns}, {})
    assert example == Example("Hi!", "Hello.")
    assert example.unread == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "a", "choices": ["x", "y"], "answer": 2}, "'answer' is the place of no choice: 2 of 2"),
        ({"question": "a", "choices": ["1", "0"], "answer": "0"}, "may be a choice's text or its place: '0'"),
        ({"question": "a", "choices": ["x", "y"], "answer": "c."}, "'answer' is the letter of no choice: 'c.' of A, B"),
        ({"question": "a", "choices": 3, "answer": "0"}, "'choices' is a number"),
        ({"question": "a", "choices": ["x", None], "answer": 0}, "'choices' is null"),
        ({"question": "a", "answerKey": "B"}, "the row has 'answerkey', but no choices"),
        ({"question": "a", "answer": "b", "context": {"texts": ["c"]}}, "'context' is an object"),
        ({"question": "a", "answer": "b", "history": "Hi"}, "not JSON"),
        ({"question": "a", "answer": "b", "history": [["Hi", 3.5, "x"]]}, "a turn is a list, not an object"),
    ],
)
def test_what_stands_beside_a_pair_is_read_or_refused(row, reason):
    with pytest.raises(UnusableRowError) as error:
        read_example(row, {})
    assert reason in str(error.value)


def test_the_prompt_may_be_several_columns():
    row = {"title": "t", "body": " b ", "note": None, "context": "c", "reply": "r"}
    columns = {"prompt": ["Title", "note", "body"], "response": "reply"}
    example = read_example(row, columns)
    assert example == Example("t\n\n b ", "r")
    assert example.unread == ("context",)
    with pytest.raises(UnusableRowError, match="every column of the prompt is empty"):
        read_example({"title": "", "body": None, "reply": "r"}, columns)


def test_columns_and_keys_of_turns_that_are_not_read_are_named():
    row = {"id": 7, "Prompt": "x", "prompt": "a", "response": "b", "tags": [], "meta": {"n": 1}, "task": "t"}
    assert read_example(row, {}).unread == ("id", "Prompt", "meta")
    turns = [{**CHAT[1], "name": "Ann", "id": None}, {**CHAT[2], "reasoning_content": "Hm.", "value": 0.5}]
    unread = read_example({"messages": turns, "prompt": "a"}, {}).unread
    assert unread == ("prompt", "messages[].name", "messages[].reasoning_content", "messages[].value")


def test_an_answer_of_more_digits_than_python_reads_is_an_answer():
    digits = "1" * 5000
    assert read_example({"question": "a", "choices": ["x", "y"], "answer": digits}, {}).response == digits


def test_columns_of_another_shape_may_be_empty_as_csv_has_them():
    row = {"instruction": "", "output": "", "messages": "", "question": "why", "answer": "because"}
    found = read_example(row, {})
    assert (found.prompt, found.response) == ("why", "because")
    with pytest.raises(UnusableRowError, match="'instruction' is empty"):
        read_example({"instruction": "", "output": ""}, {})
