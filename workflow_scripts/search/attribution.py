"""The search behind `workflow_scripts.attribute`: which examples, or groups of them, help or harm an answer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import folder_hash
from workflow_scripts.core.parquet import read_metadata, read_table
from workflow_scripts.corpora.tables import WHERE, take_examples
from workflow_scripts.corpora.templates import EncoderText, encoder_text
from workflow_scripts.models.loading import model_folder
from workflow_scripts.scoring.top_k import Sign
from workflow_scripts.search.light_encoder import LightEncoder, load_light_encoder
from workflow_scripts.search.stored import group_scores, top_scores
from workflow_scripts.study.choices import View
from workflow_scripts.study.sections import Encoder, EncoderTraining

if TYPE_CHECKING:
    from workflow_scripts.encoder.model import AttributionEncoder

PROMPT_WORDS = Encoder().prompt_words
CHUNK_TOKENS = EncoderTraining().chunk_tokens
# More are embedded sooner by torch, although it takes seconds to load.
LIGHT_QUERIES = 32
# Rows whose stored embeddings are compared with those of the light encoder, and how far they may be apart: half
# precision rounds by 2^-11 of each number.
COMPARED_ROWS, COMPARED_AMONG = 3, 256
MAX_DISTANCE = 2e-3

_Encode = Callable[[Sequence[EncoderText]], np.ndarray]


@dataclass(frozen=True)
class Query:
    """An answer whose training examples are wanted.

    Parameters
    ----------
    prompt: what was asked.
    response: the answer.
    row: where it stands in its file, if it is of a file.
    file: name of that file.
    contrast: another answer to the same prompt; scores are then for `response` and against this one.
    """

    prompt: str
    response: str
    row: int = 1
    file: str | None = None
    contrast: str | None = None


def attribute(
    encoder: str,
    corpus: Path,
    queries: Sequence[Query],
    *,
    embeddings: Path | None,
    top: int,
    sign: Sign,
    min_score: float | None = None,
) -> pa.Table:
    """Return the `top` training examples of each query, best first.

    A score is the inner product of the example's embedding and the query's (paper, section 3.2); with a `contrast`, the
    score for the response minus that for the other one.

    Parameters
    ----------
    encoder: folder or hub id of a trained encoder.
    corpus: a `corpora/` file of the workflow.
    queries: at least one.
    embeddings: Parquet file of this corpus's embeddings by this encoder; computed and written there if it doesn't
        exist, computed and not kept if None.
    top: how many examples to return for each query; all of them if the corpus has fewer.
    sign: `helpful` for the largest scores, `harmful` for the smallest.
    min_score: only examples whose score is at least this, or for `harmful` at most; None for all.

    Returns
    -------
    One row per query and rank, best first: `query` (int64, its row in the source, from 1), `query_file`,
    `query_prompt`, `query_response`, `query_contrast`, `rank` (int32, from 1), `score` (float32), and of the example
    `source_file`, `source_row` (int64, from 1), `example_id` (int64), `label`, `prompt` and `response`.

    Raises
    ------
    StudyError: the model or a file can't be read, or `embeddings` come from another encoder or another corpus.
    """
    with _embedded(encoder, corpus, queries, embeddings) as (file, vectors):
        example_ids, scores = top_scores(file, vectors, top, sign)
    ranks = np.tile(np.arange(1, example_ids.shape[1] + 1), len(queries))
    found, values = example_ids.ravel(), scores.ravel()
    asked = np.repeat(np.arange(len(queries)), example_ids.shape[1])
    if min_score is not None:
        enough = values >= min_score if sign == "helpful" else values <= min_score
        found, values, asked, ranks = found[enough], values[enough], asked[enough], ranks[enough]
    columns = {
        **_query_columns(queries, asked),
        "rank": pa.array(ranks, pa.int32()),
        "score": pa.array(values, pa.float32()),
    }
    rows = take_examples(corpus, found, [*WHERE, "example_id", "label", "prompt", "response"])
    return pa.table({**columns, **{name: rows[name] for name in rows.column_names}})


def attribute_by(
    encoder: str, corpus: Path, queries: Sequence[Query], *, embeddings: Path | None, by: str, sign: Sign
) -> pa.Table:
    """Return for each query how each label or source file scores, over all of its examples.

    Parameters
    ----------
    by: column of the corpus that groups its examples, `label` or `source_file`; those without a label are one group.
    sign: `helpful` for the highest mean first, and each group's highest score; `harmful` for the lowest.
    Others as in `attribute`.

    Returns
    -------
    One row per query and group, the best mean first: the columns of the query as in `attribute`, `rank` (int32), the
    group (`label`, null for those without, or `source_file`), `examples` (int64), `mean_score` (float64), and of the
    group's best example `score` (float32), `source_row`, `example_id`, `prompt` and `response`; by label its
    `source_file` too.

    Raises
    ------
    StudyError: as in `attribute`.
    """
    column = read_table(corpus, [by])[by].combine_chunks().dictionary_encode("encode")
    names = column.dictionary.to_pylist()
    with _embedded(encoder, corpus, queries, embeddings) as (file, vectors):
        found = group_scores(file, vectors, column.indices.to_numpy(), len(names), sign)
    order = np.argsort(-found.means if sign == "helpful" else found.means, axis=0, kind="stable").T.ravel()
    asked = np.repeat(np.arange(len(queries)), len(names))
    best = take_examples(corpus, found.best_ids[order, asked], [*WHERE, "example_id", "prompt", "response"])
    columns = {
        **_query_columns(queries, asked),
        "rank": pa.array(np.tile(np.arange(1, len(names) + 1), len(queries)), pa.int32()),
        by: pa.array([names[group] for group in order], pa.string()),
        "examples": pa.array(found.examples[order]),
        "mean_score": pa.array(found.means[order, asked]),
        "score": pa.array(found.best_scores[order, asked]),
    }
    return pa.table({**columns, **{name: best[name] for name in best.column_names if name not in columns}})


@contextmanager
def _embedded(
    encoder: str, corpus: Path, queries: Sequence[Query], embeddings: Path | None
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield the file of the corpus's embeddings, made if it isn't there, and the queries' vectors."""
    folder = model_folder(encoder)
    light = None
    if embeddings is not None and embeddings.exists() and len(queries) <= LIGHT_QUERIES:
        light = load_light_encoder(folder)
    if light is not None and embeddings is not None:
        _check_embeddings(embeddings, corpus, folder, light.dimension)
        if _embeds_as_stored(light, corpus, embeddings):
            yield embeddings, _query_vectors(light.encode, light.view, queries)
            return
    model = _load(folder)

    def encode(texts: Sequence[EncoderText]) -> np.ndarray:
        return model.encode(model.tokenize(texts), CHUNK_TOKENS)

    with tempfile.TemporaryDirectory() as temporary:
        file = embeddings or Path(temporary) / "embeddings.parquet"
        if file.exists():
            _check_embeddings(file, corpus, folder, model.dimension)
        else:
            _embed(corpus, folder, file, model.max_tokens)
        yield file, _query_vectors(encode, model.view, queries)


def _load(folder: Path) -> AttributionEncoder:
    # Both take seconds to load.
    import transformers

    from workflow_scripts.encoder.loading import load_trained_encoder

    # What transformers logs while it loads is about weights that no encoder has (see `load_encoder`).
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return load_trained_encoder(folder)


def _embed(corpus: Path, folder: Path, embeddings: Path, max_tokens: int) -> None:
    from workflow_scripts.embeddings.embed_corpus import embed_corpus

    embed_corpus(
        corpus,
        folder,
        embeddings,
        prompt_words=PROMPT_WORDS,
        max_tokens=max_tokens,
        embedding_precision="float16",
        chunk_tokens=CHUNK_TOKENS,
        precision="float32",
    )


def _embeds_as_stored(light: LightEncoder, corpus: Path, embeddings: Path) -> bool:
    """Return whether an encoder gives some of a corpus's first rows the embeddings that are stored: long ones too."""
    with pq.ParquetFile(embeddings) as file:
        stored = next(file.iter_batches(COMPARED_AMONG, columns=["example_id", "embedding"]))
    table = take_examples(corpus, stored["example_id"].to_numpy(), ["prompt", "response"])
    rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    chosen = sorted(range(len(rows)), key=lambda row: len("".join(rows[row])))
    chosen = [chosen[place] for place in np.linspace(0, len(rows) - 1, COMPARED_ROWS).astype(int)]
    vectors = _vectors(light.encode, light.view, [rows[row] for row in chosen])
    expected = stored["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)[chosen]
    apart = np.linalg.norm(vectors - expected.astype(np.float32), axis=1)
    return bool((apart <= MAX_DISTANCE * np.linalg.norm(vectors, axis=1)).all())


def _query_vectors(encode: _Encode, view: View, queries: Sequence[Query]) -> np.ndarray:
    vectors = _vectors(encode, view, [(query.prompt, query.response) for query in queries])
    against = [place for place, query in enumerate(queries) if query.contrast is not None]
    if against:
        others = [(queries[place].prompt, queries[place].contrast or "") for place in against]
        # An inner product with a difference is the difference of the inner products.
        vectors[against] -= _vectors(encode, view, others)
    return vectors


def _vectors(encode: _Encode, view: View, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    return encode([encoder_text(prompt, response, PROMPT_WORDS, view) for prompt, response in pairs])


def _check_embeddings(embeddings: Path, corpus: Path, folder: Path, dimension: int) -> None:
    made_by = read_metadata(embeddings).get("encoder")
    try:
        size = pq.read_schema(embeddings).field("embedding").type.list_size
    except (KeyError, AttributeError):
        raise StudyError(f"{embeddings} holds no embeddings; name a file of an `embeddings/` folder.") from None
    if size != dimension or made_by not in (None, folder_hash(folder)):
        raise StudyError(
            f"{embeddings} was made by another encoder than {folder}. Name another file, or one that doesn't exist "
            "yet, and it is made."
        )
    if not read_table(embeddings, ["hash"])["hash"].equals(read_table(corpus, ["hash"])["hash"]):
        raise StudyError(
            f"{embeddings} was made from another corpus than {corpus}. Name another file, or one that doesn't exist "
            "yet, and it is made."
        )


def _query_columns(queries: Sequence[Query], asked: np.ndarray) -> dict[str, pa.Array]:
    """Return the columns of the queries with these places."""
    chosen = [queries[place] for place in asked]
    return {
        "query": pa.array([query.row for query in chosen], pa.int64()),
        "query_file": pa.array([query.file for query in chosen], pa.string()),
        "query_prompt": pa.array([query.prompt for query in chosen], pa.string()),
        "query_response": pa.array([query.response for query in chosen], pa.string()),
        "query_contrast": pa.array([query.contrast for query in chosen], pa.string()),
    }
