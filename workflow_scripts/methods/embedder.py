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
from typing import Any

import numpy as np
import torch

from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.methods.example_gradients import mlp_layers
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
