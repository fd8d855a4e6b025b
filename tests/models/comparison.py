"""What an LM's losses and their gradients are beside those of plain transformers, one example at a time."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from families import LANGUAGE_MODELS, LIMIT, VOCABULARY, tiny_model
from transformers import PreTrainedModel

from workflow_scripts.language_model.losses import evaluate, example_losses, load_language_model
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.sharing import apart_from

# Like and unlike, on both sides of every limit, not sorted.
LENGTHS = [90, 12, LIMIT, 55, LIMIT + 1, 56, 5, 55, LIMIT - 1, 23]


@dataclass(frozen=True)
class Compared:
    """How an LM is read, and how far it is from plain transformers.

    Parameters
    ----------
    way: how batches are read.
    losses: largest difference of a loss, relative to losses above 1.
    gradients: difference of the gradients of all weights, relative to their norm.
    """

    way: str
    losses: float
    gradients: float


def examples() -> list[TokenizedExample]:
    rng = np.random.default_rng(1)
    return [TokenizedExample(rng.integers(3, VOCABULARY, n), max(1, n // 3)) for n in LENGTHS]


def plain_loss(lm: PreTrainedModel, example: TokenizedExample) -> torch.Tensor:
    """The loss of one example, as it is written in any introduction to fine-tuning."""
    tokens = torch.from_numpy(example.tokens)[None]
    logits = lm(input_ids=tokens, use_cache=False).logits[0]
    return F.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")[example.prompt_tokens - 1 :].mean()


def gradient(lm: PreTrainedModel) -> torch.Tensor:
    """All gradients in one vector; those of weights that have none are 0."""
    return torch.cat([(p.new_zeros(p.shape) if p.grad is None else p.grad).reshape(-1) for p in lm.parameters()])


def compare_language_model(name: str, folder: str) -> Compared:
    """Save a tiny LM of a family, load it as a study does, and compare.

    Raises
    ------
    StudyError: the LM is refused.
    """
    plain, batch = tiny_model(name, LANGUAGE_MODELS[name]), examples()
    plain.save_pretrained(folder)
    lm = load_language_model(folder)
    expected = []
    for example in batch:
        # Some remember what they have read.
        one = copy.deepcopy(plain)
        loss = plain_loss(one, example)
        loss.backward()
        expected.append((loss.detach(), gradient(one)))
    losses = torch.stack([loss for loss, _ in expected])
    whole = sum(each for _, each in expected)
    found = example_losses(lm, batch)
    found.sum().backward()
    distance = (gradient(lm) - whole).norm() / whole.norm()
    reads = [found.detach(), *(torch.from_numpy(evaluate(lm, batch, budget)) for budget in (1, 100, 10_000))]
    with torch.no_grad():
        reads.append(example_losses(lm, batch[::-1]).flip(0))
    furthest = max(((read - losses).abs() / losses.clamp(min=1)).max().item() for read in reads)
    return Compared(way_of(lm), furthest, distance.item())


def way_of(lm: PreTrainedModel) -> str:
    limit = apart_from(lm)
    if limit == 0:
        return "examples of one length"
    way = "packed" if lm.airrep_packed else "padded"
    return way if limit == sys.maxsize else f"{way}; beyond its limit, examples of one length"
