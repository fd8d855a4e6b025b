"""How an example is written as text: for the LM, for the encoder, and as one string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa


def language_model_prompt(prompt: str) -> str:
    """Return what the LM reads before the response, where no chat template is used."""
    return f"Question: {prompt}\nAnswer: "


def encoder_text(prompt: str, response: str, prompt_words: int) -> str:
    """Return what the encoder reads (paper, section 3.2): the prompt's first words and the response."""
    words = prompt.split(maxsplit=prompt_words)
    if len(words) > prompt_words:
        prompt = prompt[: len(prompt) - len(words[-1])].rstrip()
    return f"Question: {prompt}\nAnswer: {response}"


def chat_messages(prompt: str, messages: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the turns before the response, as chat templates take them."""
    if messages:
        return [dict(message) for message in messages[:-1]]
    return [{"role": "user", "content": prompt}]


def encoder_texts(corpus: pa.Table, prompt_words: int) -> list[str]:
    """Return the encoder's text of every row of a corpus table with columns prompt and response."""
    return [
        encoder_text(prompt, response, prompt_words)
        for prompt, response in zip(corpus["prompt"].to_pylist(), corpus["response"].to_pylist(), strict=True)
    ]
