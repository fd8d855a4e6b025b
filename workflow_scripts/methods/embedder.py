"""What methods that make embeddings of their own are given, and what they return.

Such a method is a module with

    open_embedder(reader, fitted, for_tests, **settings) -> Embedder

where `reader` is the LM (None for a method of texts), `fitted` what `fit` returned (empty without one), and
`for_tests` tells whether tests are embedded or training examples. One that has to measure something first has also

    fit(reader, warmup, **settings) -> tensors by name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.methods.example_gradients import mlp_layers
from workflow_scripts.methods.projected_gradients import ProjectedGradients
from workflow_scripts.study.sections import Finetuning


@dataclass(frozen=True)
class LanguageModelReader:
    """The LM of a method, and how it is to read: most tokens in one forward pass, and its precision."""

    lm: PreTrainedModel
    batch_tokens: int
    precision: str


@dataclass(frozen=True)
class WarmupExamples:
    """What a method is fitted on.

    Parameters
    ----------
    examples: the examples that the LM is warmed up on, in random order.
    measured: how many of the first of them suffice for second moments.
    finetuning: that section of the config, as the warm-up has it.
    seed: of all random choices.
    """

    examples: Sequence[TokenizedExample]
    measured: int
    finetuning: Finetuning
    seed: int


@dataclass(frozen=True)
class Embedder:
    """Embeddings, on demand: their size, and a function from examples or texts to float32 [rows, dimension]."""

    dimension: int
    embed: Callable[[Sequence[Any]], np.ndarray]


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Return `vectors` divided by their lengths, so that inner products are cosines; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def mlp_gradients(reader: LanguageModelReader, fitted: Mapping[str, torch.Tensor]) -> ProjectedGradients:
    """Return the gradients of the MLP layers, projected and preconditioned as `fitted` says."""
    return ProjectedGradients(
        reader.lm, mlp_layers(reader.lm), fitted, batch_tokens=reader.batch_tokens, precision=reader.precision
    )
