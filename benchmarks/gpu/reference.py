"""Plain padded ways to the same numbers, which know nothing of the workflow's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from workflow_scripts.encoder.model import AttributionEncoder, EncoderTokens
from workflow_scripts.language_model.tokens import TokenizedExample


def padded(rows: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and mask of a batch padded on the right, both int64 [rows, longest]."""
    shape = (len(rows), max(map(len, rows)))
    tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)], mask[place, : len(row)] = row, 1
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)


def padded_losses(lm: PreTrainedModel, examples: Sequence[TokenizedExample]) -> torch.Tensor:
    """Return each example's mean cross-entropy over its response, float32 [examples]: one padded pass, all logits."""
    tokens, mask = padded([example.tokens for example in examples], lm.device)
    labels = tokens.masked_fill(mask == 0, -100)
    for place, example in enumerate(examples):
        labels[place, : example.prompt_tokens] = -100
    logits = lm(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
    return losses.sum(1) / (labels[:, 1:] != -100).sum(1)


def padded_embeddings(encoder: AttributionEncoder, examples: Sequence[EncoderTokens]) -> torch.Tensor:
    """Return the embeddings of texts of one part from one padded pass, float [examples, dimension]."""
    tokens, mask = padded([row for (row,) in examples], encoder.device)
    states = encoder.transformer(input_ids=tokens, attention_mask=mask).last_hidden_state
    weights = mask[:, :, None].to(states.dtype)
    return encoder.projections[0]((states * weights).sum(1) / weights.sum(1))


def flat_gradient(module: nn.Module) -> torch.Tensor:
    """Return all gradients of a module as one vector, float64 on the CPU, and drop them."""
    gradient = torch.cat(
        [p.grad.detach().reshape(-1).double().cpu() for p in module.parameters() if p.grad is not None]
    )
    module.zero_grad(set_to_none=True)
    return gradient


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far `found` is from `expected`, as a share of the length of `expected`."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())
