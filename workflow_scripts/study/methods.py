"""Attribution methods, by the name that a study's `scoring.methods` and every table use.

There are three kinds. One reads the embeddings of the attribution encoder. One scores texts by itself: a module
of its name in `workflow_scripts/methods/` has `open_scorer(train: Texts, test: Texts, seed: int) -> TextScorer`. One
makes embeddings of its own: its module has `open_embedder(...) -> Embedder` and, where something has to be measured
first, `fit(...)`; see `methods.embedder`. To add one, write the module and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from workflow_scripts.study.choices import Pooling


@dataclass(frozen=True)
class EmbeddingSpec:
    """How a method makes embeddings of its own.

    Parameters
    ----------
    module: of `workflow_scripts/methods/`, with `open_embedder` and, if `fitted`, `fit`.
    settings: what both are called with.
    language_model: which LM reads the examples: the base LM, the warmed-up one, or None for a method of texts.
    fitted: whether something is measured on the warm-up's examples before anything is embedded.
    by_role: whether a test example is embedded otherwise than a training example.
    """

    module: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    language_model: Literal["base", "warm"] | None = None
    fitted: bool = False
    by_role: bool = False


@dataclass(frozen=True)
class Method:
    """What a rule or a stage has to know of a method before it runs.

    Parameters
    ----------
    poolings: how example scores become group scores; each is a row of the LDS table.
    encoder: which attribution encoder's embeddings are read, if any: `trained` or `untrained`, and of a variant
        `trained@<variant>`.
    own: how embeddings of its own are made, if it does that.
    """

    poolings: tuple[Pooling, ...]
    encoder: str | None = None
    own: EmbeddingSpec | None = None

    @property
    def is_fitted(self) -> bool:
        return self.own is not None and self.own.fitted


def _of_gradients(
    module: str, by_role: bool = False, language_model: Literal["base", "warm"] = "warm", **settings: Any
) -> Method:
    return Method(("mean",), own=EmbeddingSpec(module, settings, language_model, fitted=True, by_role=by_role))


METHODS = {
    "airrep": Method(("attention",), encoder="trained"),
    "airrep_mean": Method(("mean",), encoder="trained"),
    "airrep_signed": Method(("signed",), encoder="trained"),
    "untrained": Method(("attention", "mean"), encoder="untrained"),
    "tfidf": Method(("mean",)),
    "bm25": Method(("mean",)),
    "length": Method(("mean",)),
    "random": Method(("mean",)),
    "dsir": Method(("mean",)),
    "rds": Method(("mean",), own=EmbeddingSpec("rds", language_model="base")),
    "tracin": _of_gradients("tracin", rank=16),
    "logra_4": _of_gradients("logra", rank=4, start="pca", hessian="kfac"),
    "logra_8": _of_gradients("logra", rank=8, start="pca", hessian="kfac"),
    "logra_16": _of_gradients("logra", rank=16, start="pca", hessian="kfac"),
    "logra_16_fisher": _of_gradients("logra", rank=16, start="pca", hessian="fisher"),
    "logra_16_random": _of_gradients("logra", rank=16, start="random", hessian="kfac"),
    "dsdm": _of_gradients("dsdm", rank=16),
    "less": _of_gradients(
        "less", by_role=True, language_model="base", lora_rank=128, lora_alpha=512, epochs=4, dimension=8192
    ),
}


def sentence_encoder_method(model: str) -> Method:
    """Return the method that compares the embeddings of a sentence-transformers model."""
    return Method(("mean",), own=EmbeddingSpec("sentence_encoder", {"model": model}))


def find_method(name: str) -> Method:
    """Return the method of a name; `<method>@<variant>` is the method with another encoder."""
    method = METHODS[name.partition("@")[0]]
    variant = read_encoder_variant(name)
    return replace(method, encoder=f"{method.encoder}@{variant}") if variant else method


def read_encoder_variant(name: str) -> str | None:
    """Return the encoder variant in a method's name, if there is one."""
    return name.partition("@")[2] or None
