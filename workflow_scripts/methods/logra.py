"""LoGra (Choe et al. 2024): influence functions on gradients projected layer by layer, of unit length.

The length of a vector is the root of its example's influence on itself, so scores are influences relative to both
examples' own, and an example of large gradients is not helpful to all tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.methods.embedder import (
    Embedder,
    LanguageModelReader,
    WarmupExamples,
    mlp_gradients,
    unit_length,
)
from workflow_scripts.methods.example_gradients import mlp_layers
from workflow_scripts.methods.projected_gradients import (
    Tensors,
    fisher_preconditioner,
    kronecker_preconditioner,
    layer_moments,
    principal_projections,
    random_projections,
)


def fit(
    reader: LanguageModelReader,
    warmup: WarmupExamples,
    *,
    rank: int,
    start: Literal["pca", "random"],
    hessian: Literal["kfac", "fisher"],
) -> Tensors:
    """Return projections and a preconditioner, as tensors by name (`methods.projected_gradients`).

    Parameters
    ----------
    reader: the LM.
    warmup: the examples that second moments are measured on.
    rank: each layer's gradient is projected to `rank` x `rank` numbers.
    start: `pca` for projections on the axes of largest second moment, `random` for random ones.
    hessian: `kfac` for Kronecker factors, `fisher` for the empirical Fisher matrix of each layer's projected gradients.
    """
    layers, examples = mlp_layers(reader.lm), warmup.examples[: warmup.measured]
    moments: Tensors = {}
    if start == "random":
        projections = random_projections(layers, rank, warmup.seed)
        if hessian == "kfac":
            moments = _moments(reader, examples, projections)
    else:
        moments = _moments(reader, examples, None)
        projections = principal_projections(moments, rank, reader.lm.device)
        moments = {name: projections[name] @ moment @ projections[name].T for name, moment in moments.items()}
    if hessian == "kfac":
        return kronecker_preconditioner(layers, projections, moments)
    return projections | fisher_preconditioner(mlp_gradients(reader, projections), examples, by_layer=True)


def open_embedder(reader: LanguageModelReader, fitted: Tensors, for_tests: bool, **_: object) -> Embedder:
    """Return an embedder of projected and preconditioned gradients of unit length.

    Parameters
    ----------
    reader: the LM.
    fitted: result of `fit`.
    for_tests: not used: tests are embedded as training examples are.
    """
    gradients = mlp_gradients(reader, fitted)
    return Embedder(gradients.dimension, lambda examples: unit_length(gradients.embed(examples)))


def _moments(reader: LanguageModelReader, examples: Sequence[TokenizedExample], projections: Tensors | None) -> Tensors:
    return layer_moments(
        reader.lm,
        mlp_layers(reader.lm),
        examples,
        projections,
        batch_tokens=reader.batch_tokens,
        precision=reader.precision,
    )
