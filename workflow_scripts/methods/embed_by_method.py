"""Embed every example of a corpus by a method that computes embeddings of its own."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from workflow_scripts.core.files import file_hash, folder_hash
from workflow_scripts.core.gpus import determinism
from workflow_scripts.core.parquet import read_batches, spec_hash
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.templates import encoder_texts
from workflow_scripts.embeddings.store import EmbeddingBlock, part_of_rows, write_embeddings
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.methods.embedder import Embedder, load_embedder
from workflow_scripts.study.stage_versions import STAGE_VERSIONS

ROWS_AT_ONCE = 16_384
# In float32, 1 GiB.
MOST_NUMBERS = 2**28
TEXTS = ["example_id", "hash", "prompt", "response"]
TOKENS = ["example_id", "input_ids", "prompt_tokens"]


def embed_by_method(
    examples: Path,
    embeddings: Path,
    *,
    fitted: Path | None = None,
    language_model: Path | None = None,
    snapshot: Path | None = None,
    lm_source: Mapping[str, Any] | None,
    module: str,
    settings: dict[str, Any],
    for_tests: bool,
    prompt_words: int,
    batch_tokens: int,
    precision: str,
    embedding_precision: str,
    part: Sequence[int] = (1, 1),
) -> None:
    """Write the embedding of every row of a corpus, or of a part of it, in its order.

    Rows that were embedded before keep their embedding, as in `embeddings.store.write_embeddings`.

    Parameters
    ----------
    examples: `tokens/<corpus>.parquet` for a method that uses an LM, else `corpora/<corpus>.parquet`.
    embeddings: Parquet file to write, one row per example.
    fitted: file that `fit_method` wrote; None for a method that isn't fitted.
    language_model: folder of the LM, where the workflow made or fetched it.
    snapshot: folder of the model that `settings` names, where it was fetched from the hub.
    lm_source: `model`, `revision` and `trust_remote_code` of the LM; None for a method of texts.
    module: name of the method's module, see `study.methods.EmbeddingSpec`.
    settings: keyword arguments of its `open_embedder`.
    for_tests: whether tests are embedded, for a method that embeds them differently from training examples.
    prompt_words: number of words of a prompt that are read, for a method of texts.
    batch_tokens: most tokens in one forward pass of the LM.
    precision: `float32` or `bfloat16`, that of its forward passes.
    embedding_precision: `float16`, `float32` or `binary`, that of the numbers on disk.
    part: (number of the part from 1, number of parts), see `embeddings.store.part_of_rows`.

    Raises
    ------
    StudyError: a model or file can't be read, or the method can't read the LM.
    """
    embedder = load_embedder(
        module,
        {**settings, "model": str(snapshot)} if snapshot else settings,
        fitted=fitted,
        language_model=language_model,
        lm_source=lm_source,
        for_tests=for_tests,
        batch_tokens=batch_tokens,
        precision=precision,
    )
    key = spec_hash(
        {
            "version": STAGE_VERSIONS["embed_by_method"],
            "language_model": folder_hash(language_model) if language_model else lm_source,
            "fitted": file_hash(fitted) if fitted else None,
            "module": module,
            "settings": {**settings, "model": folder_hash(snapshot)} if snapshot else settings,
            "for_tests": for_tests,
            "prompt_words": prompt_words,
            "precision": precision,
            "embedding_precision": embedding_precision,
            **determinism(),
        }
    )
    groups, rows = part_of_rows(examples, part)

    def blocks() -> Iterator[EmbeddingBlock]:
        columns = TOKENS if lm_source else TEXTS
        rows_at_once = max(min(ROWS_AT_ONCE, MOST_NUMBERS // embedder.dimension), 1)
        for batch in read_batches(examples, rows_at_once, columns, groups):
            yield _token_block(batch, embedder) if lm_source else _text_block(batch, embedder, prompt_words)

    write_embeddings(
        embeddings,
        blocks(),
        stage=f"embed_by_method {embeddings.parent.name}",
        rows=rows,
        dimension=embedder.dimension,
        precision=embedding_precision,
        key=key,
    )


def _text_block(batch: pa.RecordBatch, embedder: Embedder, prompt_words: int) -> EmbeddingBlock:
    def prepare(new: np.ndarray) -> list[str]:
        return [text for (text,) in encoder_texts(pa.table(batch).take(new), prompt_words, "joint")]

    return EmbeddingBlock(batch["example_id"], batch["hash"].to_pylist(), prepare, embedder.embed)


def _token_block(batch: pa.RecordBatch, embedder: Embedder) -> EmbeddingBlock:
    rows = zip(batch["input_ids"], batch["prompt_tokens"].to_pylist(), strict=True)
    examples = [TokenizedExample(tokens.values.to_numpy(), prompt_tokens) for tokens, prompt_tokens in rows]
    hashes = [_content_hash(example) for example in examples]

    def prepare(new: np.ndarray) -> list[TokenizedExample]:
        return [examples[place] for place in new]

    return EmbeddingBlock(batch["example_id"], hashes, prepare, embedder.embed)


def _content_hash(example: TokenizedExample) -> str:
    content = np.append(example.tokens, example.prompt_tokens).astype(np.int64).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    run_stage(embed_by_method)
