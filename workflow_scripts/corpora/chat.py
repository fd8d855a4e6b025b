"""Read chats of any common format into a list of {role, content} turns that ends with the response."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


def read_chat(turns: object, column: str, response_turn: Turn = "last") -> list[Message]:
    """Return the turns of a chat up to the response.

    Turns after the response are left out, and so are empty system turns. The content of an assistant turn that calls
    tools includes its calls, as JSON.

    Parameters
    ----------
    turns: list of {role, content} or ShareGPT's {from, value} (or the JSON text of one, as in CSV cells), or
        UltraChat's list of strings, which are user and assistant turns alternately.
    column: name of its column, for the message.
    response_turn: which assistant turn is the response, the `last` or the `first` after a user turn.

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
    messages = [message for message in messages if message["content"] or message["role"] != "system"]
    return _up_to_response(messages, column, response_turn)


def render_prompt(messages: Sequence[Message]) -> str:
    """Return the turns as text, e.g. `System: Be brief.\\nUser: Hi!`."""
    return "\n".join(f"{message['role'].title()}: {message['content']}" for message in messages)


def _up_to_response(messages: list[Message], column: str, response_turn: Turn) -> list[Message]:
    roles = [message["role"] for message in messages]
    if response_turn == "first" and "user" in roles:
        first_user = roles.index("user")
        if "assistant" in roles[first_user:]:
            return messages[: roles.index("assistant", first_user) + 1]
    if "assistant" not in roles:
        raise UnusableRowError(f"{shown(column)} has no assistant turn")
    response = len(roles) - 1 - roles[::-1].index("assistant")
    if "user" not in roles[:response]:
        raise UnusableRowError(f"{shown(column)} has no user turn before the last assistant turn")
    return messages[: response + 1]


def _read_turn(turn: object, number: int) -> Message:
    if not isinstance(turn, Mapping):
        raise UnusableRowError(f"a turn is {kind_of(turn)}, not an object: turn {number}")
    role = _role(turn.get("role", turn.get("from")), number)
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


def _content(turn: Mapping[str, object], role: str) -> str:
    content = turn.get("content", turn.get("value"))
    calls = turn.get("tool_calls")
    if role == "assistant" and calls:
        said = "" if content is None else _join_parts(content)
        return f"{said}\n{_tool_calls_text(calls)}".lstrip("\n")
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


def _tool_calls_text(calls: object) -> str:
    try:
        return text_of(json.dumps(calls, ensure_ascii=False), "tool_calls")
    except (TypeError, ValueError, RecursionError):
        raise UnusableRowError("'tool_calls' can't be written as JSON") from None
