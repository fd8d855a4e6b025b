"""EK-FAC influence functions (Grosse et al. 2023; George et al. 2018) on all linear layers of an LM's blocks.

The Hessian of a layer is approximated by the empirical Fisher matrix, taken as diagonal in the Kronecker product of the
eigenvectors of two second moments, of the layer's inputs and of its output gradients. What stands on that diagonal is
measured: the mean square of the examples' gradients in this basis, plus a tenth of its mean.

A whitened gradient has as many numbers as the layers have weights. It is used as it is, or as a random sketch, which
may also be rotated for binary quantization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import torch
from torch import nn

from workflow_scripts.core.seeds import generator
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.methods.embedder import Embedder, LanguageModelReader, WarmupExamples
from workflow_scripts.methods.example_gradients import ExampleGradients, block_layers, outer_sums
from workflow_scripts.methods.projected_gradients import (
    ProjectedGradients,
    Tensors,
    batched,
    inverse_root,
    layer_moments,
    principal_projections,
)

# Rows that are rotated at a time.
ROWS_AT_ONCE = 64


def fit(reader: LanguageModelReader, warmup: WarmupExamples, **_: object) -> Tensors:
    """Return the eigenvectors and corrected eigenvalues of every layer, as tensors by name.

    Parameters
    ----------
    reader: the LM.
    warmup: the examples that second moments are measured on, with their true labels.

    Returns
    -------
    `<layer>.inputs` [in, in] and `<layer>.outputs` [out, out], eigenvectors as rows; `<layer>.scale` [out, in], the
    inverse roots of the damped eigenvalues; and `seed`, that of the sketches.
    """
    layers, examples = block_layers(reader.lm), warmup.examples[: warmup.measured]
    moments = layer_moments(
        reader.lm, layers, examples, None, batch_tokens=reader.batch_tokens, precision=reader.precision
    )
    # Some LMs have layers that no token passes, as those whose keys and values another layer gives them.
    layers = {name: layer for name, layer in layers.items() if f"{name}.outputs" in moments}
    widest = max(len(moment) for moment in moments.values())
    tensors = principal_projections(moments, widest, reader.lm.device)
    for name, squares in _mean_squares(reader, layers, examples, tensors).items():
        tensors[f"{name}.scale"] = inverse_root(squares)
    return {**tensors, "seed": torch.tensor(warmup.seed)}


def _mean_squares(
    reader: LanguageModelReader, layers: Mapping[str, nn.Module], examples: Sequence[TokenizedExample], axes: Tensors
) -> Tensors:
    """Return the mean over examples of the squared gradient of each layer, along `axes`, float32 [out, in]."""
    axes = {name: tensor.to(reader.lm.device) for name, tensor in axes.items()}
    sums: Tensors = {}

    def take(name: str, _: torch.Tensor, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        rotated = outer_sums(gradients @ axes[f"{name}.outputs"].T, inputs @ axes[f"{name}.inputs"].T)
        squares = rotated.square().sum(0)
        sums[name] = sums[name] + squares if name in sums else squares

    with closing(ExampleGradients(reader.lm, layers, reader.precision)) as gradients:
        for chosen in batched(examples, reader.batch_tokens):
            gradients.run([examples[i] for i in chosen], take)
    return {name: squares.cpu() / len(examples) for name, squares in sums.items()}


def open_embedder(
    reader: LanguageModelReader,
    fitted: Tensors,
    for_tests: bool,
    *,
    dimension: int | None = None,
    rotated: bool = False,
) -> Embedder:
    """Return an embedder of whitened gradients: inner products are EK-FAC's influence scores.

    Parameters
    ----------
    reader: the LM.
    fitted: result of `fit`.
    for_tests: not used: tests are embedded as training examples are.
    dimension: size of the random sketch; None for whitened gradients in full.
    rotated: whether sketches are rotated, so that a few large entries are spread over all numbers. Inner products stay
        the same. The dimension must be a power of 2.
    """
    tensors = dict(fitted)
    seed = int(tensors.pop("seed"))
    layers = {name: layer for name, layer in block_layers(reader.lm).items() if f"{name}.scale" in tensors}
    open_gradients = partial(
        ProjectedGradients, reader.lm, layers, tensors, batch_tokens=reader.batch_tokens, precision=reader.precision
    )
    if dimension is None:
        gradients = open_gradients()
        return Embedder(gradients.dimension, gradients.embed)
    buckets = {}
    for name in layers:
        scale = tensors[f"{name}.scale"]
        places, signs = sketch_buckets(scale.numel(), dimension, seed, name)
        buckets[name] = places.to(reader.lm.device)
        tensors[f"{name}.scale"] = scale * signs.view_as(scale)

    def sketch(name: str, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.new_zeros(len(numbers), dimension).index_add_(1, buckets[name], numbers)

    embed = open_gradients(sketch=sketch, dimension=dimension).embed
    if not rotated:
        return Embedder(dimension, embed)
    between = generator(seed, "rotation").choice(np.array([-1, 1], np.float32), dimension)
    return Embedder(dimension, lambda examples: rotate(embed(examples), between))


def rotate(vectors: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return H D H x for each vector x, with the orthonormal Hadamard matrix H and the diagonal D of `signs`.

    The entries of a sketch have random signs, so this is close to a random rotation (the fast Johnson-Lindenstrauss
    transform of Ailon and Chazelle 2009, twice: after once, the signs of all numbers follow an entry that dominates).

    Parameters
    ----------
    vectors: float32 [rows, dimension], whose dimension is a power of 2; they are overwritten by the result.
    signs: float32 [dimension], random ones.
    """
    # The matrix is the Kronecker product of two smaller ones.
    left = 1 << (vectors.shape[1].bit_length() - 1) // 2
    sides = [_hadamard(size) for size in (left, vectors.shape[1] // left)]
    between = torch.from_numpy(signs).view(left, -1)
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        rows = torch.from_numpy(vectors[first : first + ROWS_AT_ONCE]).unflatten(1, (left, -1))
        once = sides[0] @ rows @ sides[1]
        rows.copy_(sides[0] @ (once * between) @ sides[1])
    return vectors


def _hadamard(size: int) -> torch.Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / 2**0.5
    return matrix


def sketch_buckets(numbers: int, dimension: int, seed: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a count sketch: which bucket each number of a long vector is added to, and its sign.

    Each run of `dimension` numbers fills every bucket once, in a random order, so no two of them meet. Inner products
    of sketches are unbiased estimates of those of the vectors; as measured, with the error of a dense Gaussian
    projection of that size (docs/log.md).

    Parameters
    ----------
    numbers: length of the vector.
    dimension: number of buckets.
    seed: seed of the random choices.
    name: also decides them, so that the layers of an LM get choices of their own.

    Returns
    -------
    int64 [numbers] and float32 [numbers].
    """
    rng = generator(seed, "sketch", name)
    runs = np.tile(np.arange(dimension), (-(-numbers // dimension), 1))
    buckets = rng.permuted(runs, axis=1).reshape(-1)[:numbers]
    signs = rng.choice(np.array([-1, 1], np.float32), numbers)
    return torch.from_numpy(buckets), torch.from_numpy(signs)
