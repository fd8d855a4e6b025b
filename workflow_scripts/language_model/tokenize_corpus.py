"""Turn a corpus into the LM's tokens, once for all jobs, and say what the token limit cuts."""

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
from workflow_scripts.models.loading import ids_beyond, load_config, load_tokenizer, model_folder

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
    """Write the tokens of every example that keeps a response token, and the others with the reason.

    An example is its prompt, its response and the end-of-text token, cut at `max_tokens`. `prompt_tokens`
    counts the tokens that bear no loss, `cut_tokens` the response tokens that were cut.

    Raises
    ------
    StudyError: the tokenizer lacks what is asked of it, or belongs to another model than the LM.
    """
    tokenizer = load_tokenizer(language_model or model, revision, trust_remote_code)
    if chat_template and not tokenizer.chat_template:
        raise StudyError(
            f"language_model.chat_template is true, but the tokenizer of {model!r} has no chat template. "
            "Write `chat_template: false`."
        )
    if tokenizer.eos_token_id is None:
        raise StudyError(f"the tokenizer of {model!r} has no end-of-text token; choose another model.")
    unknown = _ids_without_embedding(tokenizer, language_model or model, revision, trust_remote_code)
    if tokenizer.eos_token_id in unknown:
        raise StudyError(
            f"{model!r}: the end-of-text token {tokenizer.eos_token!r} was added to the tokenizer and has no embedding "
            f"in the LM. {WITH_EMBEDDINGS}"
        )
    progress = Progress(f"tokenize_corpus {corpus.stem}", read_schema(corpus)[1], "examples")
    dropped: list[dict[str, Any]] = []
    cut = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal cut
        for batch in read_batches(corpus, ROWS_AT_ONCE, ["example_id", "prompt", "response", "messages"]):
            rows = batch.to_pylist()
            kept = []
            for row in _tokenized(tokenizer, rows, max_tokens, chat_template):
                if strange := unknown.keys() & set(row["input_ids"] if unknown else []):
                    reason = f"{NO_EMBEDDING}: the token {unknown[min(strange)]!r} (id {min(strange)})"
                    dropped.append({"example_id": row["example_id"], "reason": reason})
                elif len(row["input_ids"]) > row["prompt_tokens"]:
                    kept.append(row)
                    cut += row["cut_tokens"] > 0
                else:
                    reason = f"no response token within the first {max_tokens} tokens"
                    dropped.append({"example_id": row["example_id"], "reason": reason})
            progress.advance(len(rows))
            yield pa.Table.from_pylist(kept, schema=SCHEMA)

    count = write_batches(tokens, SCHEMA, tables())
    if not count and dropped and all(row["reason"].startswith(NO_EMBEDDING) for row in dropped):
        raise StudyError(
            f"{model!r}: every example of {corpus.stem} holds a token that was added to the tokenizer, e.g. with "
            f"{dropped[0]['reason']}. {WITH_EMBEDDINGS}"
        )
    write_table(rejected, pa.Table.from_pylist(dropped, schema=REJECTED_SCHEMA))
    total = max(count + len(dropped), 1)
    say(
        f"tokenize_corpus {corpus.stem}: {count:,} examples; {cut:,} responses ({100 * cut / total:.1f} %) "
        f"shortened and {len(dropped):,} ({100 * len(dropped) / total:.1f} %) removed by the limit of "
        f"{max_tokens} tokens"
    )


def _ids_without_embedding(
    tokenizer: Any, model: str | Path, revision: str | None, trust_remote_code: bool
) -> dict[int, str]:
    """Return the added tokens of the tokenizer that the LM has no embedding for, by their ids."""
    # A tokenizer alone belongs to no LM.
    if not (model_folder(model, revision, weights=False) / "config.json").exists():
        return {}
    config = load_config(model, revision, trust_remote_code).get_text_config()
    return ids_beyond(tokenizer, config.vocab_size, model)


class _Row(TypedDict):
    """A row of the tokens' table."""

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
