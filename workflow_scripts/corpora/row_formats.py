"""Convert corpus rows of any recognised format to examples."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from workflow_scripts.core.errors import UnusableRowError
from workflow_scripts.corpora.cells import filled_text_of, shown, text_of
from workflow_scripts.corpora.chat import Message, Turn, read_chat, render_prompt
from workflow_scripts.corpora.json_rows import RepeatedKey, object_of

CHAT_COLUMNS = ("messages", "conversations")
TEXT_SHAPES = (
    ("instruction", "output"),
    ("inputs", "targets"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
)
LABEL_COLUMNS = ("label", "task", "task_name", "dataset", "is_safe", "source", "category")


@dataclass(frozen=True, slots=True)
class Example:
    """One training or test example.

    Parameters
    ----------
    prompt: text before the response.
    response: text that the LM is to generate.
    messages: turns of the chat, the response last; None if the prompt is the text of a single user turn.
    label: class label; None if there is none.
    """

    prompt: str
    response: str
    messages: list[Message] | None = None
    label: str | None = None

    @property
    def hash(self) -> str:
        """16 hex digits: a hash of prompt, response and messages, and not of the label."""
        text = json.dumps([self.prompt, self.response, self.messages], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def place(self) -> float:
        """The prompt's place in [0, 1), computed from its key, by which parts of a corpus are chosen."""
        # 53 bits are what a float holds exactly; more could round up to 1.
        return (prompt_key(self.prompt) >> 11) / 2**53


def prompt_key(prompt: str) -> int:
    """Return a 64-bit hash, the same for prompts that differ only in case, spaces and punctuation."""
    letters = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", prompt).casefold())
    return int.from_bytes(hashlib.sha256(letters.encode()).digest()[:8], "big")


def read_example(row: Mapping[str, object], columns: Mapping[str, str], response_turn: Turn = "last") -> Example:
    """Return the example in a row, its text unchanged.

    Formats, in this order: chat (`messages`, ShareGPT's `conversations`), Alpaca (instruction, input, output), FLAN
    (inputs, targets), prompt and response or completion, question and answer, UltraChat's `data`. Case and outer spaces
    of column names are ignored.

    Parameters
    ----------
    row: values by column.
    columns: names of the columns `prompt`, `response`, `messages` and `label`, where they differ; they take precedence,
        and no Alpaca input is added to a mapped prompt.
    response_turn: which assistant turn of a chat is the response, `last` or `first`.

    Raises
    ------
    UnusableRowError: no format is recognised, or a cell can't be used.
    """
    cells = plain_names(row)
    columns = {meaning: plain_name(name) for meaning, name in columns.items()}
    label = _label(cells, columns.get("label"))
    chat = _chat_column(cells, columns)
    if chat is None:
        prompt_column, response_column = _text_columns(cells, columns)
        prompt = filled_text_of(cells[prompt_column], prompt_column)
        if prompt_column == "instruction" and "prompt" not in columns:
            prompt += _alpaca_input(cells)
        return Example(prompt, filled_text_of(cells[response_column], response_column), label=label)
    *context, response = read_chat(cells.get(chat), chat, response_turn)
    if [message["role"] for message in context] == ["user"]:
        return Example(context[0]["content"], response["content"], label=label)
    return Example(render_prompt(context), response["content"], [*context, response], label)


def plain_name(name: object) -> str:
    """Return a column's name without case and outer spaces."""
    return str(name).strip().lower()


def plain_names(row: Mapping[str, object]) -> dict[str, object]:
    """Return `row` with plain names; if several become the same, one that was plain before takes precedence."""
    pairs = [(plain_name(name), name, value) for name, value in row.items()]
    plain_before = {name: value for plain, name, value in pairs if name == plain}
    return object_of([(plain, value) for plain, _, value in pairs]) | plain_before


def _chat_column(cells: Mapping[str, object], columns: Mapping[str, str]) -> str | None:
    if "messages" in columns:
        return columns["messages"]
    if "prompt" in columns or "response" in columns:
        return None
    # A table that mixes shapes has the columns of all of them, null where another shape is used.
    for column in CHAT_COLUMNS:
        if cells.get(column) is not None:
            return column
    has_pair = any(prompt in cells and response in cells for prompt, response in TEXT_SHAPES)
    if isinstance(cells.get("data"), list) and not has_pair:
        return "data"
    return next((column for column in CHAT_COLUMNS if column in cells and not has_pair), None)


def _text_columns(cells: Mapping[str, object], columns: Mapping[str, str]) -> tuple[str, str]:
    pairs = [(columns.get("prompt", prompt), columns.get("response", response)) for prompt, response in TEXT_SHAPES]
    named = [pair for pair in pairs if pair[0] in cells and pair[1] in cells]
    filled = [pair for pair in named if cells[pair[0]] is not None and cells[pair[1]] is not None]
    if named:
        return (filled or named)[0]
    for there, missing in [*pairs, *((response, prompt) for prompt, response in pairs)]:
        if there in cells:
            raise UnusableRowError(f"the row has {shown(there)}, but no {shown(missing)}")
    if not cells:
        raise UnusableRowError("the row is an empty object")
    raise UnusableRowError(f"no known column: the row has {shown(sorted(cells))}")


def _alpaca_input(cells: Mapping[str, object]) -> str:
    if cells.get("input") is None:
        return ""
    text = text_of(cells["input"], "input")
    return f"\n\n{text}" if text.strip() else ""


def _label(cells: Mapping[str, object], mapped: str | None) -> str | None:
    if mapped is not None:
        return _label_text(cells.get(mapped), mapped)
    for column in LABEL_COLUMNS:
        # Lists of tags and the like aren't labels; only the user can say that a column was meant to be one.
        if column in cells and isinstance(cells[column], str | int | float | RepeatedKey | None):
            return _label_text(cells[column], column)
    return None


def _label_text(value: object, column: str) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        true, false = ("safe", "unsafe") if column == "is_safe" else ("true", "false")
        return true if value else false
    return text_of(value, column)
