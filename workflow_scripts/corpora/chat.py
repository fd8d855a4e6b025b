"""Read chats of any common format into a list of {role, content} turns that ends with the response."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Literal

from workflow_scripts.core.errors import UnusableRowError
from workflow_scripts.corpora.cells import filled_text_of, kind_of, shown, text_of
from workflow_scripts.corpora.json_rows import decode_json

Message = dict[str, str]
Turn = Literal["last", "first"]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
}


CALL_KEYS = ("tool_calls", "function_call")
# Keys by which datasets leave an assistant turn out of the loss.
COUNTING_KEYS = ("weight", "train", "trainable", "training", "train_on_turn", "loss", "loss_weight", "loss_mask")
NOT_COUNTED = ("0", "0.0", "false", "no")


def read_chat(
    turns: object, column: str, response_turn: Turn = "last", unread: MutableMapping[str, None] | None = None
) -> list[Message]:
    """Return the turns up to the last assistant turn, or the first after a user turn, which is the response.

    `turns` is a list of {role, content} or ShareGPT's {from, value} (or the JSON text of one, as in
    CSV cells), or UltraChat's list of strings, which user and assistant say in turn. Turns after the
    response are left out, and so are empty system turns. The calls of
    an assistant turn that calls tools belong to its content, as JSON. A turn with `weight: 0` or `train: false` is
    never the response. `unread` receives the keys of turns that aren't read, as `column[].key`.

    Raises
    ------
    UnusableRowError: a turn can't be read, or no user turn comes before the response.
    """
    if isinstance(turns, str):
        turns = decode_json(turns)
    if not isinstance(turns, list):
        raise UnusableRowError(f"{shown(column)} is {kind_of(turns)}: it must be a list of turns")
    if not turns:
        raise UnusableRowError(f"{shown(column)} is an empty list")
    if all(isinstance(turn, str) for turn in turns):
        turns = [{"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(turns)]
    messages = [_read_turn(turn, number) for number, turn in enumerate(turns, 1)]
    if unread is not None:
        unread.update({f"{column}[].{key}": None for turn in turns for key in _unread_keys(turn)})
    said = [
        (message, _counts(turn))
        for message, turn in zip(messages, turns, strict=True)
        if message["content"] or message["role"] != "system"
    ]
    return _up_to_response([message for message, _ in said], [counts for _, counts in said], column, response_turn)


def read_history(turns: object, column: str) -> list[Message]:
    """Return the turns of an earlier talk: [user, assistant] pairs, turns as `read_chat` takes them, or nothing.

    Raises
    ------
    UnusableRowError: a turn can't be read.
    """
    if isinstance(turns, str) and turns.strip():
        turns = decode_json(turns)
    if not turns:
        return []
    if not isinstance(turns, list):
        raise UnusableRowError(f"{shown(column)} is {kind_of(turns)}: it must be a list of turns")
    if all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        said = [text for pair in turns for text in pair]
        return [
            {"role": "assistant" if index % 2 else "user", "content": filled_text_of(text, column)}
            for index, text in enumerate(said)
            if text is not None
        ]
    return [_read_turn(turn, number) for number, turn in enumerate(turns, 1)]


def render_prompt(messages: Sequence[Message]) -> str:
    """Return the turns as text, e.g. `System: Be brief.\\nUser: Hi!`."""
    return "\n".join(f"{message['role'].title()}: {message['content']}" for message in messages)


def _up_to_response(
    messages: list[Message], counting: Sequence[bool], column: str, response_turn: Turn
) -> list[Message]:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise UnusableRowError(f"{shown(column)} has no assistant turn")
    responses = [turn for turn, role in enumerate(roles) if role == "assistant" and counting[turn]]
    if not responses:
        raise UnusableRowError(f"{shown(column)} has no assistant turn that counts (weight, train)")
    after_user = [turn for turn in responses if "user" in roles[:turn]]
    response = after_user[0] if response_turn == "first" and after_user else responses[-1]
    if "user" not in roles[:response]:
        raise UnusableRowError(f"{shown(column)} has no user turn before the last assistant turn")
    return messages[: response + 1]


def _read_turn(turn: object, number: int) -> Message:
    if not isinstance(turn, Mapping):
        raise UnusableRowError(f"a turn is {kind_of(turn)}, not an object: turn {number}")
    role = _role(_first_given(turn, "role", "from"), number)
    try:
        content = _content(turn, role)
    except UnusableRowError as error:
        raise UnusableRowError(f"a turn can't be read: turn {number} ({role}): {error}") from None
    return {"role": role, "content": content}


def _role(name: object, number: int) -> str:
    if name is None:
        raise UnusableRowError(f"a turn has no role: turn {number}")
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise UnusableRowError(f"a turn has an unknown role: {shown(name)} in turn {number}")
    return role


def _first_given(turn: Mapping[str, object], *keys: str) -> object:
    # Tables that were merged have the keys of several layouts, null where another one is used.
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _counts(turn: object) -> bool:
    if not isinstance(turn, Mapping):
        return True
    return not any(str(turn[key]).strip().lower() in NOT_COUNTED for key in COUNTING_KEYS if key in turn)


def _unread_keys(turn: Mapping[str, object]) -> list[str]:
    """Return the keys of a turn with something in them that `_read_turn` doesn't read."""
    read = {*COUNTING_KEYS}
    for keys in (("role", "from"), ("content", "value")):
        read.update(next(([key] for key in keys if turn.get(key) is not None), []))
    if turn.get("role", turn.get("from")) is not None:
        read.update(CALL_KEYS)
    return [str(key) for key, value in turn.items() if key not in read and value not in (None, "", [], {})]


def _content(turn: Mapping[str, object], role: str) -> str:
    content = _first_given(turn, "content", "value")
    calls = [(key, turn[key]) for key in CALL_KEYS if turn.get(key)]
    if role == "assistant" and calls:
        said = "" if content is None else _join_parts(content)
        return "\n".join([said, *(_calls_text(*call) for call in calls)]).lstrip("\n")
    text = _join_parts(content)
    # A system turn may be empty, and a tool may return nothing; people and models have to say something.
    return filled_text_of(text, "content") if role in ("user", "assistant") else text


def _join_parts(content: object) -> str:
    if not isinstance(content, list):
        return text_of(content, "content")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise UnusableRowError(f"content has a part that is no text: {shown(kind)}")
        texts.append(text_of(part.get("text"), "text"))
    return "".join(texts)


def _calls_text(key: str, calls: object) -> str:
    try:
        return text_of(json.dumps(calls, ensure_ascii=False), key)
    except (TypeError, ValueError, RecursionError):
        raise UnusableRowError(f"{shown(key)} can't be written as JSON") from None
