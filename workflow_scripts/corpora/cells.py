"""Convert cells of a corpus row to text, or say why they can't be."""

from __future__ import annotations

import math
import reprlib
from decimal import Decimal

from workflow_scripts.core.errors import UnusableRowError
from workflow_scripts.corpora.json_rows import RepeatedKey

_KINDS = {
    type(None): "null",
    bool: "true or false",
    str: "text",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bytes: "raw bytes",
    RepeatedKey: "given twice",
}


def shown(value: object) -> str:
    """Return `value` in quotes, short and encodable, for a message."""
    return reprlib.repr(value)


def kind_of(value: object) -> str:
    """Return what `value` is, in words for a message."""
    return _KINDS.get(type(value), f"of type {type(value).__name__}")


def text_of(value: object, column: str) -> str:
    """Return the text of a cell, unchanged; a number becomes the shortest text that reads back as the same number.

    A boolean isn't text: whether it means `true`, `True` or `yes` would be a guess.

    Parameters
    ----------
    value: content of the cell.
    column: name of its column, for the message.

    Raises
    ------
    UnusableRowError: the cell is neither text nor a finite number, or not valid Unicode.
    """
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UnusableRowError(f"{shown(column)} is not a finite number")
        return str(value)
    if not isinstance(value, str):
        raise UnusableRowError(f"{shown(column)} is {kind_of(value)}: it must be one text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnusableRowError(
            f"{shown(column)} is not valid Unicode (half a surrogate pair, or bytes that are not UTF-8)"
        ) from None
    return value


def filled_text_of(value: object, column: str) -> str:
    """Return the text of a cell as `text_of` does; parameters as there.

    Raises
    ------
    UnusableRowError: as in `text_of`, or the text is empty or white space only.
    """
    text = text_of(value, column)
    if not text.strip():
        raise UnusableRowError(f"{shown(column)} is {'blank' if text else 'empty'}")
    return text
