"""Tokenise a corpus for an LM, once for all jobs, and report what the token limit cuts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_batches, read_schema, write_batches, write_table
from workflow_scripts.core.progress import Progress, say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.templates import chat_messages, language_model_prompt
from workflow_scripts.models.loading import load_tokenizer

SCHEMA = pa.schema(
    [
        ("example_id", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
        ("prompt_tokens", pa.int32()),
        ("cut_tokens", pa.int32()),
    ]
)
REJECTED_SCHEMA = pa.schema([("example_id", pa.int32()), ("reason", pa.string())])
ROWS_AT_ONCE = 4096


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

    An example is its prompt, its response and the end-of-text token, cut at `max_tokens`. In the table,
    `prompt_tokens` is the number of prompt tokens, which have no loss, and `cut_tokens` that of the tokens cut off.

    Parameters
    ----------
    corpus: `corpora/` file.
    tokens: Parquet file to write, one row per example.
    rejected: Parquet file to write, one row per example without a response token.
    language_model: folder of the LM, where the workflow made or fetched it; None to load `model`.
    model: folder or hub id of the LM.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.
    max_tokens: longest example in tokens.
    chat_template: whether prompts are rendered with the tokenizer's chat template.

    Raises
    ------
    StudyError: the tokenizer can't be loaded, or has no end-of-text token or no chat template where one is asked for.
    """
    tokenizer = load_tokenizer(language_model or model, revision, trust_remote_code)
    if chat_template and not tokenizer.chat_template:
        raise StudyError(
            f"language_model.chat_template is true, but the tokenizer of {model!r} has no chat template. "
            "Write `chat_template: false`."
        )
    if tokenizer.eos_token_id is None:
        raise StudyError(f"the tokenizer of {model!r} has no end-of-text token; choose another model.")
    progress = Progress(f"tokenize_corpus {corpus.stem}", read_schema(corpus)[1], "examples")
    dropped: list[dict[str, object]] = []
    cut = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal cut
        for batch in read_batches(corpus, ROWS_AT_ONCE, ["example_id", "prompt", "response", "messages"]):
            rows = batch.to_pylist()
            kept = []
            for row in _tokenized(tokenizer, rows, max_tokens, chat_template):
                if len(row["input_ids"]) > row["prompt_tokens"]:
                    kept.append(row)
                    cut += row["cut_tokens"] > 0
                else:
                    reason = f"no response token within the first {max_tokens} tokens"
                    dropped.append({"example_id": row["example_id"], "reason": reason})
            progress.advance(len(rows))
            yield pa.Table.from_pylist(kept, schema=SCHEMA)

    count = write_batches(tokens, SCHEMA, tables())
    write_table(rejected, pa.Table.from_pylist(dropped, schema=REJECTED_SCHEMA))
    total = max(count + len(dropped), 1)
    say(
        f"tokenize_corpus {corpus.stem}: {count:,} examples; {cut:,} responses ({100 * cut / total:.1f} %) "
        f"shortened and {len(dropped):,} ({100 * len(dropped) / total:.1f} %) removed by the limit of "
        f"{max_tokens} tokens"
    )


class _Row(TypedDict):
    """A row of the table of tokens."""

    example_id: int
    input_ids: np.ndarray
    prompt_tokens: int
    cut_tokens: int


def _tokenized(tokenizer: Any, rows: list[dict[str, Any]], max_tokens: int, chat_template: bool) -> Iterator[_Row]:
    if chat_template:
        prompts = [
            tokenizer.apply_chat_template(
                chat_messages(row["prompt"], row["messages"]), tokenize=False, add_generation_prompt=True
            )
            for row in rows
        ]
    else:
        prompts = [language_model_prompt(row["prompt"]) for row in rows]
    # A chat template writes the special tokens itself.
    prompt_ids = tokenizer(prompts, add_special_tokens=not chat_template)["input_ids"]
    response_ids = tokenizer([row["response"] for row in rows], add_special_tokens=False)["input_ids"]
    for row, prompt, response in zip(rows, prompt_ids, response_ids, strict=True):
        # Some tokenizers append end-of-text; it is removed, because the response follows.
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
