"""The registry of attribution methods, by the name that a study's `scoring.methods` and every table use.

There are three kinds. One reads the embeddings of the attribution encoder. One scores texts: the module of its name in
`workflow_scripts/methods/` has `open_scorer(train: Texts, test: Texts, seed: int) -> TextScorer`. One computes
embeddings of its own: its module has `open_embedder(...) -> Embedder` and, where something has to be measured first,
`fit(...)`; see `methods.embedder`. Embeddings that are too large to be stored are computed while they are scored. To
add a method, write its module and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from workflow_scripts.study.choices import Pooling


@dataclass(frozen=True)
class EmbeddingSpec:
    """How a method computes embeddings of its own.

    Parameters
    ----------
    module: name of its module in `workflow_scripts/methods/`, with `open_embedder` and, if `fitted`, `fit`.
    settings: keyword arguments of both functions.
    language_model: which LM reads the examples: the base LM, the warmed-up one, or None if the method reads texts.
    fitted: whether something is measured on the warm-up's examples before anything is embedded.
    by_role: whether test examples are embedded differently from training examples.
    fitted_as: the method whose fitted file it reads; None for one of its own.
    stored: whether the embeddings are written to files; if not, each job that scores computes them, by the LM.
    binary: whether those of training examples are stored as one bit per number, see `embeddings.binary`; those of
        tests never are.
    """

    module: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    language_model: Literal["base", "warm"] | None = None
    fitted: bool = False
    by_role: bool = False
    fitted_as: str | None = None
    stored: bool = True
    binary: bool = False

    def __post_init__(self) -> None:
        if self.binary and not self.by_role:
            raise ValueError("binary: tests, which keep their numbers, need embeddings of their own; set by_role")


@dataclass(frozen=True)
class Method:
    """What rules and stages need to know about a method before it runs.

    Parameters
    ----------
    poolings: how example scores become group scores; each is a row of the LDS table. `chosen` becomes `attention` in
        a study that can't choose, see `StudyPlan.poolings_of`.
    encoder: the attribution encoder whose embeddings it reads: `trained` or `untrained`, `trained@<variant>` or
        `untrained@<variant>` for a variant, None for a method that reads none.
    own: how it computes embeddings of its own; None if it doesn't.
    """

    poolings: tuple[Pooling, ...]
    encoder: str | None = None
    own: EmbeddingSpec | None = None

    @property
    def has_own_fit(self) -> bool:
        """Whether something is measured for this method, and not for another one that it shares it with."""
        return self.own is not None and self.own.fitted and self.own.fitted_as is None

    @property
    def is_unstored(self) -> bool:
        """Whether its embeddings are computed by the jobs that score them."""
        return self.own is not None and not self.own.stored


def _of_gradients(
    module: str, by_role: bool = False, language_model: Literal["base", "warm"] = "warm", **settings: Any
) -> Method:
    return Method(("mean",), own=EmbeddingSpec(module, settings, language_model, fitted=True, by_role=by_role))


def _ekfac(dimension: int) -> Method:
    own = EmbeddingSpec("ekfac", {"dimension": dimension}, "warm", fitted=True, fitted_as="ekfac")
    return Method(("mean",), own=own)


def _binary_ekfac(dimension: int) -> Method:
    spec = _ekfac(dimension).own
    assert spec is not None
    settings = {**spec.settings, "rotated": True}
    return Method(("mean",), own=replace(spec, settings=settings, by_role=True, binary=True))


# Suffix of the folder of a method's embeddings of tests, where they are computed differently.
OF_TESTS = "-tests"

METHODS = {
    "airrep": Method(("attention",), encoder="trained"),
    "airrep_mean": Method(("mean",), encoder="trained"),
    "airrep_signed": Method(("signed",), encoder="trained"),
    "untrained": Method(("chosen", "mean"), encoder="untrained"),
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
    "ekfac": Method(("mean",), own=EmbeddingSpec("ekfac", language_model="warm", fitted=True, stored=False)),
    "ekfac_16384": _ekfac(16384),
    "ekfac_8192": _ekfac(8192),
    "ekfac_4096": _ekfac(4096),
    "ekfac_2048": _ekfac(2048),
    "ekfac_65536_binary": _binary_ekfac(65536),
    "ekfac_32768_binary": _binary_ekfac(32768),
    "ekfac_16384_binary": _binary_ekfac(16384),
    "forward": _of_gradients("forward", rank=64, hidden_rank=128),
    "dsdm": _of_gradients("dsdm", rank=16),
    "less": _of_gradients(
        "less", by_role=True, language_model="base", lora_rank=128, lora_alpha=512, epochs=4, dimension=8192
    ),
}


def sentence_encoder_method(model: str) -> Method:
    """Return the method that compares the embeddings of a sentence-transformers model."""
    return Method(("mean",), own=EmbeddingSpec("sentence_encoder", {"model": model}))


def find_method(name: str) -> Method:
    """Return the method of a name; `<method>@<variant>` is the method with the encoder of that variant.

    Raises
    ------
    KeyError: there is no such method.
    """
    method = METHODS[name.partition("@")[0]]
    variant = read_encoder_variant(name)
    return replace(method, encoder=f"{method.encoder}@{variant}") if variant else method


def read_encoder_variant(name: str) -> str | None:
    """Return the encoder variant in a method's name; None if there is none."""
    return name.partition("@")[2] or None


def methods_of(row: str) -> list[str]:
    """Return the methods of a row of the LDS table: both of a blend such as `airrep+ekfac`, or the one of any other."""
    return row.split("+")
