"""Ask a trained encoder which training examples help or harm an answer: `python -m workflow_scripts.attribute`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import transformers

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import folder_hash
from workflow_scripts.core.parquet import read_metadata, read_table, write_table
from workflow_scripts.core.progress import one_line
from workflow_scripts.corpora.prepare_corpus import prepare_corpus
from workflow_scripts.corpora.tables import CORPUS_SCHEMA
from workflow_scripts.corpora.templates import encoder_text
from workflow_scripts.embeddings.embed_corpus import embed_corpus
from workflow_scripts.embeddings.tiles import embedding_tiles, inner_products
from workflow_scripts.encoder.loading import load_trained_encoder
from workflow_scripts.encoder.model import AttributionEncoder
from workflow_scripts.models.loading import model_folder
from workflow_scripts.scoring.top_k import Sign, TopScores
from workflow_scripts.study.sections import Corpus, Encoder, EncoderTraining, Scoring

PROMPT_WORDS = Encoder().prompt_words
CHUNK_TOKENS = EncoderTraining().chunk_tokens
TILE_EXAMPLES = Scoring().tile_examples
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Query:
    """A prompt and its response, for which training examples are ranked."""

    prompt: str
    response: str


def attribute(
    encoder: str, corpus: Path, queries: Sequence[Query], *, embeddings: Path | None, top: int, sign: Sign
) -> pa.Table:
    """Return the training examples that help or harm each query most.

    A score is the inner product of the example's embedding and the query's (paper, section 3.2).

    Parameters
    ----------
    encoder: folder or hub id of a trained encoder.
    corpus: a `corpora/` file of the workflow.
    queries: at least one.
    embeddings: Parquet file of this corpus's embeddings by this encoder; computed and written there if it doesn't
        exist, computed and not kept if None.
    top: how many examples to return for each query; all of them if the corpus has fewer.
    sign: `helpful` for the largest scores, `harmful` for the smallest.

    Returns
    -------
    One row per query and rank, best first, with the columns `query` (int32, its index in `queries`), `rank` (int32,
    from 1), `score` (float32), `example_id` (int64), `label`, `prompt` and `response`.

    Raises
    ------
    StudyError: the model or a file can't be read, or `embeddings` come from another encoder or another corpus.
    """
    folder = model_folder(encoder)
    model = load_trained_encoder(folder)
    with tempfile.TemporaryDirectory() as temporary:
        file = embeddings or Path(temporary) / "embeddings.parquet"
        if file.exists():
            _check_embeddings(file, corpus, folder, model.dimension)
        else:
            _embed(corpus, folder, file, model.max_tokens)
        vectors = _embed_queries(model, queries)
        best = TopScores(len(queries), top, sign)
        score = inner_products(vectors)
        for ids, tile in embedding_tiles(file, TILE_EXAMPLES):
            best.update(ids, score(tile, slice(None)))
    return _result(corpus, *best.result())


def _embed(corpus: Path, folder: Path, embeddings: Path, max_tokens: int) -> None:
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


def _embed_queries(model: AttributionEncoder, queries: Sequence[Query]) -> np.ndarray:
    texts = [encoder_text(query.prompt, query.response, PROMPT_WORDS, model.view) for query in queries]
    return model.encode(model.tokenize(texts), CHUNK_TOKENS)


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


def _result(corpus: Path, example_ids: np.ndarray, scores: np.ndarray) -> pa.Table:
    queries, top = example_ids.shape
    # The ids of a corpus are its row numbers.
    rows = read_table(corpus, ["example_id", "label", "prompt", "response"]).take(example_ids.ravel())
    found = {
        "query": pa.array(np.repeat(np.arange(queries), top), pa.int32()),
        "rank": pa.array(np.tile(np.arange(1, top + 1), queries), pa.int32()),
        "score": pa.array(scores.ravel(), pa.float32()),
    }
    return pa.table({**found, **{name: rows[name] for name in rows.column_names}})


def prepared_corpus(source: str, folder: Path) -> Path:
    """Return `source` itself if it is a `corpora/` file of the workflow, else read it into one in `folder`.

    Raises
    ------
    StudyError: `source` can't be read, or more than 5 % of its rows are unusable.
    """
    path = Path(source)
    if path.suffix == ".parquet" and path.exists() and set(CORPUS_SCHEMA.names) <= set(_columns(path)):
        return path
    corpus = folder / f"{len(list(folder.iterdir()))}.parquet"
    settings = Corpus(source=source).model_dump(exclude={"without"})
    prepare_corpus(corpus, corpus.with_suffix(".rejected.parquet"), **settings)
    return corpus


def _columns(path: Path) -> list[str]:
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise StudyError(f"{path} can't be read as Parquet: {error}") from None


def read_queries(corpus: Path) -> list[Query]:
    """Return every row of a `corpora/` file as a query."""
    table = read_table(corpus, ["prompt", "response"])
    return [Query(**row) for row in table.to_pylist()]


def as_text(result: pa.Table) -> str:
    """Return a result of `attribute` as a table for the screen, long texts cut."""
    lines = [f"{'query':>5} {'rank':>4} {'score':>9} {'example':>8}  {'label':<20} example's prompt -> response"]
    for row in result.to_pylist():
        texts = f"{one_line(row['prompt'], SHOWN_CHARACTERS)} -> {one_line(row['response'], SHOWN_CHARACTERS)}"
        lines.append(
            f"{row['query']:>5} {row['rank']:>4} {row['score']:>9.4f} {row['example_id']:>8}  "
            f"{one_line(row['label'] or '', 20):<20} {texts}"
        )
    return "\n".join(lines) + "\n"


def as_json(result: pa.Table) -> str:
    """Return a result of `attribute` as a JSON list with one object per row."""
    return json.dumps(result.to_pylist(), ensure_ascii=False, indent=1) + "\n"


def arguments_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m workflow_scripts.attribute",
        description="Find the training examples that help or harm an answer most, by a trained encoder.",
    )
    parser.add_argument("--encoder", required=True, help="folder or hub id, e.g. results/mini/encoder")
    parser.add_argument(
        "--corpus",
        required=True,
        help="training examples: a file of results/<run>/corpora/, or any JSONL, JSON, CSV or Parquet file that "
        "prepare_corpus reads",
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--query", help="prompt of one query")
    asked.add_argument("--queries", help="file of queries, prompt and response, of any kind that --corpus takes")
    parser.add_argument("--response", default="", help="response that belongs to --query")
    parser.add_argument(
        "--embeddings",
        type=Path,
        help="the corpus's embeddings, e.g. results/<run>/embeddings/trained/<corpus>.parquet; a file that doesn't "
        "exist is made",
    )
    parser.add_argument("--top", type=int, default=10, help="examples for each query (default: 10)")
    parser.add_argument("--sign", choices=["helpful", "harmful"], default="helpful", help="which end of the scores")
    parser.add_argument("--format", choices=["table", "json", "parquet"], default="table", help="default: table")
    parser.add_argument("--output", type=Path, help="file to write to; needed for parquet (default: the screen)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Parameters
    ----------
    arguments: words of the command line; those of this process if None.

    Raises
    ------
    SystemExit: the arguments don't fit together (code 2), or a `StudyError` was raised (its message).
    """
    parser = arguments_parser()
    given = parser.parse_args(arguments)
    if given.top < 1:
        parser.error("--top must be at least 1")
    if given.format == "parquet" and not given.output:
        parser.error("--format parquet needs --output FILE")
    if given.response and not given.query:
        parser.error("--response belongs to --query; a file of --queries has its own responses")
    # What transformers logs while it loads is about weights that no encoder has (see `load_encoder`).
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            corpus = prepared_corpus(given.corpus, Path(temporary))
            if given.queries:
                queries = read_queries(prepared_corpus(given.queries, Path(temporary)))
            else:
                queries = [Query(given.query, given.response)]
            result = attribute(
                given.encoder, corpus, queries, embeddings=given.embeddings, top=given.top, sign=given.sign
            )
        _write(result, given.format, given.output)
    except StudyError as error:
        raise SystemExit(f"error: {error}") from None


def _write(result: pa.Table, form: str, output: Path | None) -> None:
    if form == "parquet":
        assert output is not None  # `main` asks for it
        write_table(output, result)
        return
    text = as_json(result) if form == "json" else as_text(result)
    if output:
        output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
