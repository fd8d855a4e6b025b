"""Causal LMs: loading, tokenising, and exact per-example losses of response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from workflow_scripts.lib.models import load_pretrained
from workflow_scripts.lib.packing import ATTENTION, PackedBatch, pack, token_budget


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
    lm = load_pretrained(
        AutoModelForCausalLM, model, revision, trust_remote_code, dtype=torch.float32, use_safetensors=True
    )
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
    judged, owner = _judged_positions(batch, examples)
    labels = batch.tokens[0, judged]
    logits = (_packed_logits if lm.airrep_packed else _padded_logits)(lm, batch, judged - 1)
    token_losses = F.cross_entropy(logits.float(), labels, reduction="none")
    losses = torch.zeros(len(examples), device=lm.device).index_add(0, owner, token_losses)
    counts = torch.bincount(owner, minlength=len(examples)).to(losses.dtype)
    return losses, counts


def _judged_positions(batch: PackedBatch, examples: Sequence[TokenizedExample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of all response tokens in the packed row, and the example that each belongs to."""
    prompts = np.fromiter((example.prompt_tokens for example in examples), np.int64, len(examples))
    order = torch.from_numpy(batch.order).to(batch.lengths.device)
    prompt_tokens = torch.from_numpy(prompts).to(batch.lengths.device)[order]
    owner = torch.repeat_interleave(order, batch.lengths)
    is_response = batch.positions[0] >= torch.repeat_interleave(prompt_tokens, batch.lengths)
    places = torch.nonzero(is_response)[:, 0]
    return places, owner[places]


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
    losses = np.empty(len(examples), np.float32)
    lengths = np.fromiter((len(example.tokens) for example in examples), np.int64, len(examples))
    for chosen in token_budget(lengths, most_tokens):
        with autocast(lm.device, precision):
            losses[chosen] = example_losses(lm, [examples[i] for i in chosen]).float().cpu().numpy()
    return losses


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a forward pass in `precision`, `float32` or `bfloat16`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
