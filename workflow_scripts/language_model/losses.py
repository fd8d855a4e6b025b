"""Causal LMs: loading, tokenising, and exact per-example losses of response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from workflow_scripts.models.loading import load_weights
from workflow_scripts.models.packing import ATTENTION, PackedBatch, pack, to_device, token_budget


def best_device() -> torch.device:
    """Return the job's GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_language_model(
    model: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: torch.device | str | None = None,
) -> PreTrainedModel:
    """Load a causal LM in float32 on `device` (None: the job's), packed where its architecture allows it.

    The model is in evaluation mode, so no dropout disturbs a fine-tuning run.
    """
    lm = load_weights(AutoModelForCausalLM, model, revision, trust_remote_code)
    lm.to(device or best_device()).eval()
    lm.config.use_cache = False
    use_packing(lm)
    return lm


def use_packing(lm: PreTrainedModel) -> bool:
    """Switch `lm` to packed attention if that leaves its numbers as they are; return whether it did."""
    plain = lm.config._attn_implementation
    generator = np.random.default_rng(0)
    sample = [generator.integers(0, lm.config.get_text_config().vocab_size, n) for n in (5, 9, 30)]
    examples = [TokenizedExample(tokens, 2) for tokens in sample]
    with torch.inference_mode():
        lm.airrep_packed = False
        expected = example_losses(lm, examples)
        try:
            lm.set_attn_implementation(ATTENTION)
            lm.airrep_packed = lm.config._attn_implementation == ATTENTION
            exact = lm.airrep_packed and torch.allclose(example_losses(lm, examples), expected, atol=1e-3)
        except (TypeError, ValueError, RuntimeError, KeyError):
            exact = False
    if not exact:
        lm.set_attn_implementation(plain)
        lm.airrep_packed = False
    return exact


@dataclass(frozen=True)
class TokenizedExample:
    """One example: `tokens` 1-D integers, of which the first `prompt_tokens` (at least 1) are not judged."""

    tokens: np.ndarray
    prompt_tokens: int


def example_losses(lm: PreTrainedModel, examples: Sequence[TokenizedExample]) -> torch.Tensor:
    """Return the mean cross-entropy of each example's response tokens, float32 [examples], in nats.

    One forward pass; the LM head runs on the positions that predict response tokens and on no other.
    """
    losses, counts = summed_losses(lm, examples)
    return losses / counts


def summed_losses(lm: PreTrainedModel, examples: Sequence[TokenizedExample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each example's summed cross-entropy of response tokens and their number, float32 [examples]."""
    batch = pack([example.tokens for example in examples], lm.device)
    places, owner, counts = (to_device(array, lm.device) for array in _judged_tokens(batch.order, examples))
    logits = (_packed_logits if lm.airrep_packed else _padded_logits)(lm, batch, places - 1)
    token_losses = F.cross_entropy(logits.float(), batch.tokens[0, places], reduction="none")
    losses = torch.zeros(len(examples), device=lm.device).index_add(0, owner, token_losses)
    return losses, counts


def _judged_tokens(order: np.ndarray, examples: Sequence[TokenizedExample]) -> tuple[np.ndarray, ...]:
    """Return what is known of response tokens without asking the GPU, which would have to be waited for.

    Their places in a row packed in `order` and the example of each, int64 [response tokens]; and their number,
    float32 [examples].
    """
    lengths = np.fromiter((len(example.tokens) for example in examples), np.int64, len(examples))
    prompts = np.fromiter((example.prompt_tokens for example in examples), np.int64, len(examples))
    counts = lengths - prompts
    owner = np.repeat(order, counts[order])
    # The k-th response token in the row has k of them before it, and the prompts of all examples so far.
    places = np.arange(len(owner)) + np.repeat(np.cumsum(prompts[order]), counts[order])
    return places, owner, counts.astype(np.float32)


def _packed_logits(lm: PreTrainedModel, batch: PackedBatch, places: torch.Tensor) -> torch.Tensor:
    return lm(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        logits_to_keep=places,
        packing=batch,
        use_cache=False,
    ).logits[0]


def _padded_logits(lm: PreTrainedModel, batch: PackedBatch, places: torch.Tensor) -> torch.Tensor:
    """The way for architectures whose attention can't be replaced: a padded forward pass per bucket."""
    rows = []
    for bucket in batch.buckets:
        shape = (bucket.examples, bucket.longest)
        tokens = batch.tokens[0, bucket.rows].view(shape)
        mask = torch.ones(shape, dtype=torch.long, device=tokens.device)
        if bucket.mask is not None:
            mask = bucket.mask[:, 0, 0].long()
        logits = lm(input_ids=tokens, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
        rows.append(logits if bucket.real is None else logits[bucket.real])
    return torch.cat(rows)[places]


@torch.inference_mode()
def evaluate(
    lm: PreTrainedModel, examples: Sequence[TokenizedExample], most_tokens: int, precision: str = "float32"
) -> np.ndarray:
    """Return the loss of each example, float32 [examples], batched by length and without padding."""
    losses = torch.empty(len(examples), device=lm.device)
    lengths = np.fromiter((len(example.tokens) for example in examples), np.int64, len(examples))
    for chosen in token_budget(lengths, most_tokens):
        with autocast(lm.device, precision):
            losses[to_device(chosen, lm.device)] = example_losses(lm, [examples[i] for i in chosen]).float()
    return losses.cpu().numpy()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a forward pass in `precision`, `float32` or `bfloat16`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
