"""Pretrain `builtin:tiny`, a small LM with a tokenizer of its own, within seconds."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.progress import Progress
from workflow_scripts.core.seeds import derive_seed, generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.templates import language_model_prompt
from workflow_scripts.language_model.losses import summed_losses, use_packing
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.device import best_device
from workflow_scripts.models.loading import save_folder
from workflow_scripts.models.transformers_import import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

END = "<|endoftext|>"


def pretrain_base_lm(
    corpus: Path,
    model: Path,
    *,
    vocabulary: int,
    hidden: int,
    layers: int,
    architecture: str,
    steps: int,
    batch_tokens: int,
    learning_rate: float,
    max_tokens: int,
    seed: int,
) -> None:
    """Train a BPE tokenizer and an LM on the texts of a corpus, and write both.

    Every token of an example is predicted, the prompt's too, by AdamW with warm-up and cosine decay.

    Parameters
    ----------
    corpus: `corpora/` file.
    model: folder to write.
    vocabulary: size of the BPE vocabulary.
    hidden: hidden size, a multiple of 32.
    layers: number of layers.
    architecture: `qwen2` or `gpt2`.
    steps: number of optimiser steps.
    batch_tokens: mean number of tokens in a step.
    learning_rate: peak learning rate.
    max_tokens: longest example in tokens; the rest is cut.
    seed: seed of weights and batches.

    Raises
    ------
    StudyError: a loss is not finite.
    """
    table = read_table(corpus, ["prompt", "response"])
    texts = [
        language_model_prompt(prompt) + response
        for prompt, response in zip(table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True)
    ]
    tokenizer = train_tokenizer(texts, vocabulary)
    examples = [
        TokenizedExample(np.array([*tokens[: max_tokens - 1], tokenizer.eos_token_id]), prompt_tokens=1)
        for tokens in tokenizer(texts)["input_ids"]
    ]
    lm = new_language_model(len(tokenizer), hidden, layers, max_tokens, derive_seed(seed, "pretraining"), architecture)
    _train(lm, examples, steps, batch_tokens, learning_rate, seed)
    save_folder(model, lm, tokenizer)


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which has no unknown tokens; `vocabulary` is its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def new_language_model(
    vocabulary: int, hidden: int, layers: int, max_tokens: int, seed: int, architecture: str = "qwen2"
) -> PreTrainedModel:
    """Return an LM with random weights and tied embeddings; parameters as in `pretrain_base_lm`."""
    torch.manual_seed(seed)
    heads = max(hidden // 32, 1)
    if architecture == "gpt2":
        # The builtin tokenizer's only special token is its first.
        sizes = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": max_tokens}
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, **sizes))
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1) if heads % 2 == 0 else heads,
        max_position_embeddings=max_tokens,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def _train(
    lm: PreTrainedModel,
    examples: Sequence[TokenizedExample],
    steps: int,
    batch_tokens: int,
    learning_rate: float,
    seed: int,
) -> None:
    lm.to(best_device()).eval()
    use_packing(lm)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=learning_rate, fused=True)
    warmup = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    rng = generator(seed, "pretraining batches")
    mean_tokens = np.mean([len(example.tokens) for example in examples])
    batch_examples = max(round(batch_tokens / mean_tokens), 1)
    progress = Progress("pretrain_base_lm", steps, "steps")
    for step in range(1, steps + 1):
        batch = [examples[i] for i in rng.integers(len(examples), size=batch_examples)]
        losses, counts = summed_losses(lm, batch)
        loss = losses.sum() / counts.sum()
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if not math.isfinite(loss.item()):
            raise StudyError(f"pretraining diverged at step {step}. Lower language_model.pretraining.learning_rate.")
        progress.advance(note=f"loss {loss.item():.3f}")


if __name__ == "__main__":
    run_stage(pretrain_base_lm)
