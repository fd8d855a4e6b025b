"""DsDm (Engstrom et al. 2024): TRAK at one checkpoint, with the empirical Fisher matrix over all layers.

TRAK's factor for how wrong the model is on a training example stands in its gradient already, since the gradient is
that of the loss.
"""

from __future__ import annotations

from workflow_scripts.methods.embedder import Embedder, LanguageModelReader, WarmupExamples, mlp_gradients
from workflow_scripts.methods.example_gradients import mlp_layers
from workflow_scripts.methods.projected_gradients import Tensors, fisher_preconditioner, random_projections


def fit(reader: LanguageModelReader, warmup: WarmupExamples, *, rank: int) -> Tensors:
    """Return random projections to `rank` x `rank` numbers a layer, and the Fisher matrix of all those numbers."""
    projections = random_projections(mlp_layers(reader.lm), rank, warmup.seed)
    examples = warmup.examples[: warmup.measured]
    return projections | fisher_preconditioner(mlp_gradients(reader, projections), examples, by_layer=False)


def open_embedder(reader: LanguageModelReader, fitted: Tensors, for_tests: bool, *, rank: int) -> Embedder:
    """Return an embedder of projected gradients, whitened by the Fisher matrix."""
    gradients = mlp_gradients(reader, fitted)
    return Embedder(gradients.dimension, gradients.embed)
