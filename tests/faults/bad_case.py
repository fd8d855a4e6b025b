"""One bad input: what is tried, and the message that it gives."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workflow_scripts.core.errors import StudyError


@dataclass(frozen=True)
class BadInput:
    """A bad input: `try_it` runs in a folder of its own and must raise `StudyError`."""

    section: str
    what: str
    try_it: Callable[[], object]

    def message(self) -> str:
        """Return what the user sees, with the working folder left out."""
        with (
            tempfile.TemporaryDirectory() as folder,
            working_in(Path(folder)),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            try:
                self.try_it()
            except StudyError as error:
                message = str(error).replace(os.path.realpath(folder), "...").replace(folder, "...")
                # The hub's address differs between sites.
                return re.sub(r"https://[^\s']+", "https://...", message)
        raise AssertionError(f"{self.what}: nothing was said")


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Work in `folder` for the time of the block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def section_of(name: str, cases: dict[str, Callable[[], object]]) -> list[BadInput]:
    """Return the bad inputs of a section of the page."""
    return [BadInput(name, what, try_it) for what, try_it in cases.items()]
