"""Greedy decoding with an LM, many prompts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from workflow_scripts.models.device import autocast
from workflow_scripts.models.packing import token_budget
from workflow_scripts.models.sharing import forget_lengths, shared_passes
from workflow_scripts.models.transformers_import import GenerationConfig, PreTrainedModel


@torch.inference_mode()
def greedy_answers(
    lm: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    end_token: int,
    new_tokens: int,
    max_batch_tokens: int,
    precision: str = "float32",
) -> list[np.ndarray]:
    """Return the answer of `lm` to each prompt by greedy decoding.

    Prompts of similar length share a batch, padded on the left; padding is neither attended to nor counted in position
    ids. A model's own generation defaults, such as a repetition penalty, are not used.

    Parameters
    ----------
    lm: a causal LM.
    prompts: int [length] token ids of each prompt, none empty.
    end_token: id of the end-of-text token.
    new_tokens: longest answer in tokens.
    max_batch_tokens: most tokens in one batch, generated ones included.
    precision: `float32` or `bfloat16`, that of the forward passes.

    Returns
    -------
    For each prompt, in the order given, int64 [length] token ids without the end-of-text token.
    """
    attention = lm.config._attn_implementation
    # The packed attention has no cache of the tokens before, and not every LM has PyTorch's fused one.
    lm.set_attn_implementation(getattr(lm, "airrep_plain_attention", attention))
    lm.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=end_token, pad_token_id=end_token, use_cache=True
    )
    answers: list[np.ndarray] = [np.empty(0, np.int64)] * len(prompts)
    lengths = np.fromiter((len(prompt) for prompt in prompts), np.int64, len(prompts))
    try:
        for chosen in _batches(lm, lengths, new_tokens, max_batch_tokens):
            forget_lengths(lm)
            longest = int(lengths[chosen].max())
            tokens = np.full((len(chosen), longest), end_token, np.int64)
            mask = np.zeros_like(tokens)
            for row, prompt in enumerate(chosen):
                tokens[row, longest - lengths[prompt] :] = prompts[prompt]
                mask[row, longest - lengths[prompt] :] = 1
            with autocast(lm.device, precision):
                written = lm.generate(
                    input_ids=torch.from_numpy(tokens).to(lm.device),
                    attention_mask=torch.from_numpy(mask).to(lm.device),
                )
            for row, prompt in enumerate(chosen):
                answer = written[row, longest:].cpu().numpy()
                ends = np.flatnonzero(answer == end_token)
                answers[prompt] = answer[: ends[0]] if len(ends) else answer
    finally:
        lm.set_attn_implementation(attention)
    return answers


def _batches(lm: PreTrainedModel, lengths: np.ndarray, new_tokens: int, max_batch_tokens: int) -> Iterator[np.ndarray]:
    """Yield index arrays of prompts that are answered together."""
    for batch in token_budget(lengths + new_tokens, max_batch_tokens):
        # Of one length, or of a length that the longest answer leaves within the limit.
        for chosen in shared_passes(lm, lengths[batch] + new_tokens):
            yield batch[chosen]
