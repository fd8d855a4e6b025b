"""Import the module of a method by its name, so that only the methods in use load their libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workflow_scripts.methods.text_scorer import TextScorer


def load_text_method(name: str) -> Callable[..., TextScorer]:
    """Return the function `open_scorer` of a method that scores texts, see `methods.text_scorer`."""
    return load_module(name).open_scorer


def load_module(name: str) -> ModuleType:
    """Return the module `workflow_scripts.methods.<name>`."""
    return importlib.import_module(f"workflow_scripts.methods.{name}")
