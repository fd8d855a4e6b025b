"""Embed every example of a corpus by an encoder; a text that was embedded before keeps its embedding."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from workflow_scripts.core.distributed import gather_rows, in_group, shard_indices
from workflow_scripts.core.files import folder_hash
from workflow_scripts.core.gpus import determinism
from workflow_scripts.core.parquet import read_batches, spec_hash
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.templates import EncoderText, encoder_texts
from workflow_scripts.embeddings.store import EmbeddingBlock, part_of_rows, write_embeddings
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.encoder.model import CHUNK_TOKENS, AttributionEncoder, EncoderTokens
from workflow_scripts.study.stage_versions import STAGE_VERSIONS

ROWS_AT_ONCE = 16_384
# On a CPU, the activations of a longer forward pass don't fit the cache (15 % slower at 16,384 tokens).
MAX_TOKENS_ON_CPU = 2048


def embed_corpus(
    corpus: Path,
    encoder: Path,
    embeddings: Path,
    *,
    prompt_words: int,
    max_tokens: int,
    embedding_precision: str,
    chunk_tokens: int | None,
    precision: str,
    part: Sequence[int] = (1, 1),
) -> None:
    """Write the embedding of every row of a corpus, or of a part of it, in its order.

    Rows are batched by length within blocks of 16,384, so memory does not grow with the corpus. If `embeddings` exists
    and comes from the same encoder and settings, rows with the same content hash are copied from it, and also from the
    blocks of an interrupted run, which are kept beside `embeddings` until it is complete. The file's metadata holds
    `encoder`, the hash of the encoder's folder, `prompt_words`, and what was measured, see
    `embeddings.store.write_embeddings`.

    In several processes (`core.distributed`), each tokenises and embeds its share of a block, and rank 0 writes.

    Parameters
    ----------
    corpus: `corpora/` file.
    encoder: folder of the encoder.
    embeddings: Parquet file to write, one row per example.
    prompt_words: number of words of a prompt that are read.
    max_tokens: longest text in tokens.
    embedding_precision: `float16` or `float32`, that of the numbers on disk.
    chunk_tokens: most tokens in one forward pass; None for the device's number in `encoder.model.CHUNK_TOKENS`.
    precision: `float32` or `bfloat16`, that of the forward passes.
    part: (number of the part from 1, number of parts), see `embeddings.store.part_of_rows`.

    Raises
    ------
    StudyError: the encoder or the corpus can't be read.
    """
    key = spec_hash(
        {
            "version": STAGE_VERSIONS["embed_corpus"],
            "encoder": folder_hash(encoder),
            "prompt_words": prompt_words,
            "max_tokens": max_tokens,
            "embedding_precision": embedding_precision,
            "precision": precision,
            **determinism(),
        }
    )
    model = load_encoder(encoder, max_tokens, precision=precision)
    groups, rows = part_of_rows(corpus, part)

    def blocks() -> Iterator[EmbeddingBlock]:
        columns = ["example_id", "hash", "prompt", "response"]
        for batch in read_batches(corpus, ROWS_AT_ONCE, columns, groups):

            def prepare(new: np.ndarray, batch: pa.RecordBatch = batch) -> TextShare:
                return tokenize_share(model, encoder_texts(pa.table(batch).take(new), prompt_words, model.view))

            def embed(share: TextShare) -> torch.Tensor:
                return embed_share(model, share, chunk_tokens, precision)

            yield EmbeddingBlock(batch["example_id"], batch["hash"].to_pylist(), prepare, embed)

    write_embeddings(
        embeddings,
        blocks(),
        stage="embed_corpus",
        rows=rows,
        dimension=model.dimension,
        precision=embedding_precision,
        key=key,
        encoder=folder_hash(encoder),
        prompt_words=str(prompt_words),
    )


class TextShare(NamedTuple):
    """The tokenised texts that this process embeds.

    Attributes
    ----------
    texts: number of texts of all processes.
    share: int64 [texts of this process], their indices among all.
    tokens: the encoder's tokens of each text of `share`.
    """

    texts: int
    share: np.ndarray
    tokens: list[EncoderTokens]


def tokenize_share(model: AttributionEncoder, texts: Sequence[EncoderText]) -> TextShare:
    """Tokenise this process's share of `texts`, which are the same in every process."""
    share = shard_indices(np.fromiter((sum(map(len, text)) for text in texts), np.int64, len(texts)))
    return TextShare(len(texts), share, model.tokenize([texts[i] for i in share]))


def embed_share(model: AttributionEncoder, part: TextShare, chunk_tokens: int | None, precision: str) -> torch.Tensor:
    """Return the embeddings of all texts, float32 [texts, dimension] on the encoder's device.

    Parameters
    ----------
    model: the encoder.
    part: tokens of this process's share.
    chunk_tokens: most tokens in one forward pass; None for the device's number in `encoder.model.CHUNK_TOKENS`.
    precision: `float32` or `bfloat16`, that of the forward passes.
    """
    max_batch_tokens = chunk_tokens or CHUNK_TOKENS[model.device.type]
    if model.device.type == "cpu":
        max_batch_tokens = min(max_batch_tokens, MAX_TOKENS_ON_CPU)
    own = model.encode_on_device(part.tokens, max_batch_tokens, precision)
    return gather_rows(own, part.share, part.texts) if in_group() else own


if __name__ == "__main__":
    run_stage(embed_corpus)
