"""Attribution methods, by the name that a study's `scoring.methods` and every table use.

A method either reads the embeddings of an encoder, or scores texts by itself: then a module of its name in
this package has `open_scorer(train: Texts, test: Texts, seed: int) -> TextScorer`. To add one, write that
module and one line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from workflow_scripts.methods.texts import TextScorer


@dataclass(frozen=True)
class Method:
    """What a rule or a stage has to know of a method before it runs.

    Parameters
    ----------
    poolings: how example scores become group scores; each is a row of the LDS table.
    encoder: whose embeddings are read; None for methods that score texts by themselves.
    """

    poolings: tuple[Literal["attention", "mean", "sum"], ...]
    encoder: Literal["trained", "untrained"] | None = None


METHODS = {
    "airrep": Method(("attention",), encoder="trained"),
    "airrep_mean": Method(("mean",), encoder="trained"),
    "untrained": Method(("attention", "mean"), encoder="untrained"),
    "tfidf": Method(("mean",)),
    "bm25": Method(("mean",)),
    "length": Method(("mean",)),
    "random": Method(("mean",)),
}


def load_text_method(name: str) -> Callable[..., TextScorer]:
    """Return `open_scorer` of a method that scores texts; its libraries are imported only now."""
    return importlib.import_module(f"{__name__}.{name}").open_scorer
