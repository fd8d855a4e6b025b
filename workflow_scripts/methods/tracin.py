"""TracIn at one checkpoint (Pruthi et al. 2020): the cosine of projected gradients of the MLP layers."""

from __future__ import annotations

from workflow_scripts.methods.embedder import (
    Embedder,
    LanguageModelReader,
    WarmupExamples,
    mlp_gradients,
    unit_length,
)
from workflow_scripts.methods.example_gradients import mlp_layers
from workflow_scripts.methods.projected_gradients import Tensors, random_projections


def fit(reader: LanguageModelReader, warmup: WarmupExamples, *, rank: int) -> Tensors:
    """Return random projections, by name (`methods.projected_gradients`).

    Parameters
    ----------
    reader: the LM.
    warmup: gives the seed.
    rank: each layer's gradient is projected to `rank` x `rank` numbers.
    """
    return random_projections(mlp_layers(reader.lm), rank, warmup.seed)


def open_embedder(reader: LanguageModelReader, fitted: Tensors, for_tests: bool, *, rank: int) -> Embedder:
    """Return an embedder of projected gradients of unit length; parameters as in `methods.embedder`."""
    gradients = mlp_gradients(reader, fitted)
    return Embedder(gradients.dimension, lambda examples: unit_length(gradients.embed(examples)))
