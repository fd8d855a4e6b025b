"""Convert corpus rows of any recognised format to examples."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from workflow_scripts.core.errors import UnusableRowError
from workflow_scripts.corpora.cells import filled_text_of, kind_of, shown, text_of
from workflow_scripts.corpora.chat import Message, Turn, read_chat, read_history, render_prompt
from workflow_scripts.corpora.json_rows import RepeatedKey, decode_json, object_of

CHAT_COLUMNS = ("messages", "conversations")
# Earlier pairs win where a row has several.
TEXT_SHAPES = (
    ("instruction", "output"),
    ("inputs", "targets"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("question", "response"),
    ("instruction", "response"),
    ("question", "answerkey"),
)
SYSTEM_COLUMNS = ("system", "system_prompt")
CHOICES_COLUMNS = ("choices", "options")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LABEL_COLUMNS = ("label", "task", "task_name", "dataset", "is_safe", "source", "category")
# Of how bad an answer is, 0 for not at all, and of how: a list of 0 and 1, or an object of true and false.
HARM_COLUMNS = ("severity_category", "safety_category")


@dataclass(frozen=True, slots=True)
class Example:
    """One training or test example.

    Parameters
    ----------
    prompt: text before the response.
    response: text that the LM is to generate.
    messages: turns of the chat, the response last; None if the prompt is the text of a single user turn.
    label: class label; None if there is none.
    label_column: where it was looked for; None if the row has no such column.
    """

    prompt: str
    response: str
    messages: list[Message] | None = None
    label: str | None = None
    label_column: str | None = field(default=None, compare=False)
    # Columns with something in them that took no part in the example, as `prompt` or `messages[].name`.
    unread: tuple[str, ...] = field(default=(), compare=False)

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
    """Return a 64-bit hash, the same for prompts that differ only in case, spaces, punctuation and combining marks.

    Marks are vowels and tones in some scripts, so a few different prompts there are taken for the same, and none that
    are the same for different ones.
    """
    letters = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", prompt).casefold())
    return int.from_bytes(hashlib.sha256(letters.encode()).digest()[:8], "big")


Columns = Mapping[str, str | Sequence[str]]


def read_example(row: Mapping[str, object], columns: Columns, response_turn: Turn = "last") -> Example:
    """Return the example that `row` holds, its text unchanged.

    Shapes, in this order: chat (`messages`, ShareGPT's `conversations`), then the pairs of `TEXT_SHAPES`, then
    UltraChat's `data`. Column names count without case and outer spaces. Beside them are read: `system` or
    `system_prompt` as system turn; and where there is no chat, `history` as earlier turns, Alpaca's `input` after
    the instruction, `context` (after an instruction, before any other prompt), and `choices` or `options` after the
    prompt: an answer that is a choice's place (from 0) or letter becomes that choice.
    The label is the first of `LABEL_COLUMNS`; without one, or if that is `is_safe` and empty, it is `safe` or `unsafe`
    by the first of `HARM_COLUMNS` with flags.
    `columns` maps prompt, response, messages and label to other names, and wins; a mapped prompt is the columns that
    it names alone, several joined by blank lines. `response_turn` says which assistant turn of a chat is the response.

    Raises
    ------
    UnusableRowError: no format is recognised, or a cell can't be used.
    """
    cells = Cells(row)
    mapped = {meaning: _plain(names) for meaning, names in columns.items()}
    label, label_column = _label(cells, mapped)
    chat = _chat_column(cells, mapped)
    if chat is None:
        turns = _turns_of_texts(cells, mapped)
    else:
        turns = read_chat(cells.read(chat), chat, response_turn, cells.unread_of_turns)
        if system := _filled(cells, SYSTEM_COLUMNS):
            turns = [{"role": "system", "content": system}, *(turns if turns[0]["content"] != system else turns[1:])]
    *context, response = turns
    if [message["role"] for message in context] == ["user"]:
        return Example(context[0]["content"], response["content"], None, label, label_column, cells.unread())
    return Example(render_prompt(context), response["content"], turns, label, label_column, cells.unread())


class Cells:
    """The cells of a row by their plain names, and which of them took part in its example."""

    def __init__(self, row: Mapping[str, object]):
        self.values = plain_names(row)
        self.unread_of_turns: dict[str, None] = {}
        self._row, self._read = row, set[str]()

    def __contains__(self, column: str) -> bool:
        return column in self.values

    def peek(self, column: str) -> object:
        """Return a cell, or None where there is none."""
        return self.values.get(column)

    def read(self, column: str) -> object:
        """Return a cell, and note that it takes part."""
        self._read.add(column)
        return self.values.get(column)

    def unread(self) -> tuple[str, ...]:
        """Return the columns with something in them that took no part, as the row spells them."""
        columns = [
            str(name)
            for name, value in self._row.items()
            if not (plain_name(name) in self._read and self.values[plain_name(name)] is value) and not _is_empty(value)
        ]
        return (*columns, *self.unread_of_turns)


def _is_empty(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str | list | dict) and not value)


def _plain(names: str | Sequence[str]) -> list[str]:
    return [plain_name(name) for name in ([names] if isinstance(names, str) else names)]


def plain_name(name: object) -> str:
    """Return a column's name without case and outer spaces."""
    return str(name).strip().lower()


def plain_names(row: Mapping[str, object]) -> dict[str, object]:
    """Return `row` with plain names; if several become the same, one that was plain before takes precedence."""
    pairs = [(plain_name(name), name, value) for name, value in row.items()]
    plain_before = {name: value for plain, name, value in pairs if name == plain}
    return object_of([(plain, value) for plain, _, value in pairs]) | plain_before


def _chat_column(cells: Cells, columns: Mapping[str, Sequence[str]]) -> str | None:
    if "messages" in columns:
        return columns["messages"][0]
    if "prompt" in columns or "response" in columns:
        return None
    # A table that mixes shapes has the columns of all of them, null or empty where another shape is used.
    for column in CHAT_COLUMNS:
        if not _is_empty(cells.peek(column)):
            return column
    has_pair = any(prompt in cells and response in cells for prompt, response in TEXT_SHAPES)
    if isinstance(cells.peek("data"), list) and not has_pair:
        return "data"
    return next((column for column in CHAT_COLUMNS if column in cells and not has_pair), None)


def _turns_of_texts(cells: Cells, columns: Mapping[str, Sequence[str]]) -> list[Message]:
    prompt_columns, response_column = _text_columns(cells, columns)
    answer = cells.read(response_column)
    if "prompt" in columns:
        prompt = _joined(cells, prompt_columns)
        response = filled_text_of(answer, response_column)
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    (prompt_column,) = prompt_columns
    prompt = filled_text_of(cells.read(prompt_column), prompt_column)
    parts = [prompt]
    if prompt_column == "instruction":
        parts.append(_filled(cells, ("input",)))
    if context := _filled(cells, ("context",)):
        parts.insert(len(parts) if prompt_column == "instruction" else 0, context)
    prompt = "\n\n".join(part for part in parts if part)
    choices = _choices(cells)
    if choices:
        prompt += "\n" + "\n".join(f"{name}. {choice}" for name, choice in choices.items())
        response = _chosen(answer, response_column, choices)
    elif response_column == "answerkey":
        raise UnusableRowError("the row has 'answerkey', but no choices")
    else:
        response = filled_text_of(answer, response_column)
    turns = read_history(cells.read("history"), "history") if "history" in cells else []
    if system := _filled(cells, SYSTEM_COLUMNS):
        turns.insert(0, {"role": "system", "content": system})
    return [*turns, {"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _text_columns(cells: Cells, columns: Mapping[str, Sequence[str]]) -> tuple[Sequence[str], str]:
    pairs = [
        (columns.get("prompt", [prompt]), columns.get("response", [response])[0]) for prompt, response in TEXT_SHAPES
    ]
    named = [pair for pair in pairs if any(name in cells for name in pair[0]) and pair[1] in cells]
    filled = [
        pair
        for pair in named
        if not (all(_is_empty(cells.peek(name)) for name in pair[0]) or _is_empty(cells.peek(pair[1])))
    ]
    if named:
        return (filled or named)[0]
    ones = [(prompts[0], response) for prompts, response in pairs]
    for there, missing in [*ones, *((response, prompt) for prompt, response in ones)]:
        if there in cells:
            raise UnusableRowError(f"the row has {shown(there)}, but no {shown(missing)}")
    if not cells.values:
        raise UnusableRowError("the row is an empty object")
    raise UnusableRowError(f"no known column: the row has {shown(sorted(cells.values))}")


def _joined(cells: Cells, columns: Sequence[str]) -> str:
    if len(columns) == 1:
        return filled_text_of(cells.read(columns[0]), columns[0])
    texts = [text for column in columns if (text := _filled(cells, (column,)))]
    if not texts:
        raise UnusableRowError(f"every column of the prompt is empty: {shown(list(columns))}")
    return "\n\n".join(texts)


def _filled(cells: Cells, columns: Sequence[str]) -> str:
    """Return the text of the first of `columns` that isn't empty or blank; a list of texts is joined by line breaks."""
    for column in columns:
        if not _is_empty(cells.peek(column)):
            value = cells.read(column)
            values = value if isinstance(value, list) and column != "input" else [value]
            text = "\n".join(text_of(one, column) for one in values)
            if text.strip():
                return text
    return ""


def _choices(cells: Cells) -> dict[str, str]:
    """Return the choices by letter or label: a list of texts, {letter: text}, or {label: [...], text: [...]}."""
    for column in CHOICES_COLUMNS:
        if _is_empty(cells.peek(column)):
            continue
        value = cells.read(column)
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            value = decode_json(value)
        if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
            if len(value["text"]) != len(value["label"]):
                raise UnusableRowError(f"{shown(column)} has not as many labels as texts")
            pairs = list(zip(value["label"], value["text"], strict=True))
        elif isinstance(value, dict):
            pairs = [(name, text) for name, text in value.items() if text is not None]
        elif isinstance(value, list) and len(value) <= len(LETTERS):
            pairs = list(zip(LETTERS, value, strict=False))
        else:
            raise UnusableRowError(f"{shown(column)} is {kind_of(value)}: it must be a list of at most 26 texts")
        choices = {text_of(name, column): filled_text_of(text, column) for name, text in pairs}
        if len(choices) < len(pairs):
            raise UnusableRowError(f"{shown(column)} has a label twice")
        return choices
    return {}


def _chosen(answer: object, column: str, choices: Mapping[str, str]) -> str:
    """Return the choice that `answer` names by its place from 0 or by its label, or the text of `answer` itself."""
    texts = list(choices.values())
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and not any(name.isdigit() for name in choices):
        if not 0 <= answer < len(texts):
            raise UnusableRowError(f"{shown(column)} is the place of no choice: {answer} of {len(texts)}, from 0")
        return texts[answer]
    text = filled_text_of(answer, column)
    name = text.strip()
    readings = {text} if name in texts else set()
    if name in choices:
        readings.add(choices[name])
    # The first comparison is for numbers of more digits than Python reads.
    elif len(name) <= len(str(len(texts))) and name.isdecimal() and int(name) < len(texts):
        readings.add(texts[int(name)])
    if len(readings) > 1:
        raise UnusableRowError(f"{shown(column)} may be a choice's text or its place: {shown(text)}")
    return readings.pop() if readings else _lettered(text, column, choices)


def _lettered(answer: str, column: str, choices: Mapping[str, str]) -> str:
    """Return the choice that `answer` names by a letter in another way (`b`, `B.`, `(B)`), or else `answer` itself."""
    letter = answer.strip().strip("().:").casefold()
    if not re.fullmatch("[a-z]", letter) or any(text.casefold().startswith(letter) for text in choices.values()):
        return answer
    named = [text for name, text in choices.items() if name.casefold() == letter]
    if not named and all(re.fullmatch("[A-Za-z]", name) for name in choices):
        raise UnusableRowError(f"{shown(column)} is the letter of no choice: {shown(answer)} of {', '.join(choices)}")
    return named[0] if len(named) == 1 else answer


def _label(cells: Cells, columns: Mapping[str, Sequence[str]]) -> tuple[str | None, str | None]:
    """Return the label, and the column that it was looked for in."""
    if "label" in columns:
        (column,) = columns["label"]
        return _label_text(cells.read(column), column), column
    for column in LABEL_COLUMNS:
        # Lists of tags and the like aren't labels; only the user can say that a column was meant to be one.
        if column in cells and isinstance(cells.peek(column), str | int | float | RepeatedKey | None):
            label = _label_text(cells.read(column), column)
            if label is not None or column != "is_safe":
                return label, column
            # What else says whether a row is safe comes before labels of another kind.
            break
    for column in HARM_COLUMNS:
        value = _untyped(cells.peek(column))
        if not _is_empty(value) and (isinstance(value, str) or _flags(value)):
            label = _label_text(cells.read(column), column)
            if label is not None:
                return label, column
    return None, "is_safe" if "is_safe" in cells else None


def _flags(value: object) -> list[object]:
    """Return the numbers, or true and false, that a cell holds; nothing if it holds anything else but null and NaN."""
    flags = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    flags = [flag for flag in flags if not _is_empty(flag)]
    return flags if all(isinstance(flag, int | float) for flag in flags) else []


# What a cell of CSV has where a list or an object was written by Python.
_IN_JSON = {"True": "true", "False": "false", "None": "null", "nan": "null", "'": '"'}
_PYTHON_WORD = re.compile(r"\b(?:True|False|None|nan)\b|'")


def _untyped(value: object) -> object:
    """Return what the text of a CSV cell stands for: nothing, a number, true or false, a list or an object of them."""
    if not isinstance(value, str):
        return value
    try:
        # Also as Python writes them.
        found = decode_json(_PYTHON_WORD.sub(lambda word: _IN_JSON[word[0]], value.strip()))
    except UnusableRowError:
        return value
    return value if isinstance(found, str) else found


def _label_text(value: object, column: str) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    is_flag = column in (*HARM_COLUMNS, "is_safe")
    if is_flag and isinstance(value, str) and (not value.strip() or _untyped(value) is None):
        return None
    if column in HARM_COLUMNS and (flags := _flags(_untyped(value))):
        return "unsafe" if any(flags) else "safe"
    if column == "is_safe" and _untyped(value) in (0, 1):
        return "safe" if _untyped(value) else "unsafe"
    if isinstance(value, bool):
        return "true" if value else "false"
    return text_of(value, column)
