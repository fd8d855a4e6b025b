"""Fine-tuning one LM on many subsets: weights and optimiser state are reset in place between runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from workflow_scripts.core.seeds import generator
from workflow_scripts.language_model.losses import TokenizedExample, autocast, evaluate, summed_losses
from workflow_scripts.language_model.oom_retry import with_fewer_tokens
from workflow_scripts.models.packing import token_budget


class Finetuner:
    """Fine-tunes the same LM from the same weights, run after run (paper, section 4.1).

    Each run: AdamW, constant learning rate, shuffled batches of `batch_examples`, `epochs` passes,
    cross-entropy averaged over the response tokens of a batch. A run depends on its examples and its seed
    alone, not on the runs before it. Where memory does not suffice, forward passes get smaller from then on.
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
    ):
        self.lm = lm
        self.batch_examples, self.epochs = batch_examples, epochs
        self.precision, self.step_tokens = precision, step_tokens
        self.evaluation_tokens = evaluation_tokens
        self.parameters = [parameter for parameter in lm.parameters() if parameter.requires_grad]
        self.base_weights = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)

    def reset(self) -> None:
        """Put the base weights and a fresh optimiser state back, without allocating anything."""
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.base_weights)
            for state in self.optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()

    def finetune(self, examples: Sequence[TokenizedExample], *seed: int | str) -> bool:
        """Train on `examples` from the base weights; return False if the run diverged."""
        self.reset()
        drawn = batches(len(examples), self.batch_examples, self.epochs, *seed)
        losses = [self._step([examples[i] for i in batch]) for batch in drawn]
        # Asked once a run: each question waits until the GPU has done all that it was told.
        return bool(torch.stack(losses).isfinite().all())

    def _step(self, batch: Sequence[TokenizedExample]) -> torch.Tensor:
        """One optimiser step; returns the batch's loss in nats per response token, a scalar."""
        lengths = [len(example.tokens) for example in batch]
        total, self.step_tokens = with_fewer_tokens(
            lambda tokens: self._accumulate(batch, tokens), self.step_tokens, lengths, "finetuning.step_tokens"
        )
        self.optimizer.step()
        return total

    def _accumulate(self, batch: Sequence[TokenizedExample], step_tokens: int) -> torch.Tensor:
        """Set the gradient of the batch's loss, whatever it was before; returns the loss."""
        self.optimizer.zero_grad(set_to_none=False)
        lengths = np.fromiter((len(example.tokens) for example in batch), np.int64, len(batch))
        # An example without a response token takes no part; a batch of them makes a step of zero gradient.
        response_tokens = max(sum(len(example.tokens) - example.prompt_tokens for example in batch), 1)
        total = torch.zeros((), device=self.lm.device)
        for chosen in token_budget(lengths, step_tokens):
            with autocast(self.lm.device, self.precision):
                losses, _ = summed_losses(self.lm, [batch[i] for i in chosen])
            loss = losses.sum() / response_tokens
            loss.backward()
            total += loss.detach()
        return total

    def losses(self, examples: Sequence[TokenizedExample]) -> np.ndarray:
        """Return the loss of each example under the current weights, float32 [examples]."""
        lengths = [len(example.tokens) for example in examples]
        losses, self.evaluation_tokens = with_fewer_tokens(
            lambda tokens: evaluate(self.lm, examples, tokens, self.precision),
            self.evaluation_tokens,
            lengths,
            "finetuning.evaluation_tokens",
        )
        return losses


def batches(examples: int, batch_examples: int, epochs: int, *seed: int | str) -> Iterator[np.ndarray]:
    """Yield the indices of each step's examples, int64 [at most `batch_examples`]: each epoch a shuffled pass."""
    random = generator(*seed)
    for _ in range(epochs):
        order = random.permutation(examples)
        for first in range(0, examples, batch_examples):
            yield order[first : first + batch_examples]
