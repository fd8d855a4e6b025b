"""The module of a method by its name; its libraries are imported only now."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workflow_scripts.methods.text_scorer import TextScorer


def load_text_method(name: str) -> Callable[..., TextScorer]:
    """Return `open_scorer` of a method that scores texts."""
    return load_module(name).open_scorer


def load_module(name: str) -> ModuleType:
    """Return the module of a method."""
    return importlib.import_module(f"workflow_scripts.methods.{name}")
