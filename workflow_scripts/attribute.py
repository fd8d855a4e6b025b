"""Ask a trained encoder which training examples help or harm an answer: `python -m workflow_scripts.attribute`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import transformers

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import folder_hash
from workflow_scripts.core.parquet import read_metadata, read_table, write_table
from workflow_scripts.core.progress import one_line, say
from workflow_scripts.core.redaction import redact_output
from workflow_scripts.corpora.prepare_corpus import TooManyRejectedError, prepare_corpus
from workflow_scripts.corpora.tables import CORPUS_SCHEMA, WHERE, take_examples
from workflow_scripts.corpora.templates import encoder_text
from workflow_scripts.embeddings.embed_corpus import embed_corpus
from workflow_scripts.embeddings.tiles import embedding_tiles, inner_products
from workflow_scripts.encoder.loading import load_trained_encoder
from workflow_scripts.encoder.model import AttributionEncoder
from workflow_scripts.models.loading import model_folder
from workflow_scripts.scoring.top_k import Sign, TopScores
from workflow_scripts.study.sections import COLUMN_MEANINGS, Corpus, Encoder, EncoderTraining, Scoring

PROMPT_WORDS = Encoder().prompt_words
CHUNK_TOKENS = EncoderTraining().chunk_tokens
TILE_EXAMPLES = Scoring().tile_examples
SHOWN_CHARACTERS = 60
REJECTED_SHOWN = 10


@dataclass(frozen=True)
class Query:
    """An answer whose training examples are wanted; `row` and `file` say where it stands, if it is of a file."""

    prompt: str
    response: str
    row: int = 1
    file: str | None = None


def attribute(
    encoder: str, corpus: Path, queries: Sequence[Query], *, embeddings: Path | None, top: int, sign: Sign
) -> pa.Table:
    """Return the `top` training examples of each query, best first.

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
    One row per query and rank, best first: `query` (int64, its row in the source, from 1), `query_file`,
    `query_prompt`, `query_response`, `rank` (int32, from 1), `score` (float32), and of the example `source_file`,
    `source_row` (int64, from 1), `example_id` (int64), `label`, `prompt` and `response`.

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
    return _result(corpus, queries, *best.result())


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


def _result(corpus: Path, queries: Sequence[Query], example_ids: np.ndarray, scores: np.ndarray) -> pa.Table:
    top = example_ids.shape[1]
    asked = [query for query in queries for _ in range(top)]
    found = {
        "query": pa.array([query.row for query in asked], pa.int64()),
        "query_file": pa.array([query.file for query in asked], pa.string()),
        "query_prompt": pa.array([query.prompt for query in asked], pa.string()),
        "query_response": pa.array([query.response for query in asked], pa.string()),
        "rank": pa.array(np.tile(np.arange(1, top + 1), len(queries)), pa.int32()),
        "score": pa.array(scores.ravel(), pa.float32()),
    }
    rows = take_examples(corpus, example_ids.ravel(), [*WHERE, "example_id", "label", "prompt", "response"])
    return pa.table({**found, **{name: rows[name] for name in rows.column_names}})


def prepared_corpus(source: str, folder: Path, **reading: Any) -> Path:
    """Return `source` itself if it is a `corpora/` file of the workflow, else read it into one in `folder`.

    `reading` holds keys of a study's corpus, `columns` and `max_rejected_share` for instance.

    Raises
    ------
    StudyError: the source can't be read, or too many of its rows can't be used; the message names them.
    """
    path = Path(source)
    if path.suffix == ".parquet" and path.exists() and set(CORPUS_SCHEMA.names) <= set(_columns(path)):
        return path
    corpus = folder / f"{len(list(folder.iterdir()))}.parquet"
    rejected = corpus.with_suffix(".rejected.parquet")
    settings = Corpus(source=source, **reading).model_dump(exclude={"without"})
    try:
        prepare_corpus(corpus, rejected, **settings)
    except TooManyRejectedError as error:
        raise StudyError(
            f"{error.found}\nMend the rows, name their columns by --columns or --query-columns, e.g. "
            "prompt=question,response=reply, or raise --max-rejected-share."
        ) from None
    for row in read_table(rejected).slice(0, REJECTED_SHOWN).to_pylist():
        say(f"{source}: row {row['source_row']} of {row['source_file']} is left out: {row['reason']}")
    return corpus


def columns_given(text: str) -> dict[str, str | list[str]]:
    """Return `--columns` as the key `columns` of a study, e.g. `prompt=context,prompt=question,response=answer`.

    Raises
    ------
    argparse.ArgumentTypeError: a part isn't written that way.
    """
    columns: dict[str, str | list[str]] = {}
    for part in text.split(","):
        meaning, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or not name or meaning not in COLUMN_MEANINGS or (meaning in columns and meaning != "prompt"):
            raise argparse.ArgumentTypeError(
                f"{part!r} is not one of {', '.join(COLUMN_MEANINGS)} (each once, but for prompt), '=' and a column's "
                "name"
            )
        before = columns.get(meaning, [])
        columns[meaning] = [*before, name] if meaning == "prompt" else name
    return columns


def _columns(path: Path) -> list[str]:
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise StudyError(f"{path} can't be read as Parquet: {error}") from None


def read_queries(corpus: Path) -> list[Query]:
    """Return every row of a `corpora/` file as a query."""
    table = read_table(corpus, ["prompt", "response", *WHERE])
    return [Query(row["prompt"], row["response"], row["source_row"], row["source_file"]) for row in table.to_pylist()]


def as_text(result: pa.Table) -> str:
    """Return a result as a table for the screen, each query above its examples, long texts cut.

    `query` and `row` are rows of the sources; where a source has several files, theirs follows.
    """
    several_queried, several = (pc.count_distinct(result[name]).as_py() > 1 for name in ("query_file", "source_file"))
    lines = [f"{'query':>5} {'rank':>4} {'score':>9} {'row':>8}  {'label':<20} example's prompt -> response"]
    for row in result.to_pylist():
        if row["rank"] == 1:
            file = f" of {row['query_file']}" if several_queried else ""
            lines.append(f"{row['query']:>5}{file}: {_shown(row['query_prompt'], row['query_response'])}")
        where = f"{row['source_row']:>8}" + (f" of {row['source_file']}" if several else "")
        lines.append(
            f"{row['query']:>5} {row['rank']:>4} {row['score']:>9.4f} {where}  "
            f"{one_line(row['label'] or '', 20):<20} {_shown(row['prompt'], row['response'])}"
        )
    return "\n".join(lines) + "\n"


def _shown(prompt: str, response: str) -> str:
    return f"{one_line(prompt, SHOWN_CHARACTERS)} -> {one_line(response, SHOWN_CHARACTERS)}"


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
    parser.add_argument(
        "--columns",
        type=columns_given,
        default={},
        help="columns of the file --corpus, where they aren't recognised, e.g. "
        "prompt=context,prompt=question,response=reply,label=topic",
    )
    parser.add_argument(
        "--query-columns", type=columns_given, help="columns of the file --queries (default: those of --columns)"
    )
    parser.add_argument(
        "--max-rejected-share",
        type=float,
        default=Corpus(source="-").max_rejected_share,
        help="stop when more than this share of the rows of a file can't be used (default: %(default)s)",
    )
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
    """Answer the command line."""
    redact_output()
    parser = arguments_parser()
    given = parser.parse_args(arguments)
    if given.top < 1:
        parser.error("--top must be at least 1")
    if not 0 <= given.max_rejected_share <= 1:
        parser.error("--max-rejected-share must be from 0 to 1")
    if given.format == "parquet" and not given.output:
        parser.error("--format parquet needs --output FILE")
    if given.response and not given.query:
        parser.error("--response belongs to --query; a file of --queries has its own responses")
    # What transformers logs while it loads is about weights that no encoder has (see `load_encoder`).
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            share = given.max_rejected_share
            corpus = prepared_corpus(given.corpus, Path(temporary), columns=given.columns, max_rejected_share=share)
            if given.queries:
                columns = given.columns if given.query_columns is None else given.query_columns
                asked = prepared_corpus(given.queries, Path(temporary), columns=columns, max_rejected_share=share)
                queries = read_queries(asked)
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
