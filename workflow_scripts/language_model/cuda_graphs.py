"""Forward and backward passes of an LM as CUDA graphs, which a GPU runs without waiting for Python's launches.

A fine-tuning step on a few thousand tokens is thousands of kernels of some microseconds each, which Python launches
more slowly than a GPU runs them. A graph is captured once for a shape and replayed as a whole, so batches are padded to
few shapes: a filler example takes up the tokens that are missing to a multiple of `TOKENS_MULTIPLE`, and padding among
the predicted tokens has weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch

from workflow_scripts.language_model.losses import response_positions, token_losses
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.device import to_device
from workflow_scripts.models.transformers_import import PreTrainedModel

TOKENS_MULTIPLE = 512
# Each holds thousands of launches; with more shapes than this, the oldest graph is dropped.
MAX_GRAPHS = 64
# How far a replayed loss may be from that of the same pass without a graph, relative: both are sums in bfloat16.
TOLERANCE = 2e-2

Array = TypeVar("Array", np.ndarray, torch.Tensor)


class Inputs(NamedTuple, Generic[Array]):
    """Inputs of a pass. All but the shapes may change from one replay to the next.

    Attributes
    ----------
    tokens: int64 [1, T], with a filler example at the end.
    positions: int64 [1, T], place of each token in its example, from 0.
    cu_seqlens: int32 [examples + 2], as in `PackedBatch`, filler included.
    places: int64 [R], indices of the tokens that predict a response token.
    targets: int64 [R], the response tokens.
    weights: float32 [R], weight of each token's loss; 0 for padding.
    """

    tokens: Array
    positions: Array
    cu_seqlens: Array
    places: Array
    targets: Array
    weights: Array


class Shape(NamedTuple):
    """The shape of a graph's inputs.

    Attributes
    ----------
    tokens: T, tokens in the batch.
    responses: R, response tokens in the batch.
    examples: number of examples without the filler.
    max_length: upper bound on the tokens of an example.
    """

    tokens: int
    responses: int
    examples: int
    max_length: int


@dataclass(frozen=True)
class PaddedBatch:
    """The part of a `PackedBatch` that variable-length attention reads; no buckets, whose shapes a graph would freeze.

    Parameters
    ----------
    cu_seqlens: int32 [examples + 2], filler included.
    max_length: upper bound on the tokens of an example.
    """

    cu_seqlens: torch.Tensor
    max_length: int

    def by_bucket(self, rows: torch.Tensor) -> NoReturn:
        """Refuse attention by buckets, which takes over where this GPU or a layer's head size has no other."""
        raise NotImplementedError("attention of variable length doesn't run here")


def padded_inputs(examples: Sequence[TokenizedExample], weight: float) -> tuple[Shape, Inputs[np.ndarray]]:
    """Return a batch padded to one of few shapes.

    Parameters
    ----------
    examples: the batch, at least one example.
    weight: weight of each response token's loss.
    """
    lengths = np.fromiter((len(example.tokens) for example in examples), np.int64, len(examples))
    order = np.arange(len(examples))
    places, _, _ = response_positions(order, examples)
    # There is always a filler, so that the number of sequences depends on the number of examples alone.
    filler = TOKENS_MULTIPLE - int(lengths.sum()) % TOKENS_MULTIPLE
    lengths = np.append(lengths, filler)
    tokens = np.concatenate([*(example.tokens for example in examples), np.zeros(filler, np.int64)]).astype(np.int64)
    ends = np.cumsum(lengths)
    positions = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
    # The filler is longer than the LM's last position may be.
    positions[-filler:] = 0
    responses = _round_up(max(len(places), 1))
    missing = responses - len(places)
    inputs = Inputs(
        tokens=tokens[None],
        positions=positions[None],
        cu_seqlens=np.concatenate([[0], ends]).astype(np.int32),
        places=np.append(places - 1, np.zeros(missing, np.int64)),
        targets=np.append(tokens[places], np.zeros(missing, np.int64)),
        weights=np.append(np.full(len(places), weight, np.float32), np.zeros(missing, np.float32)),
    )
    return Shape(len(tokens), responses, len(examples), _round_up(int(lengths.max()))), inputs


def _round_up(number: int) -> int:
    return -(-number // TOKENS_MULTIPLE) * TOKENS_MULTIPLE


def weighted_loss(lm: PreTrainedModel, inputs: Inputs[torch.Tensor], max_length: int) -> torch.Tensor:
    """Return the weighted sum of the response tokens' losses, a scalar in nats.

    Parameters
    ----------
    lm: switched to packed attention.
    inputs: tensors on its device.
    max_length: upper bound on the tokens of an example.
    """
    logits = lm(
        input_ids=inputs.tokens,
        position_ids=inputs.positions,
        logits_to_keep=inputs.places,
        packing=PaddedBatch(inputs.cu_seqlens, max_length),
        use_cache=False,
    ).logits[0]
    each = getattr(lm, "airrep_token_losses", token_losses)(logits, inputs.targets)
    return (each * inputs.weights).sum()


class GraphedPasses:
    """Forward and backward passes of `lm`, one graph for each shape.

    Parameters
    ----------
    lm: on a GPU, packed, with weights in half precision, so that its attention is of variable length.
    """

    def __init__(self, lm: PreTrainedModel):
        self.lm = lm
        self.parameters = [parameter for parameter in lm.parameters() if parameter.requires_grad]
        self.graphs: dict[Shape, tuple[torch.cuda.CUDAGraph, Inputs[torch.Tensor], torch.Tensor]] = {}

    def backpropagate(self, examples: Sequence[TokenizedExample], weight: float) -> torch.Tensor:
        """Overwrite the gradients of the parameters and return the weighted loss, a scalar in nats.

        The next call overwrites loss and gradients.

        Parameters
        ----------
        examples: the batch.
        weight: weight of each response token's loss.

        Raises
        ------
        RuntimeError: the pass can't be captured, e.g. because it waits for the GPU, or its replay has another loss.
        """
        shape, arrays = padded_inputs(examples, weight)
        if shape not in self.graphs:
            return self._record(shape, arrays)
        graph, inputs, loss = self.graphs[shape]
        for tensor, array in zip(inputs, arrays, strict=True):
            tensor.copy_(torch.from_numpy(array).pin_memory(), non_blocking=True)
        graph.replay()
        return loss

    def _record(self, shape: Shape, arrays: Inputs[np.ndarray]) -> torch.Tensor:
        inputs = Inputs(*(to_device(array, self.lm.device) for array in arrays))
        self._drop_gradients()
        # A pass that isn't captured: libraries allocate their workspaces and layers are compiled in it.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected = self._pass(inputs, shape.max_length)
        torch.cuda.current_stream().wait_stream(stream)
        expected = expected.item()
        # Unused parameters have no gradient. The others' are added to in place, in every graph.
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        graph = torch.cuda.CUDAGraph()
        pool = next((recorded.pool() for recorded, *_ in self.graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            torch._foreach_zero_(gradients)
            loss = self._pass(inputs, shape.max_length)
        graph.replay()
        if not abs(loss.item() - expected) <= TOLERANCE * abs(expected) and np.isfinite(expected):
            raise RuntimeError(f"a replayed pass has loss {loss.item():.5g}, the same without a graph {expected:.5g}")
        if len(self.graphs) == MAX_GRAPHS:
            self.graphs.pop(next(iter(self.graphs)))
        self.graphs[shape] = (graph, inputs, loss)
        return loss

    def _pass(self, inputs: Inputs[torch.Tensor], max_length: int) -> torch.Tensor:
        loss = weighted_loss(self.lm, inputs, max_length)
        loss.backward()
        return loss.detach()

    def _drop_gradients(self) -> None:
        # Captured graphs write to the gradients that there are.
        if not self.graphs:
            for parameter in self.parameters:
                parameter.grad = None

    def clear(self) -> None:
        """Free all graphs, their memory and the gradients."""
        self.graphs.clear()
        self._drop_gradients()
