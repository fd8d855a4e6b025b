"""The interface of methods that compute embeddings of their own.

Such a method is a module with

    open_embedder(reader, fitted, for_tests, **settings) -> Embedder

where `reader` is the LM (None for a method of texts), `fitted` the result of `fit` (empty without one), and `for_tests`
whether tests or training examples are embedded. One that has to measure something first also has

    fit(reader, warmup, **settings) -> tensors by name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from workflow_scripts.language_model.losses import load_language_model
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.methods.example_gradients import mlp_layers
from workflow_scripts.methods.loading import load_module
from workflow_scripts.methods.projected_gradients import ProjectedGradients
from workflow_scripts.models.transformers_import import PreTrainedModel
from workflow_scripts.study.sections import Finetuning


@dataclass(frozen=True)
class LanguageModelReader:
    """The LM of a method, and how its forward passes are run.

    Parameters
    ----------
    lm: the LM, on the job's device.
    batch_tokens: most tokens in one forward pass.
    precision: `float32` or `bfloat16`, that of the forward passes.
    """

    lm: PreTrainedModel
    batch_tokens: int
    precision: str


@dataclass(frozen=True)
class WarmupExamples:
    """The examples that a method is fitted on, and how.

    Parameters
    ----------
    examples: the examples that the LM is warmed up on, in random order.
    measured: how many of them, from the first on, second moments are measured on.
    finetuning: the section `finetuning` of the config, with the changes of the warm-up.
    seed: seed of all random choices.
    """

    examples: Sequence[TokenizedExample]
    measured: int
    finetuning: Finetuning
    seed: int


@dataclass(frozen=True)
class Embedder:
    """Computes embeddings.

    Parameters
    ----------
    dimension: size of an embedding.
    embed: function from tokenised examples, or from texts for a method of texts, to float32 [rows, dimension].
    """

    dimension: int
    embed: Callable[[Sequence[Any]], np.ndarray]


def load_embedder(
    module: str,
    settings: Mapping[str, Any],
    *,
    fitted: Path | None,
    language_model: Path | None,
    lm_source: Mapping[str, Any] | None,
    for_tests: bool,
    batch_tokens: int,
    precision: str,
) -> Embedder:
    """Return the embedder of a method, with the LM and the fitted file that it needs.

    Parameters
    ----------
    module: name of the method's module, see `study.methods.EmbeddingSpec`.
    settings: keyword arguments of its `open_embedder`.
    fitted: file that `fit_method` wrote; None for a method that isn't fitted.
    language_model: folder of the LM, where the workflow made or fetched it.
    lm_source: `model`, `revision` and `trust_remote_code` of the LM; None for a method of texts.
    for_tests: whether tests are embedded, for a method that embeds them differently from training examples.
    batch_tokens: most tokens in one forward pass of the LM.
    precision: `float32` or `bfloat16`, that of its forward passes.

    Raises
    ------
    StudyError: a model or file can't be read, or the method can't read the LM.
    """
    reader = None
    if lm_source:
        source = {**lm_source, "model": language_model or lm_source["model"]}
        reader = LanguageModelReader(load_language_model(**source, precision=precision), batch_tokens, precision)
    tensors = load_file(fitted) if fitted else {}
    embedder: Embedder = load_module(module).open_embedder(reader, tensors, for_tests, **settings)
    return embedder


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Return vectors divided by their lengths, so that inner products are cosines; zero stays zero.

    Parameters
    ----------
    vectors: float [rows, dimension].
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def mlp_gradients(reader: LanguageModelReader, fitted: Mapping[str, torch.Tensor]) -> ProjectedGradients:
    """Return the projected and preconditioned gradients of an LM's MLP layers.

    Parameters
    ----------
    reader: the LM.
    fitted: projections and preconditioners by name, see `methods.projected_gradients`.

    Raises
    ------
    StudyError: the LM has no MLP layers.
    """
    return ProjectedGradients(
        reader.lm, mlp_layers(reader.lm), fitted, batch_tokens=reader.batch_tokens, precision=reader.precision
    )
