"""Make the encoder before training: a pretrained one with a new projection, or the small builtin one."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.seeds import derive_seed
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.templates import EncoderText, encoder_texts
from workflow_scripts.encoder.initialization import (
    random_projections,
    start_at_principal_axes,
    start_words_at_principal_axes,
)
from workflow_scripts.encoder.loading import load_encoder, model_parts, stored_projection
from workflow_scripts.encoder.model import AttributionEncoder
from workflow_scripts.models.loading import load_tokenizer, model_folder
from workflow_scripts.models.transformers_import import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
)
from workflow_scripts.study.choices import View
from workflow_scripts.study.sections import Encoder

BUILTIN = "builtin:small"
SAMPLE_TEXTS = 10_000
CHUNK_TOKENS = 16_384
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def init_encoder(
    corpus: Path,
    encoder: Path,
    *,
    language_model: Path | None = None,
    lm_source: Mapping[str, Any] | None = None,
    snapshot: Path | None = None,
    settings: Encoder,
    seed: int,
) -> None:
    """Write the encoder that training starts from, and that the untrained baseline uses, to `encoder`.

    `builtin:small` is a BERT with random weights, which reads word pieces of `corpus`, or with the tokenizer
    `language_model` the LM's tokens; any other model is loaded. Its projection starts at random, or with `principal`
    at the principal axes of texts of `corpus`; so do its word embeddings (see `encoder.initialization`).

    Parameters
    ----------
    corpus: `corpora/` file whose texts vocabulary and principal axes come from.
    encoder: folder to write.
    language_model: folder of the LM, where the workflow made or fetched it.
    lm_source: `model`, `revision` and `trust_remote_code` of the LM, if its tokens are read.
    snapshot: folder of `settings.model`, where it was fetched from the hub.
    settings: the section `encoder` of the config.
    seed: seed of all random weights.

    Raises
    ------
    StudyError: a model can't be loaded, or the LM's tokenizer is a slow one.
    """
    table = read_table(corpus, ["prompt", "response"])
    is_builtin, source = settings.model == BUILTIN, snapshot or settings.model
    brought = not is_builtin and stored_projection(model_parts(model_folder(source, settings.revision))[0])
    if is_builtin:
        if settings.tokenizer == "language_model":
            assert lm_source is not None, "the rule names the LM whose tokens are read"
            words = tokens_of_lm(load_tokenizer(**{**lm_source, "model": language_model or lm_source["model"]}))
        else:
            texts = encoder_texts(table, settings.prompt_words, settings.view)
            words = wordpiece_tokenizer(texts, settings.vocabulary)
        made = small_encoder(
            words,
            settings.view,
            settings.dimension,
            settings.max_tokens,
            settings.hidden,
            settings.layers,
            seed,
            settings.normalized,
        )
    else:
        made = load_encoder(
            source,
            settings.max_tokens,
            view=settings.view,
            normalized=settings.normalized,
            dimension=settings.dimension,
            seed=derive_seed(seed, "projection"),
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
    if "principal" in (settings.projection, settings.word_embeddings):
        sample = table.take(np.linspace(0, len(table) - 1, min(len(table), SAMPLE_TEXTS), dtype=np.int64))
        examples = made.tokenize(encoder_texts(sample, settings.prompt_words, settings.view))
    if settings.word_embeddings == "principal" and is_builtin:
        start_words_at_principal_axes(made, examples, derive_seed(seed, "words"))
    if settings.projection == "principal" and not brought:
        start_at_principal_axes(made, examples, CHUNK_TOKENS, settings.prompt_scale)
    made.save(encoder)


def small_encoder(
    tokenizer: PreTrainedTokenizerFast,
    view: View,
    dimension: int,
    max_tokens: int,
    hidden: int,
    layers: int,
    seed: int,
    normalized: bool = False,
) -> AttributionEncoder:
    """Return a small BERT with random weights and random projections.

    Parameters
    ----------
    tokenizer: its vocabulary is the model's.
    view: whether prompt and response are read as one text or as two.
    dimension: size of an embedding.
    max_tokens: longest text in tokens.
    hidden: hidden size; there is one attention head for each 32.
    layers: number of layers.
    seed: seed of all weights.
    normalized: whether means over tokens are scaled to length 1 before the projection.
    """
    torch.manual_seed(derive_seed(seed, "encoder"))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 32, 1),
        intermediate_size=2 * hidden,
        max_position_embeddings=max_tokens,
        # Padding is never read, and may be a token that is: many LMs pad with their end-of-text token.
        pad_token_id=None,
    )
    transformer = BertModel(config, add_pooling_layer=False)
    projections = random_projections(hidden, dimension, view, derive_seed(seed, "projection"))
    return AttributionEncoder(transformer, tokenizer, projections, max_tokens, normalized)


def tokens_of_lm(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return an LM's tokenizer for an encoder: every text ends with the end-of-text token, as the LM's responses do.

    Raises
    ------
    StudyError: it is a slow tokenizer, one that is implemented in Python only.
    """
    if not tokenizer.is_fast:
        raise StudyError(
            f"the LM's tokenizer ({type(tokenizer).__name__}) has no tokenizer.json, so the encoder can't use it. "
            "Write `tokenizer: wordpiece` under `encoder`."
        )
    end = tokenizer.eos_token
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single=["$A", end], special_tokens=[(end, tokenizer.eos_token_id)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=tokenizer.pad_token or end)


def wordpiece_tokenizer(texts: Sequence[EncoderText], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return BERT's tokenizer with a lower-case WordPiece vocabulary of `texts`, of at most `vocabulary` tokens."""
    parts = [part for text in texts for part in text]
    return BertTokenizerFast(vocab=wordpieces(parts, vocabulary), do_lower_case=True)


def wordpieces(texts: Sequence[str], vocabulary: int) -> dict[str, int]:
    """Return a lower-case WordPiece vocabulary of `texts`, token to id, the same one each time.

    Parameters
    ----------
    texts: any texts.
    vocabulary: most tokens in it.
    """
    trainer = BertWordPieceTokenizer(lowercase=True)
    counts = Counter(itertools.chain.from_iterable(trainer.normalize(text) for text in texts))
    counts = Counter({character: count for character, count in counts.items() if not character.isspace()})
    alphabet = sorted(counts, key=lambda character: (-counts[character], character))[: vocabulary // 4]
    # Left to itself, the trainer numbers `##a`, `##b`, ... in the order of a hash table, and breaks ties by
    # these numbers. As special tokens they are numbered first and in this order.
    trainer.train_from_iterator(
        texts,
        vocab_size=vocabulary,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=[*SPECIAL_TOKENS, *(f"##{character}" for character in alphabet)],
    )
    return trainer.get_vocab()


if __name__ == "__main__":
    run_stage(init_encoder)
