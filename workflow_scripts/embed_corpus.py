"""Embed every example of a corpus; an example whose text was embedded before keeps its embedding."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from workflow_scripts.lib.encoder import AttributionEncoder, load_encoder
from workflow_scripts.lib.models import folder_hash
from workflow_scripts.lib.processes import agreed, gather_rows, is_first, own_share, wait_for_all
from workflow_scripts.lib.progress import Progress, say
from workflow_scripts.lib.specs import STAGE_VERSIONS
from workflow_scripts.lib.stage import run_stage
from workflow_scripts.lib.stored_embeddings import StoredEmbeddings
from workflow_scripts.lib.tables import read_batches, rows_of_groups, spec_hash, write_batches, write_table
from workflow_scripts.lib.text import EncoderText, encoder_texts

ROWS_AT_ONCE = 16_384


def embed_corpus(
    corpus: Path,
    encoder: Path,
    embeddings: Path,
    *,
    prompt_words: int,
    max_tokens: int,
    embedding_precision: str,
    chunk_tokens: int,
    precision: str,
    part: Sequence[int] = (1, 1),
) -> None:
    """Write the embedding of every row of `corpus`, or of a part of it, in its order.

    Rows are batched by length within blocks of 16,384, so memory does not grow with the corpus. If
    `embeddings` exists and comes from the same encoder and settings, rows with the same content hash are
    taken from it. So they are from the blocks of a run that was stopped, which are kept beside `embeddings` until it
    is whole. The file's metadata holds `encoder`, the hash of the encoder's folder, and `seconds`, the time that a
    full embedding takes at the rate measured.

    In several processes (`lib.processes`), each tokenises and embeds its share of a block, and the first one
    writes.

    Parameters
    ----------
    embedding_precision: `float16` or `float32`, of the numbers on disk.
    chunk_tokens, precision: most tokens in one forward pass, and its precision.
    part: (number from 1, number of parts). A part has every so-manieth row group of `corpus`, so appended rows move
        no other row to another part.
    """
    key = spec_hash(
        {
            "version": STAGE_VERSIONS["embed_corpus"],
            "encoder": folder_hash(encoder),
            "prompt_words": prompt_words,
            "max_tokens": max_tokens,
            "embedding_precision": embedding_precision,
            "precision": precision,
        }
    )
    model = load_encoder(encoder, max_tokens)
    blocks = embeddings.with_name(f".{embeddings.stem}.{key}.blocks")
    stored = StoredEmbeddings([embeddings, *sorted(blocks.glob("*.parquet"))], key)
    # All processes must see the same files, before the first one writes another.
    wait_for_all()
    rows_of_group = rows_of_groups(corpus)
    groups = list(range(part[0] - 1, len(rows_of_group), part[1]))
    rows = sum(rows_of_group[group] for group in groups)
    element = {"float16": pa.float16(), "float32": pa.float32()}[embedding_precision]
    schema = pa.schema(
        [
            ("example_id", pa.int32()),
            ("hash", pa.string()),
            ("embedding", pa.list_(element, model.dimension)),
        ]
    )
    progress = Progress(f"embed_corpus {embeddings.stem}", rows, "examples")
    embedded = 0
    seconds = 0.0

    def measured() -> dict[str, str]:
        return {"seconds": f"{seconds * rows / embedded if embedded else stored.seconds:.3f}"}

    def tables() -> Iterator[pa.Table]:
        nonlocal embedded, seconds
        columns = ["example_id", "hash", "prompt", "response"]
        for number, batch in enumerate(read_batches(corpus, ROWS_AT_ONCE, columns, groups)):
            hashes = batch["hash"].to_pylist()
            vectors = np.empty((len(hashes), model.dimension), element.to_pandas_dtype())
            # Another job may put the file in place meanwhile.
            new = agreed(stored.fill(hashes, vectors))
            if len(new):
                start = time.monotonic()
                texts = encoder_texts(pa.table(batch).take(new), prompt_words, model.view)
                vectors[new] = _embed(model, texts, chunk_tokens, precision)
                seconds += time.monotonic() - start
                embedded += len(new)
            progress.advance(len(hashes))
            flat = pa.array(vectors.reshape(-1), element)
            table = pa.table(
                [batch["example_id"], batch["hash"], pa.FixedSizeListArray.from_arrays(flat, model.dimension)],
                names=schema.names,
            )
            if len(new) and is_first():
                write_table(blocks / f"{number:06d}.parquet", table.take(new), key=key, **measured())
            yield table

    if is_first():
        write_batches(embeddings, schema, tables(), key=key, encoder=folder_hash(encoder), measured=measured)
        say(f"embed_corpus {embeddings.stem}: {embedded:,} new embeddings, {rows - embedded:,} kept")
    else:
        for _ in tables():
            pass
    # Nobody reads the blocks any more.
    wait_for_all()
    if is_first():
        shutil.rmtree(blocks, ignore_errors=True)


def _embed(model: AttributionEncoder, texts: list[EncoderText], chunk_tokens: int, precision: str) -> np.ndarray:
    share = own_share(np.fromiter((sum(map(len, text)) for text in texts), np.int64, len(texts)))
    own = model.encode(model.tokenize([texts[i] for i in share]), chunk_tokens, precision)
    return gather_rows(torch.from_numpy(own).to(model.device), share, len(texts)).cpu().numpy()


if __name__ == "__main__":
    run_stage(snakemake, embed_corpus)  # noqa: F821
