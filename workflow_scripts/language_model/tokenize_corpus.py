"""Tokenise a corpus for an LM, once for all jobs, and report what the token limit cuts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
from jinja2 import TemplateError

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_batches, read_schema, write_batches, write_table
from workflow_scripts.core.progress import Progress, say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.tables import WHERE
from workflow_scripts.corpora.templates import chat_messages, language_model_prompt
from workflow_scripts.language_model.tokens import NO_RESPONSE
from workflow_scripts.models.loading import (
    ids_beyond,
    load_config,
    load_tokenizer,
    model_folder,
    position_table,
)

SCHEMA = pa.schema(
    [
        ("example_id", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
        ("prompt_tokens", pa.int32()),
        ("cut_tokens", pa.int32()),
    ]
)
REJECTED_SCHEMA = pa.schema(
    [
        ("example_id", pa.int32()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
        ("reason", pa.string()),
    ]
)
COLUMNS = ["example_id", "prompt", "response", "messages", *WHERE]
ROWS_AT_ONCE = 4096
NO_EMBEDDING = "no embedding in the LM"
WITH_EMBEDDINGS = (
    "Take the LM that was trained with its tokenizer; or resize the embeddings of this one (transformers: "
    "`resize_token_embeddings`), train it, and save both."
)


def tokenize_corpus(
    corpus: Path,
    tokens: Path,
    rejected: Path,
    *,
    language_model: Path | None = None,
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    max_tokens: int,
    chat_template: bool,
) -> None:
    """Write the tokens of every example that keeps a response token, and list the others with the reason.

    An example is its prompt, its response and the end-of-text token, cut at `max_tokens`. `prompt_tokens`
    counts the tokens that bear no loss, `cut_tokens` the response tokens that were cut.

    Raises
    ------
    StudyError: the tokenizer can't be loaded, belongs to another model than the LM, has no end-of-text token or no
        chat template where one is asked for, or its template refuses every row; or the LM has fewer positions.
    """
    tokenizer = load_tokenizer(language_model or model, revision, trust_remote_code)
    if chat_template and not tokenizer.chat_template:
        raise StudyError(
            f"language_model.chat_template is true, but the tokenizer of {model!r} has no chat template. "
            "Write `chat_template: false`."
        )
    if tokenizer.eos_token_id is None:
        raise StudyError(f"the tokenizer of {model!r} has no end-of-text token; choose another model.")
    source = (language_model or model, revision, trust_remote_code)
    # A tokenizer alone belongs to no LM.
    has_config = (model_folder(*source[:2], weights=False) / "config.json").exists()
    config = load_config(*source) if has_config else None
    _require_positions(config, model, max_tokens, trust_remote_code)
    unknown = ids_beyond(tokenizer, config.get_text_config().vocab_size, source[0]) if config else {}
    if tokenizer.eos_token_id in unknown:
        raise StudyError(
            f"{model!r}: the end-of-text token {tokenizer.eos_token!r} was added to the tokenizer and has no embedding "
            f"in the LM. {WITH_EMBEDDINGS}"
        )
    progress = Progress(f"tokenize_corpus {corpus.stem}", read_schema(corpus)[1], "examples")
    dropped: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    without_embedding: list[dict[str, Any]] = []
    cut = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal cut
        for batch in read_batches(corpus, ROWS_AT_ONCE, COLUMNS):
            rows = batch.to_pylist()
            by_id = {row["example_id"]: row for row in rows}
            kept = []
            for row in _tokenized(tokenizer, rows, max_tokens, chat_template, refused):
                if beyond := unknown.keys() & set(row["input_ids"] if unknown else []):
                    reason = f"{NO_EMBEDDING}: the token {unknown[min(beyond)]!r} (id {min(beyond)})"
                    without_embedding.append(_rejected(by_id[row["example_id"]], reason))
                elif len(row["input_ids"]) > row["prompt_tokens"]:
                    kept.append(row)
                    cut += row["cut_tokens"] > 0
                else:
                    reason = f"{NO_RESPONSE} within the first {max_tokens} tokens"
                    dropped.append(_rejected(by_id[row["example_id"]], reason))
            progress.advance(len(rows))
            yield pa.Table.from_pylist(kept, schema=SCHEMA)

    count = write_batches(tokens, SCHEMA, tables())
    total = max(count + len(dropped) + len(refused) + len(without_embedding), 1)
    if without_embedding:
        first = without_embedding[0]
        if len(without_embedding) == total:
            raise StudyError(
                f"{model!r}: every example of {corpus.stem} holds a token that was added to the tokenizer, e.g. with "
                f"{first['reason']}. {WITH_EMBEDDINGS}"
            )
        say(
            f"tokenize_corpus {corpus.stem}: {len(without_embedding):,} of {total:,} rows hold a token that was added "
            f"to the tokenizer, e.g. row {first['source_row']} of {first['source_file']} with {first['reason']}; they "
            f"are in {rejected}"
        )
    if refused:
        first = refused[0]
        said = (
            f"the chat template of {model!r} refuses {len(refused):,} of {total:,} rows of {corpus.stem}, e.g. row "
            f"{first['source_row']} of {first['source_file']}: {first['reason']}"
        )
        if len(refused) == total:
            raise StudyError(f"{said}. Write `chat_template: false`, or take a model whose template fits the rows.")
        say(f"tokenize_corpus {corpus.stem}: {said}; they are in {rejected}")
    everything = sorted([*dropped, *refused, *without_embedding], key=lambda row: row["example_id"])
    write_table(rejected, pa.Table.from_pylist(everything, schema=REJECTED_SCHEMA))
    say(
        f"tokenize_corpus {corpus.stem}: {count:,} examples; {cut:,} responses ({100 * cut / total:.1f} %) "
        f"shortened and {len(dropped):,} ({100 * len(dropped) / total:.1f} %) removed by the limit of "
        f"{max_tokens} tokens"
    )


def _require_positions(config: Any, model: str, max_tokens: int, trust_remote_code: bool) -> None:
    """Raise `StudyError` if the LM looks positions up in a table with fewer rows than `max_tokens`."""
    limit = getattr(config, "max_position_embeddings", None)
    if config is not None and limit and limit < max_tokens and position_table(config, trust_remote_code):
        raise StudyError(
            f"language_model.max_tokens is {max_tokens:,}, and {model!r} has embeddings for {limit:,} positions; write "
            f"{limit}."
        )


class _Row(TypedDict):
    """A row of the table of tokens."""

    example_id: int
    input_ids: np.ndarray
    prompt_tokens: int
    cut_tokens: int


def _rejected(row: dict[str, Any], reason: str) -> dict[str, Any]:
    return {**{name: row[name] for name in ("example_id", *WHERE)}, "reason": reason}


def _prompt(tokenizer: Any, row: dict[str, Any], chat_template: bool) -> str:
    if not chat_template:
        return language_model_prompt(row["prompt"])
    messages = chat_messages(row["prompt"], row["messages"])
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def _tokenized(
    tokenizer: Any, rows: list[dict[str, Any]], max_tokens: int, chat_template: bool, refused: list[dict[str, Any]]
) -> Iterator[_Row]:
    """Yield the tokens of `rows`; those that the chat template refuses go to `refused`, with the reason."""
    kept, prompts = [], []
    for row in rows:
        try:
            prompts.append(_prompt(tokenizer, row, chat_template))
        # A template refuses by an error of its own, or stumbles over what it doesn't expect.
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            refused.append(_rejected(row, f"the chat template refuses the turns: {error}"))
        else:
            kept.append(row)
    if not kept:
        return
    # A chat template writes the special tokens itself.
    prompt_ids = tokenizer(prompts, add_special_tokens=not chat_template)["input_ids"]
    response_ids = tokenizer([row["response"] for row in kept], add_special_tokens=False)["input_ids"]
    for row, prompt, response in zip(kept, prompt_ids, response_ids, strict=True):
        # Some tokenizers end what they read with end-of-text; the response follows, so it goes.
        if prompt and prompt[-1] == tokenizer.eos_token_id and not chat_template:
            prompt = prompt[:-1]
        whole = [*prompt, *response, tokenizer.eos_token_id]
        yield {
            "example_id": row["example_id"],
            "input_ids": np.asarray(whole[:max_tokens], np.int32),
            "prompt_tokens": len(prompt),
            "cut_tokens": max(len(whole) - max_tokens, 0),
        }


if __name__ == "__main__":
    run_stage(tokenize_corpus)
