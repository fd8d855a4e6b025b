"""Models of random weights, tokenizers and examples that are made in memory: no file and no hub is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from workflow_scripts.encoder.initialization import random_projections
from workflow_scripts.encoder.model import AttributionEncoder, EncoderTokens
from workflow_scripts.language_model.tokens import TokenizedExample

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# The shapes of Qwen2.5-0.5B and of GTE-small.
QWEN_05B = Qwen2Config(
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)
GTE_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "intermediate_size": 1536, "num_attention_heads": 12}
SMALL_BERT = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 2}


def small_language_models(large: bool) -> dict[str, PreTrainedModel]:
    """Return LMs of every kind of attention that is packed, in evaluation mode on the CPU, in float32.

    `large` ones have heads of 64 numbers as real models have them; the others are for a CPU.
    """
    vocabulary, hidden, layers, heads = (1024, 256, 4, 4) if large else (128, 32, 2, 4)
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 1024,
    }
    window = 64 if large else 8
    makers = {
        "qwen2, grouped": lambda: Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=heads // 2)),
        "mistral, window": lambda: MistralForCausalLM(
            MistralConfig(**shape, num_key_value_heads=heads // 2, sliding_window=window)
        ),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=vocabulary, n_embd=hidden, n_layer=layers, n_head=heads, n_positions=1024)
        ),
    }
    return {name: _seeded(maker).eval() for name, maker in makers.items()}


def small_language_model(large: bool) -> PreTrainedModel:
    """Return the first of `small_language_models`."""
    return next(iter(small_language_models(large).values()))


def _seeded(maker: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    return maker()


def random_encoder(shape: dict[str, int], max_tokens: int, vocabulary: int = 30_522) -> AttributionEncoder:
    """Return a BERT of this shape on the CPU with random weights, no dropout, and a projection to 384 numbers."""
    torch.manual_seed(0)
    config = BertConfig(
        **shape,
        vocab_size=vocabulary,
        max_position_embeddings=max_tokens,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    projections = random_projections(shape["hidden_size"], 384, "joint", 0)
    bert = BertModel(config, add_pooling_layer=False)
    return AttributionEncoder(bert, wordpiece_tokenizer(vocabulary), projections, max_tokens)


def wordpiece_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer as BERT's: all letters, and `words` up to `vocabulary` pieces."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    pieces += words(vocabulary - len(pieces))
    ids = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def words(count: int) -> list[str]:
    """Return so many different words of two to four syllables; more of them begin with the same ones."""
    random = np.random.default_rng(1)
    syllables = np.array([consonant + vowel for consonant in "bcdfghklmnprstvz" for vowel in "aeiou"])
    found: dict[str, None] = {}
    while len(found) < count:
        for row in random.integers(0, len(syllables), (count, 4)):
            found["".join(syllables[row[: 2 + row[0] % 3]])] = None
    return list(found)[:count]


def lengths(count: int, mean: float, seed: int, least: int = 8, most: int = 512) -> np.ndarray:
    """Return token counts that are spread as those of instruction data, int64 [count]: lognormal, sigma 0.5."""
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - 0.125, 0.5, count)
    return drawn.round().astype(np.int64).clip(least, most)


def lm_examples(count: int, vocabulary: int, mean: float, seed: int) -> list[TokenizedExample]:
    """Return examples of random tokens, of which the last third is the response."""
    random = np.random.default_rng(seed)
    return [
        TokenizedExample(random.integers(1, vocabulary, length), int(length - max(length // 3, 1)))
        for length in lengths(count, mean, seed)
    ]


def encoder_examples(count: int, vocabulary: int, mean: float, seed: int, most: int = 512) -> list[EncoderTokens]:
    """Return tokenised texts of random tokens, each of one part."""
    random = np.random.default_rng(seed)
    return [
        (random.integers(5, vocabulary, length).astype(np.int32),) for length in lengths(count, mean, seed, most=most)
    ]


def texts(count: int, mean: float, seed: int) -> list[str]:
    """Return texts of about so many word pieces; one word in twenty is none of the tokenizer's."""
    random = np.random.default_rng(seed)
    known = np.array(words(20_000))
    rare = np.array([f"{word}qx" for word in known[:1000]])
    # A rare word has about three pieces.
    return [_text(random, known, rare, length) for length in lengths(count, mean / 1.1, seed, most=460)]


def _text(random: np.random.Generator, known: np.ndarray, rare: np.ndarray, length: int) -> str:
    # The common words come often, as in any language.
    chosen = known[(len(known) * random.random(length) ** 3).astype(np.int64)]
    replaced = random.random(length) < 0.05
    chosen = np.where(replaced, rare[random.integers(0, len(rare), length)], chosen)
    return " ".join(chosen)


def total_tokens(examples: Sequence[TokenizedExample]) -> int:
    """Return the tokens of all examples together."""
    return sum(len(example.tokens) for example in examples)
