"""Strict JSON: errors are explained in plain words, and of a repeated key no value is chosen by a guess."""

from __future__ import annotations

import json

from workflow_scripts.core.errors import UnusableRowError


class RepeatedKey:
    """Replaces the value of a key that a JSON object has more than once."""


def object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the names and values as a dict; a name given twice has a `RepeatedKey` as value."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                values[key] = RepeatedKey()
            seen.add(key)
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=object_of)
_PLAIN_WORDS = {
    "Extra data": "more text after the end of the value",
    "Expecting value": "a value is missing",
    "Expecting ',' delimiter": "a comma is missing",
    "Expecting ':' delimiter": "a colon is missing",
    "Expecting property name enclosed in double quotes": "a name in double quotes is missing",
    "Illegal trailing comma before end of object": "a comma before the end of the object",
    "Invalid control character at": "a raw control character",
    "Unterminated string starting at": "a string without end that begins",
}


def decode_json(text: str) -> object:
    """Return the one JSON value in a text; objects are those of `object_of`.

    Raises
    ------
    UnusableRowError: `text` is not one JSON value.
    """
    value, end = decode_json_at(text, skip_blanks(text, 0))
    end = skip_blanks(text, end)
    if end < len(text):
        raise UnusableRowError(_reason(text, json.JSONDecodeError("Extra data", text, end)))
    return value


def decode_json_at(text: str, start: int) -> tuple[object, int]:
    """Return the JSON value that begins at character `start`, and where it ends.

    Raises
    ------
    UnusableRowError: no JSON value begins there.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise UnusableRowError("not JSON: brackets are nested too deeply") from None
    except json.JSONDecodeError as error:
        raise UnusableRowError(_reason(text, error)) from None
    except ValueError as error:
        # Python refuses integers of thousands of digits: json passes that on as a bare ValueError.
        raise UnusableRowError(f"not JSON: {error}") from None


def skip_blanks(text: str, start: int) -> int:
    """Return the position of the first character from `start` that is no JSON white space."""
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start


def _reason(text: str, error: json.JSONDecodeError) -> str:
    fault = _PLAIN_WORDS.get(error.msg, error.msg)
    hint = " (it has NUL characters: damaged, or UTF-16)" if "\0" in text else ""
    return f"not JSON: {fault} at character {error.pos + 1}{hint}"
