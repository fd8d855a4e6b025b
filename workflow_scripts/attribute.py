"""Ask a trained encoder which training examples help or harm an answer: `python -m workflow_scripts.attribute`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import write_table
from workflow_scripts.core.progress import one_line, say
from workflow_scripts.core.redaction import redact_output
from workflow_scripts.core.stage import temporary_trouble
from workflow_scripts.search.attribution import attribute, attribute_by
from workflow_scripts.search.embedded import PROMPT_WORDS
from workflow_scripts.search.inputs import columns_given, prepared_corpus, read_queries
from workflow_scripts.search.query import Query
from workflow_scripts.study.sections import Corpus

SHOWN_CHARACTERS = 60
NO_LABEL = "(no label)"


def as_text(result: pa.Table) -> str:
    """Return a result as a table for the screen, each query above its examples, long texts cut.

    `query` and `row` are rows of the sources; where a source has several files, theirs follows.
    """
    several_queried, several = (pc.count_distinct(result[name]).as_py() > 1 for name in ("query_file", "source_file"))
    lines = [f"{'query':>5} {'rank':>4} {'score':>9} {'row':>8}  {'label':<20} example's prompt -> response"]
    last = None
    for row in result.to_pylist():
        if (row["query_file"], row["query"]) != last:
            last = row["query_file"], row["query"]
            file = f" of {row['query_file']}" if several_queried else ""
            lines.append(f"{row['query']:>5}{file}: {_asked(row)}")
        where = _where(row, several)
        lines.append(
            f"{row['query']:>5} {row['rank']:>4} {row['score']:>9.4f} {where}  "
            f"{one_line(row['label'] or '', 20):<20} {_shown(row['prompt'], row['response'])}"
        )
    return "\n".join(lines) + "\n"


def groups_as_text(result: pa.Table, by: str) -> str:
    """Return a result of `attribute_by` as a table for the screen, each query above its groups."""
    several = pc.count_distinct(result["source_file"]).as_py() > 1
    lines = [f"{'query':>5} {'rank':>4} {'mean':>9} {'examples':>8} {'best':>9} {'row':>8}  {by:<20} best example"]
    for row in result.to_pylist():
        if row["rank"] == 1:
            lines.append(f"{row['query']:>5}: {_asked(row)}")
        lines.append(
            f"{row['query']:>5} {row['rank']:>4} {row['mean_score']:>9.4f} {row['examples']:>8,} {row['score']:>9.4f} "
            f"{_where(row, several)}  {one_line(row[by] or NO_LABEL, 20):<20} {_shown(row['prompt'], row['response'])}"
        )
    return "\n".join(lines) + "\n"


def _where(row: dict[str, str], several: bool) -> str:
    return f"{row['source_row']:>8}" + (f" of {row['source_file']}" if several else "")


def _asked(row: dict[str, str]) -> str:
    """Return what was asked, and with a contrast what it is set against."""
    asked = _shown(row["query_prompt"], row["query_response"])
    return (
        asked if row["query_contrast"] is None else f"{asked}, not {one_line(row['query_contrast'], SHOWN_CHARACTERS)}"
    )


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
    parser.add_argument(
        "--response",
        default="",
        help="response that belongs to --query; without one, an encoder of the view `split` compares prompts alone",
    )
    parser.add_argument(
        "--contrast", help="another answer to --query: scores are then for --response minus those for this one"
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        help="the corpus's embeddings, e.g. results/<run>/embeddings/trained/<corpus>.parquet; a file that doesn't "
        "exist is made",
    )
    parser.add_argument(
        "--prompt-words",
        type=int,
        default=PROMPT_WORDS,
        help="words of a prompt that are read: encoder.prompt_words of the encoder's study (default: %(default)s)",
    )
    parser.add_argument(
        "--top", type=int, default=10, help="examples for each query (default: 10); --by lists all groups"
    )
    parser.add_argument("--sign", choices=["helpful", "harmful"], default="helpful", help="which end of the scores")
    parser.add_argument(
        "--min-score", type=float, help="only examples with at least this score; with --sign harmful, at most"
    )
    parser.add_argument(
        "--by",
        choices=["label", "source_file"],
        help="in place of single examples, the mean score of each label or source file over all of its examples",
    )
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
    if given.prompt_words < 1:
        parser.error("--prompt-words must be at least 1")
    if not 0 <= given.max_rejected_share <= 1:
        parser.error("--max-rejected-share must be from 0 to 1")
    if given.format == "parquet" and not given.output:
        parser.error("--format parquet needs --output FILE")
    if given.output and not given.output.parent.is_dir():
        parser.error(f"--output {given.output}: there is no folder {given.output.parent}; make it, or name another one")
    if given.output and given.output.is_dir():
        parser.error(f"--output {given.output} is a folder; name a file in it")
    if given.response and given.query is None:
        parser.error("--response belongs to --query; a file of --queries has its own responses")
    if given.contrast is not None and (given.query is None or not given.response):
        parser.error("--contrast belongs to --query and --response")
    if given.by and given.min_score is not None:
        parser.error("--min-score chooses examples, and --by counts all of them; leave one of the two out")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            share = given.max_rejected_share
            corpus = prepared_corpus(given.corpus, Path(temporary), columns=given.columns, max_rejected_share=share)
            if given.queries:
                columns = given.columns if given.query_columns is None else given.query_columns
                asked = prepared_corpus(given.queries, Path(temporary), columns=columns, max_rejected_share=share)
                queries = read_queries(asked)
            else:
                queries = [Query(given.query, given.response, contrast=given.contrast)]
            if given.by:
                result = attribute_by(
                    given.encoder,
                    corpus,
                    queries,
                    embeddings=given.embeddings,
                    by=given.by,
                    sign=given.sign,
                    prompt_words=given.prompt_words,
                )
            else:
                result = attribute(
                    given.encoder,
                    corpus,
                    queries,
                    embeddings=given.embeddings,
                    top=given.top,
                    sign=given.sign,
                    min_score=given.min_score,
                    prompt_words=given.prompt_words,
                )
                _say_what_is_empty(result, queries)
        _write(result, given.format, given.output, given.by)
    except StudyError as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:
        trouble = temporary_trouble(error)
        if trouble is None:
            raise
        raise SystemExit(f"error: {trouble}") from None


def _say_what_is_empty(result: pa.Table, queries: Sequence[Query]) -> None:
    """Say which queries have no example with a sufficient score."""
    answered = set(zip(result["query_file"].to_pylist(), result["query"].to_pylist(), strict=True))
    if empty := [query for query in queries if (query.file, query.row) not in answered]:
        rows = ", ".join(str(query.row) for query in empty[:10]) + (" ..." if len(empty) > 10 else "")
        say(f"no example has a sufficient score (--min-score) for {len(empty):,} queries: {rows}")


def _write(result: pa.Table, form: str, output: Path | None, by: str | None) -> None:
    if form == "parquet":
        assert output is not None  # `main` asks for it
        write_table(output, result)
        return
    table = groups_as_text(result, by) if by else as_text(result)
    text = as_json(result) if form == "json" else table
    if output:
        output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
