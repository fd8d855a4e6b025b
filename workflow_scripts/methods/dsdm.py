"""DsDm (Engstrom et al. 2024): TRAK at one checkpoint, with the empirical Fisher matrix over all layers.

TRAK's factor for how wrong the model is on a training example is part of the gradient already, since it is the
gradient of the loss.
"""

from __future__ import annotations

from workflow_scripts.methods.embedder import Embedder, LanguageModelReader, WarmupExamples, mlp_gradients
from workflow_scripts.methods.example_gradients import mlp_layers
from workflow_scripts.methods.projected_gradients import Tensors, fisher_preconditioner, random_projections


def fit(reader: LanguageModelReader, warmup: WarmupExamples, *, rank: int) -> Tensors:
    """Return random projections and the Cholesky factor of the Fisher matrix, by name (`methods.projected_gradients`).

    Parameters
    ----------
    reader: the LM.
    warmup: the examples that the Fisher matrix is measured on.
    rank: each layer's gradient is projected to `rank` x `rank` numbers.
    """
    projections = random_projections(mlp_layers(reader.lm), rank, warmup.seed)
    examples = warmup.examples[: warmup.measured]
    return projections | fisher_preconditioner(mlp_gradients(reader, projections), examples, by_layer=False)


def open_embedder(reader: LanguageModelReader, fitted: Tensors, for_tests: bool, *, rank: int) -> Embedder:
    """Return an embedder of projected gradients, whitened by the Fisher matrix; parameters as in `methods.embedder`."""
    gradients = mlp_gradients(reader, fitted)
    return Embedder(gradients.dimension, gradients.embed)
