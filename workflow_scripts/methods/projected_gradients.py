"""Per-example gradients of an LM's linear layers as vectors: projected layer by layer, and preconditioned.

A layer's gradient G [out, in] becomes P_out G P_in^T, a matrix of at most rank x rank numbers (LoGra, section 3).
Preconditioners are split between both sides of the inner product: with H = L L^T, the inner product of L^-1 g and
L^-1 g' is g^T H^-1 g', the influence function. So scores are inner products of stored vectors, as for an encoder.

Everything that is measured is a dict of tensors, which `safetensors` can store: for each layer
`<layer>.inputs` [k_in, in] and `<layer>.outputs` [k_out, out]; for Kronecker factors `<layer>.scale` [k_out, k_in];
for Fisher matrices `<layer>.cholesky`, or `cholesky` for one over all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import nn

from workflow_scripts.core.seeds import derive_seed
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.methods.example_gradients import ExampleGradients, outer_sums
from workflow_scripts.models.device import to_host
from workflow_scripts.models.packing import token_budget
from workflow_scripts.models.transformers_import import Conv1D, PreTrainedModel

Tensors = dict[str, torch.Tensor]
Correction = Callable[[str, torch.Tensor], torch.Tensor]
Sketch = Callable[[str, torch.Tensor], torch.Tensor]
# Of the mean eigenvalue, as is usual for influence functions (Grosse et al. 2023, LoGra).
DAMPING = 0.1


def random_projections(layers: Mapping[str, nn.Module], rank: int, seed: int) -> Tensors:
    """Return Gaussian projections of both sides of every layer; they preserve lengths on average.

    Parameters
    ----------
    layers: linear layers by name.
    rank: number of rows of a projection; fewer for a narrower side.
    seed: seed of the numbers.
    """
    projections = {}
    for name, layer in layers.items():
        outputs, inputs = layer.weight.T.shape if isinstance(layer, Conv1D) else layer.weight.shape
        for side, width in (("inputs", inputs), ("outputs", outputs)):
            kept = min(rank, width)
            rng = torch.Generator().manual_seed(derive_seed(seed, "projection", name, side))
            projections[f"{name}.{side}"] = torch.randn(kept, width, generator=rng) / kept**0.5
    return projections


def principal_projections(moments: Tensors, rank: int, device: torch.device | str = "cpu") -> Tensors:
    """Return for each side of each layer the eigenvectors of its largest second moments, float32 [rank, width].

    Parameters
    ----------
    moments: float32 [width, width] by name, see `layer_moments`.
    rank: number of eigenvectors; fewer for a narrower side.
    device: where to compute, with one moment at a time; the result is on the CPU.
    """
    return {name: _largest_axes(moment.to(device), rank).cpu() for name, moment in moments.items()}


def _largest_axes(moment: torch.Tensor, rank: int) -> torch.Tensor:
    return torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :rank].T


class ProjectedGradients:
    """Computes the projected and preconditioned gradients of examples.

    Parameters
    ----------
    lm: the LM.
    layers: linear layers of it whose gradients are read, by name.
    tensors: projections and preconditioners by name, see the module's docstring.
    batch_tokens: most tokens in one forward pass.
    precision: `float32` or `bfloat16`, that of the forward passes.
    mean: whether gradients are those of the mean loss over an example's response tokens, instead of the sum.
    correct: called with the name of a layer and its gradients, float32 [examples, out, in]; returns what is projected
        instead of them.
    sketch: called with the name of a layer and its projected gradients, float32 [examples, numbers]; returns what they
        add to the vectors, float32 [examples, dimension]. None to put the layers' gradients side by side.
    dimension: size of a sketched vector; without a sketch it follows from the projections.

    Attributes
    ----------
    slices: the place of each layer's gradient in a vector without a sketch, by name.
    dimension: size of a vector.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        layers: Mapping[str, nn.Module],
        tensors: Mapping[str, torch.Tensor],
        *,
        batch_tokens: int,
        precision: str,
        mean: bool = False,
        correct: Correction | None = None,
        sketch: Sketch | None = None,
        dimension: int | None = None,
    ):
        self.lm, self.layers, self.mean, self.correct, self.sketch = lm, layers, mean, correct, sketch
        self.batch_tokens, self.precision = batch_tokens, precision
        self.tensors = {name: tensor.to(lm.device) for name, tensor in tensors.items()}
        shapes = [tuple(len(tensors[f"{name}.{side}"]) for side in ("outputs", "inputs")) for name in layers]
        ends = np.cumsum([outputs * inputs for outputs, inputs in shapes])
        self.slices = dict(zip(layers, map(slice, [0, *ends[:-1]], ends), strict=True))
        self.dimension = dimension or int(ends[-1])

    def embed(self, examples: Sequence[TokenizedExample]) -> np.ndarray:
        """Return the vectors of tokenised examples, float32 [examples, dimension], in the order given."""
        vectors = np.empty((len(examples), self.dimension), np.float32)
        last: tuple[np.ndarray, Callable[[], np.ndarray]] | None = None
        for chosen, batch in self.batches(examples):
            fetch = to_host(batch)
            # A GPU has this batch to work on while the one before it is copied.
            if last:
                vectors[last[0]] = last[1]()
            last = chosen, fetch
        if last:
            vectors[last[0]] = last[1]()
        return vectors

    @torch.no_grad()
    def batches(self, examples: Sequence[TokenizedExample]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield batches of all examples: int64 [batch] indices into `examples`, and float32 [batch, dimension] vectors.

        The vectors are on the LM's device.
        """
        with closing(ExampleGradients(self.lm, self.layers, self.precision)) as reader:
            for chosen in batched(examples, self.batch_tokens):
                vectors = torch.zeros(len(chosen), self.dimension, device=self.lm.device)

                def take(name: str, rows: torch.Tensor, *both: torch.Tensor, vectors: torch.Tensor = vectors) -> None:
                    projected = self._project(name, *both).flatten(1)
                    if self.sketch:
                        vectors[rows] += self.sketch(name, projected)
                    else:
                        vectors[rows, self.slices[name]] = projected

                reader.run([examples[i] for i in chosen], take, self.mean)
                yield chosen, self._whiten(vectors)

    def _project(self, name: str, inputs: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        of_inputs, of_outputs = (self.tensors[f"{name}.{side}"] for side in ("inputs", "outputs"))
        if self.correct:
            return of_outputs @ self.correct(name, outer_sums(gradients, inputs)) @ of_inputs.T
        projected = outer_sums(gradients @ of_outputs.T, inputs @ of_inputs.T)
        scale = self.tensors.get(f"{name}.scale")
        return projected if scale is None else projected * scale

    def _whiten(self, vectors: torch.Tensor) -> torch.Tensor:
        for name, place in {"": slice(None), **self.slices}.items():
            factor = self.tensors.get(f"{name}.cholesky" if name else "cholesky")
            if factor is not None:
                vectors[:, place] = torch.linalg.solve_triangular(factor, vectors[:, place].T, upper=False).T
        return vectors


def layer_moments(
    lm: PreTrainedModel,
    layers: Mapping[str, nn.Module],
    examples: Sequence[TokenizedExample],
    projections: Tensors | None,
    *,
    batch_tokens: int,
    precision: str,
) -> Tensors:
    """Return the mean over tokens of x x^T and of d d^T, for the inputs x and output gradients d of every layer.

    Parameters
    ----------
    lm: the LM.
    layers: linear layers of it, by name.
    examples: the examples whose tokens are averaged over.
    projections: x and d are projected by them first; None for no projection.
    batch_tokens: most tokens in one forward pass.
    precision: `float32` or `bfloat16`, that of the forward passes.

    Returns
    -------
    `<layer>.inputs` and `<layer>.outputs`, float32 [width, width] on the CPU.
    """
    projections = {name: tensor.to(lm.device) for name, tensor in (projections or {}).items()}
    moments: Tensors = {}

    def add(name: str, vectors: torch.Tensor) -> None:
        flat = vectors.flatten(0, 1)
        if name in projections:
            flat = flat @ projections[name].T
        product = flat.T @ flat
        moments[name] = moments[name] + product if name in moments else product

    def take(name: str, _: torch.Tensor, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        add(f"{name}.inputs", inputs)
        add(f"{name}.outputs", gradients)

    with closing(ExampleGradients(lm, layers, precision)) as reader:
        for chosen in batched(examples, batch_tokens):
            reader.run([examples[i] for i in chosen], take)
    tokens = sum(len(example.tokens) for example in examples)
    return {name: moment.cpu() / tokens for name, moment in moments.items()}


def kronecker_preconditioner(layers: Mapping[str, nn.Module], projections: Tensors, moments: Tensors) -> Tensors:
    """Return `projections`, rotated to the axes of `moments`, and the scale that a projected gradient is multiplied by.

    The Hessian of a layer is approximated by the Kronecker product of its two second moments (KFAC), which is
    diagonal in their eigenvectors: the product of their eigenvalues, plus a tenth of its mean. The scale is its inverse
    root.

    Parameters
    ----------
    layers: linear layers by name.
    projections: result of `random_projections` or `principal_projections`.
    moments: second moments of the projected inputs and output gradients, see `layer_moments`.
    """
    tensors = {}
    for name in layers:
        values = {}
        for side in ("inputs", "outputs"):
            values[side], axes = torch.linalg.eigh(moments[f"{name}.{side}"])
            tensors[f"{name}.{side}"] = axes.T @ projections[f"{name}.{side}"]
        curvature = torch.outer(values["outputs"].clamp(min=0), values["inputs"].clamp(min=0))
        tensors[f"{name}.scale"] = inverse_root(curvature)
    return tensors


def inverse_root(eigenvalues: torch.Tensor) -> torch.Tensor:
    """Return the inverse square roots of eigenvalues, a tenth of their mean added; of their shape."""
    return (eigenvalues + DAMPING * eigenvalues.mean()).rsqrt()


def fisher_preconditioner(vectors: ProjectedGradients, examples: Sequence[TokenizedExample], by_layer: bool) -> Tensors:
    """Return the Cholesky factors of the empirical Fisher matrices, each plus a tenth of its mean eigenvalue.

    Parameters
    ----------
    vectors: the projected gradients whose second moments are computed.
    examples: the examples to average over.
    by_layer: whether there is one matrix for each layer; otherwise one for all of them together.
    """
    places = {f"{name}.": place for name, place in vectors.slices.items()} if by_layer else {"": slice(None)}
    moments: Tensors = {}
    for _, batch in vectors.batches(examples):
        for name, place in places.items():
            product = batch[:, place].T @ batch[:, place]
            moments[name] = moments[name] + product if name in moments else product
    factors = {}
    for name, moment in moments.items():
        moment = moment / len(examples)
        moment.diagonal().add_(DAMPING * moment.diagonal().mean())
        factors[f"{name}cholesky"] = torch.linalg.cholesky(moment).cpu()
    return factors


def batched(examples: Sequence[TokenizedExample], batch_tokens: int) -> Iterator[np.ndarray]:
    return token_budget(np.fromiter((len(example.tokens) for example in examples), np.int64), batch_tokens)
