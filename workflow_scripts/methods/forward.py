"""The gradient of an LM's head, without a backward pass through the LM.

For each example it is the sum over its response tokens of the outer product of two vectors that a forward pass gives:
the error, which is the softmax minus one at the right token, and the last hidden state. Where the head's weights are
those of the input embeddings, it is the head's part of their gradient.

Errors are projected at random from the vocabulary to a few numbers, and states where they are wide. Both are rotated to
the axes of their second moments, and what they give is divided by the roots of its mean squares, as in EK-FAC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from workflow_scripts.core.errors import StudyError
from workflow_scripts.language_model.losses import summed_losses
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.methods.embedder import Embedder, LanguageModelReader, WarmupExamples, unit_length
from workflow_scripts.methods.example_gradients import outer_sums
from workflow_scripts.methods.projected_gradients import (
    Tensors,
    batched,
    inverse_root,
    kronecker_preconditioner,
    random_projections,
)
from workflow_scripts.models.device import autocast
from workflow_scripts.models.packing import pack
from workflow_scripts.models.sharing import apart_from, shared_passes

HEAD = "head"
ERRORS, STATES, SCALE = f"{HEAD}.outputs", f"{HEAD}.inputs", f"{HEAD}.scale"


class ResponseTokens(NamedTuple):
    """What the response tokens of a batch have.

    Attributes
    ----------
    examples: int64 [examples], which examples, in the order of their tokens.
    counts: number of tokens of each.
    errors: float32 [tokens, numbers], the projected errors.
    states: float32 [tokens, numbers], the projected last hidden states.
    """

    examples: np.ndarray
    counts: list[int]
    errors: torch.Tensor
    states: torch.Tensor

    def gradients(self) -> torch.Tensor:
        """Return the gradient of each example, float32 [examples, numbers of an error, numbers of a state]."""
        errors, states = (
            nn.utils.rnn.pad_sequence(rows.split(self.counts), batch_first=True) for rows in (self.errors, self.states)
        )
        return outer_sums(errors, states)


def fit(reader: LanguageModelReader, warmup: WarmupExamples, *, rank: int, hidden_rank: int) -> Tensors:
    """Return projections of errors and states and a scale, as tensors by name (`methods.projected_gradients`).

    Parameters
    ----------
    reader: the LM.
    warmup: the examples that second moments are measured on.
    rank: number of numbers that an error is projected to.
    hidden_rank: number of numbers that a state is projected to; a narrower one is kept as it is.

    Raises
    ------
    StudyError: the LM's head is no linear layer, or isn't called.
    """
    examples = warmup.examples[: warmup.measured]
    head = {HEAD: _head(reader)}
    projections = {ERRORS: random_projections(head, rank, warmup.seed)[ERRORS]}
    width = head[HEAD].in_features
    narrow = width <= hidden_rank
    projections[STATES] = torch.eye(width) if narrow else random_projections(head, hidden_rank, warmup.seed)[STATES]
    moments = {name: torch.zeros(len(one), len(one)) for name, one in projections.items()}
    for tokens in response_tokens(reader, examples, projections):
        for name, rows in ((ERRORS, tokens.errors), (STATES, tokens.states)):
            moments[name] += (rows.T @ rows).cpu()
    tensors = kronecker_preconditioner(head, projections, moments)
    squares = torch.zeros_like(tensors[SCALE])
    for tokens in response_tokens(reader, examples, tensors):
        squares += tokens.gradients().square().sum(0).cpu()
    return {**tensors, SCALE: inverse_root(squares / len(examples))}


def open_embedder(reader: LanguageModelReader, fitted: Tensors, for_tests: bool, **_: object) -> Embedder:
    """Return an embedder of projected and preconditioned gradients of the head, of unit length.

    Parameters
    ----------
    reader: the LM.
    fitted: result of `fit`.
    for_tests: not used: tests are embedded as training examples are.
    """
    scale = fitted[SCALE].to(reader.lm.device)

    def embed(examples: Sequence[TokenizedExample]) -> np.ndarray:
        vectors = np.empty((len(examples), scale.numel()), np.float32)
        for tokens in response_tokens(reader, examples, fitted):
            vectors[tokens.examples] = (tokens.gradients() * scale).flatten(1).cpu().numpy()
        return unit_length(vectors)

    return Embedder(scale.numel(), embed)


def response_tokens(
    reader: LanguageModelReader, examples: Sequence[TokenizedExample], projections: Tensors
) -> Iterator[ResponseTokens]:
    """Yield the projected errors and states of all examples, batch by batch.

    Parameters
    ----------
    reader: the LM.
    examples: in any order; they are batched by length.
    projections: `head.outputs` [numbers, vocabulary] for errors and `head.inputs` [numbers, hidden] for states.

    Raises
    ------
    StudyError: the LM's head is no linear layer, or isn't called.
    """
    on_device = {name: projections[name].to(reader.lm.device) for name in (ERRORS, STATES)}
    head = _head(reader)
    reader.lm.requires_grad_(False)
    for batch in batched(examples, reader.batch_tokens):
        lengths = np.fromiter((len(examples[i].tokens) for i in batch), np.int64, len(batch))
        for together in shared_passes(reader.lm, lengths):
            chosen = batch[together]
            yield _run(reader, head, [examples[i] for i in chosen], chosen, on_device)


def _run(
    reader: LanguageModelReader,
    head: nn.Linear,
    examples: Sequence[TokenizedExample],
    numbers: np.ndarray,
    projections: Tensors,
) -> ResponseTokens:
    """Run examples that share a forward pass; `numbers` are theirs among all examples, int64 [examples]."""
    lm, read = reader.lm, []

    def start_graph(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        # Only what comes after the head, such as a cap of the logits, is differentiated.
        logits = output.detach().requires_grad_()
        read.append((inputs[0].flatten(0, -2), logits))
        return logits

    hook = head.register_forward_hook(start_graph)
    try:
        with torch.enable_grad():
            with autocast(lm.device, reader.precision):
                losses, _ = summed_losses(lm, examples)
            if read:
                losses.sum().backward()
    finally:
        hook.remove()
    order = pack([example.tokens for example in examples], lm.device, apart_from(lm)).order
    counts = [len(examples[i].tokens) - examples[i].prompt_tokens for i in order]
    if sum(len(states) for states, _ in read) != sum(counts):
        raise _unreadable(reader)
    with torch.no_grad():
        errors = torch.cat([logits.grad.flatten(0, -2).float() @ projections[ERRORS].T for _, logits in read])
        states = torch.cat([states.float() @ projections[STATES].T for states, _ in read])
    return ResponseTokens(numbers[order], counts, errors, states)


def _head(reader: LanguageModelReader) -> nn.Linear:
    head = reader.lm.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise _unreadable(reader)
    return head


def _unreadable(reader: LanguageModelReader) -> StudyError:
    return StudyError(
        f"the head of {type(reader.lm).__name__} is no linear layer that gets every response token, so the method "
        "forward can't read it. Leave it out of scoring.methods, or use another LM."
    )
