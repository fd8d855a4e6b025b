"""Texts of a corpus on a page of Markdown."""

from __future__ import annotations

from workflow_scripts.core.progress import one_line

MOST_CHARACTERS = 400


def markdown_text(text: str) -> str:
    """Return a text of a corpus as Markdown that shows it, in one line, and does nothing else."""
    line = one_line(text, MOST_CHARACTERS)
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()<>#+!|~$&" else letter for letter in line)
