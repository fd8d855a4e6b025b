"""Forward and backward passes of an LM as CUDA graphs, which a GPU runs without waiting for Python's launches.

A fine-tuning step on a few thousand tokens is thousands of kernels of some microseconds each: one after another,
Python launches them more slowly than a GPU runs them. A graph is recorded once for a shape and replayed as a whole, so
batches are padded to few shapes: a filler example takes up the tokens that are missing to a multiple of
`TOKENS_MULTIPLE`, and padding among the predicted tokens has weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from workflow_scripts.language_model.losses import response_positions, token_losses
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.packing import to_device

TOKENS_MULTIPLE = 512
# Each holds thousands of launches; of more shapes than this, the first ones are forgotten.
MAX_GRAPHS = 64
# How far a replayed loss may be from that of the same pass without a graph, relative: both are sums in bfloat16.
TOLERANCE = 2e-2

Array = TypeVar("Array", np.ndarray, torch.Tensor)


class Inputs(NamedTuple, Generic[Array]):
    """What a pass reads. All but the shapes may change from one replay to the next.

    Attributes
    ----------
    tokens, positions: int64 [1, T], with a filler example at the end.
    cu_seqlens: int32 [examples + 2], as in `PackedBatch`, filler included.
    places, targets: int64 [R], the positions that predict response tokens, and these tokens.
    weights: float32 [R], of each token's loss; 0 for padding.
    """

    tokens: Array
    positions: Array
    cu_seqlens: Array
    places: Array
    targets: Array
    weights: Array


class Shape(NamedTuple):
    """A graph's shape: T, R, the number of examples, and a bound on the tokens of the longest one."""

    tokens: int
    responses: int
    examples: int
    max_length: int


@dataclass(frozen=True)
class PaddedBatch:
    """What variable-length attention reads of a `PackedBatch`; it has no buckets, whose shapes a graph would freeze."""

    cu_seqlens: torch.Tensor
    max_length: int


def padded_inputs(examples: Sequence[TokenizedExample], weight: float) -> tuple[Shape, Inputs[np.ndarray]]:
    """Return a batch padded to one of few shapes, as arrays; `weight` is that of each response token's loss."""
    lengths = np.fromiter((len(example.tokens) for example in examples), np.int64, len(examples))
    order = np.arange(len(examples))
    places, _, _ = response_positions(order, examples)
    # There always is a filler, so that the number of sequences tells nothing but the number of examples.
    filler = TOKENS_MULTIPLE - int(lengths.sum()) % TOKENS_MULTIPLE
    lengths = np.append(lengths, filler)
    tokens = np.concatenate([*(example.tokens for example in examples), np.zeros(filler, np.int64)]).astype(np.int64)
    ends = np.cumsum(lengths)
    positions = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
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
    """Return the weighted sum of the response tokens' losses, a scalar in nats."""
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
        """Set the gradients of the parameters, whatever they were before; return the loss, a scalar in nats.

        Loss and gradients are overwritten by the next call. `weight` is that of each response token's loss.

        Raises
        ------
        RuntimeError: the pass can't be recorded, e.g. because it waits for the GPU, or a replay has another loss.
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
        # Libraries allocate their workspaces and layers are compiled in a pass that isn't recorded.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected = self._pass(inputs, shape.max_length)
        torch.cuda.current_stream().wait_stream(stream)
        expected = expected.item()
        # Parameters that take no part keep no gradient. The others' are added to in place, in every graph.
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
        # Those of recorded graphs are written to by them.
        if not self.graphs:
            for parameter in self.parameters:
                parameter.grad = None

    def clear(self) -> None:
        """Let go of all graphs, of their memory and of the gradients."""
        self.graphs.clear()
        self._drop_gradients()
