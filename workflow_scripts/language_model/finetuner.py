"""Fine-tuning one LM on many subsets: weights and optimiser state are reset in place between runs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from workflow_scripts.core.errors import lacks_memory
from workflow_scripts.core.progress import say
from workflow_scripts.core.seeds import generator
from workflow_scripts.language_model.cuda_graphs import GraphedPasses
from workflow_scripts.language_model.losses import (
    compile_layers,
    evaluate,
    fastest_logits,
    packed_logits,
    summed_losses,
)
from workflow_scripts.language_model.oom_retry import explained_lack_of_memory, with_fewer_tokens
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.device import autocast
from workflow_scripts.models.packing import ATTENTION, token_budget
from workflow_scripts.models.sharing import apart_from
from workflow_scripts.models.transformers_import import PreTrainedModel


class Finetuner:
    """Fine-tunes the same LM from the same weights, run after run (paper, section 4.1).

    Each run: AdamW, constant learning rate, shuffled batches, cross-entropy averaged over the response tokens of a
    batch. A run depends on its examples and its seed alone, not on the runs before it. After a lack of memory, forward
    passes are smaller from then on.

    Parameters
    ----------
    lm: in float32. Its weights are those of the last run, whatever the precision.
    learning_rate: AdamW's learning rate, constant.
    weight_decay: AdamW's weight decay.
    batch_examples: number of examples in an optimiser step.
    epochs: number of passes over the examples of a run.
    precision: `float32` or `bfloat16`, that of forward and backward passes; optimiser steps are float32.
    step_tokens: most tokens in one forward pass of training.
    evaluation_tokens: most tokens in one forward pass of evaluation.
    bfloat16_weights: in bfloat16, compute with a copy of the weights in bfloat16, updated after each step, instead of
        autocast, which casts them in every pass. None: only on a GPU.
    compile: compile the LM's layers and the loss with `torch.compile`.
    cuda_graphs: replay forward and backward passes as CUDA graphs where the LM's copy in bfloat16 is packed on a GPU.

    Raises
    ------
    StudyError: memory runs out for weights, gradients and optimiser state.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        *,
        learning_rate: float,
        weight_decay: float,
        batch_examples: int,
        epochs: int,
        precision: str,
        step_tokens: int,
        evaluation_tokens: int,
        bfloat16_weights: bool | None = None,
        compile: bool = False,
        cuda_graphs: bool = True,
    ):
        self.lm = lm
        self.batch_examples, self.epochs = batch_examples, epochs
        self.precision, self.step_tokens = precision, step_tokens
        self.evaluation_tokens = evaluation_tokens
        self.parameters = [parameter for parameter in lm.parameters() if parameter.requires_grad]
        if bfloat16_weights is None:
            bfloat16_weights = lm.device.type == "cuda"
        trained = sum(parameter.numel() for parameter in self.parameters)
        with explained_lack_of_memory(
            f"weights, gradients and AdamW's moments of {trained:,} parameters, {20 * trained / 2**30:.1f} GiB",
            "Write finetuning.engine: deepspeed, or use a GPU with more memory.",
        ):
            self.base_weights = [parameter.detach().clone() for parameter in self.parameters]
            self.working_lm = bfloat16_copy(lm) if bfloat16_weights and precision == "bfloat16" else lm
            self.working_parameters = [p for p in self.working_lm.parameters() if p.requires_grad]
            copied = self.working_lm is not lm
            self.gradients = [torch.empty_like(parameter) for parameter in self.parameters] if copied else []
            self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
            self._allocate_optimizer_state()
        # An LM in bfloat16 needs no autocast.
        self.autocast_precision = "float32" if copied else precision
        if compile:
            compile_layers(self.working_lm)
        fast = not compile and self.autocast_precision == "float32"
        self.logits = fastest_logits(self.working_lm) if fast else packed_logits
        # Deterministic algorithms need buckets, whose shapes differ from batch to batch.
        packed = getattr(lm, "airrep_packed", False) and lm.config._attn_implementation == ATTENTION
        graphed = cuda_graphs and copied and packed and lm.device.type == "cuda"
        graphed = graphed and not torch.are_deterministic_algorithms_enabled() and apart_from(lm) == sys.maxsize
        self.graphs = GraphedPasses(self.working_lm) if graphed else None

    def _allocate_optimizer_state(self) -> None:
        """Make AdamW allocate its moments now, so that no optimiser step runs out of memory half-way."""
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Restore the base weights and a zero optimiser state, without allocating anything; gradients are dropped."""
        torch._foreach_copy_(self.parameters, self.base_weights)
        torch._foreach_zero_([tensor for state in self.optimizer.state.values() for tensor in state.values()])
        # Zeros that the last run left would have AdamW step parameters which this run has no gradient of yet.
        self.optimizer.zero_grad(set_to_none=True)
        self._renew_copy()

    def _renew_copy(self) -> None:
        if self.working_lm is not self.lm:
            with torch.no_grad():
                torch._foreach_copy_(self.working_parameters, self.parameters)

    def finetune(self, examples: Sequence[TokenizedExample], *seed: int | str) -> bool:
        """Train on `examples` from the base weights; return False if the run diverged.

        Parameters
        ----------
        examples: the subset; at least one example.
        seed: parts of the seed of the batches' order, see `core.seeds`.

        Raises
        ------
        StudyError: memory runs out even for one example.
        """
        self.reset()
        drawn = batches(len(examples), self.batch_examples, self.epochs, *seed)
        losses = [self._step([examples[i] for i in batch]) for batch in drawn]
        # Once per run: it waits until the GPU has finished.
        return bool(torch.stack(losses).isfinite().all())

    def _step(self, batch: Sequence[TokenizedExample]) -> torch.Tensor:
        """One optimiser step; returns the batch's loss in nats per response token, a scalar."""
        lengths = [len(example.tokens) for example in batch]
        total, self.step_tokens = with_fewer_tokens(
            lambda tokens: self._accumulate(batch, tokens), self.step_tokens, lengths, "finetuning.step_tokens"
        )
        self.optimizer.step()
        self._renew_copy()
        return total

    def _accumulate(self, batch: Sequence[TokenizedExample], step_tokens: int) -> torch.Tensor:
        """Overwrite the gradients with those of the batch's loss; return the loss, a scalar."""
        # On a GPU, filling zeros and adding to them is slower; on a CPU, allocating new memory is.
        self.optimizer.zero_grad(set_to_none=self.lm.device.type == "cuda" or self.working_lm is not self.lm)
        # A pass that ran out of memory leaves some behind.
        self._drop_copied_gradients()
        lengths = np.fromiter((len(example.tokens) for example in batch), np.int64, len(batch))
        # Examples without a response token have no loss; a batch of them only has a gradient of zero.
        response_tokens = max(sum(len(example.tokens) - example.prompt_tokens for example in batch), 1)
        total = torch.zeros((), device=self.lm.device)
        for chosen in token_budget(lengths, step_tokens):
            total += self._backpropagate([batch[i] for i in chosen], response_tokens)
            self._take_gradients()
        return total

    def _backpropagate(self, examples: Sequence[TokenizedExample], response_tokens: int) -> torch.Tensor:
        """Add the gradient of one forward pass; return its part of the batch's loss, a scalar."""
        if self.graphs is not None:
            try:
                return self.graphs.backpropagate(examples, 1 / response_tokens)
            except RuntimeError as error:
                self.graphs.clear()
                if lacks_memory(error):
                    raise
                say(f"{type(self.lm).__name__}: passes aren't recorded as CUDA graphs: {str(error).splitlines()[0]}")
                self.graphs = None
        with autocast(self.lm.device, self.autocast_precision):
            losses, _ = summed_losses(self.working_lm, examples, self.logits)
        loss = losses.sum() / response_tokens
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Add the gradients of the bfloat16 copy to those that the optimiser reads, in float32."""
        if self.working_lm is self.lm:
            return
        triples = zip(self.parameters, self.working_parameters, self.gradients, strict=True)
        parts = [(parameter, working.grad, total) for parameter, working, total in triples if working.grad is not None]
        for put, some in {
            torch._foreach_copy_: [part for part in parts if part[0].grad is None],
            torch._foreach_add_: [part for part in parts if part[0].grad is not None],
        }.items():
            if some:
                put([total for _, _, total in some], [gradient for _, gradient, _ in some])
        for parameter, _, total in parts:
            parameter.grad = total
        self._drop_copied_gradients()

    def _drop_copied_gradients(self) -> None:
        # Graphs overwrite theirs, in the memory that they were recorded with.
        if self.working_lm is not self.lm and self.graphs is None:
            for working in self.working_parameters:
                working.grad = None

    def losses(self, examples: Sequence[TokenizedExample]) -> np.ndarray:
        """Return the loss of each example under the current weights, float32 [examples].

        A loss is the mean cross-entropy of the response tokens, in nats.

        Raises
        ------
        StudyError: memory runs out even for one example.
        """

        def evaluated(max_batch_tokens: int) -> np.ndarray:
            return evaluate(self.working_lm, examples, max_batch_tokens, self.autocast_precision, self.logits)

        def evaluated_with_room(max_batch_tokens: int) -> np.ndarray:
            try:
                return evaluated(max_batch_tokens)
            except (MemoryError, RuntimeError) as error:
                if self.graphs is None or not lacks_memory(error):
                    raise
            # What recorded passes hold is of no use to another one. Only here are the failed attempt's tensors freed.
            self.graphs.clear()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return evaluated(max_batch_tokens)

        lengths = [len(example.tokens) for example in examples]
        losses, self.evaluation_tokens = with_fewer_tokens(
            evaluated_with_room, self.evaluation_tokens, lengths, "finetuning.evaluation_tokens"
        )
        return losses


def bfloat16_copy(lm: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of `lm` with weights in bfloat16 and unchanged buffers (rotary frequencies)."""
    copied = copy.deepcopy(lm)
    for parameter in copied.parameters():
        parameter.data = parameter.data.bfloat16()
    return copied


def batches(examples: int, batch_examples: int, epochs: int, *seed: int | str) -> Iterator[np.ndarray]:
    """Yield the indices of each step's examples, int64 [at most `batch_examples`]; each epoch is a shuffled pass.

    Parameters
    ----------
    examples: number of examples.
    batch_examples: number of examples in a step; the last one of an epoch may have fewer.
    epochs: number of passes.
    seed: parts of the seed, see `core.seeds`.
    """
    rng = generator(*seed)
    for _ in range(epochs):
        order = rng.permutation(examples)
        for first in range(0, examples, batch_examples):
            yield order[first : first + batch_examples]
