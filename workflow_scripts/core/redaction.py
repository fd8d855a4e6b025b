"""Secrets kept out of everything that is written: the screen, logs, messages and the provenance."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, quote_plus

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
HIDDEN = "***"
# What is shorter is no token, and stands in many a word.
SHORTEST_TOKEN = 8


def redacted(text: str) -> str:
    """Return a text with `***` in the place of the hub's tokens, however they are escaped or quoted.

    The tokens are those of the environment and the one that `hf auth login` saved.
    """
    for form in _forms():
        text = text.replace(form, HIDDEN)
    return text


def redact_output() -> None:
    """Keep tokens out of the tracebacks and the log records of this process."""
    if sys.excepthook is _print_traceback:
        return
    make_record = logging.getLogRecordFactory()

    def record(*arguments: object, **options: object) -> logging.LogRecord:
        made = make_record(*arguments, **options)
        # Where the arguments don't fit, the handler complains, not the caller.
        with contextlib.suppress(TypeError, ValueError, KeyError):
            made.msg, made.args = redacted(made.getMessage()), None
        return made

    logging.setLogRecordFactory(record)
    sys.excepthook = _print_traceback


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _forms() -> list[str]:
    """Return the ways in which tokens may be written, longest first."""
    forms: set[str] = set()
    for token in _tokens():
        # Where it has line ends within, each line may be written by itself.
        for part in {token, *token.split()}:
            escaped = (json.dumps(part)[1:-1], repr(part)[1:-1], repr(part.encode(errors="replace"))[2:-1])
            forms |= {part, *escaped, quote(part, safe="", errors="replace"), quote_plus(part, errors="replace")}
    return sorted((form for form in forms if len(form) >= SHORTEST_TOKEN), key=len, reverse=True)


def _tokens() -> list[str]:
    tokens = [os.environ.get(name, "") for name in TOKENS]
    # Who hasn't loaded the hub's client has not read what a login saved.
    if constants := sys.modules.get("huggingface_hub.constants"):
        with contextlib.suppress(OSError, ValueError):
            tokens.append(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8"))
    return [token.strip() for token in tokens]
