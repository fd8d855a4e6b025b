"""How an example is written as text: for the LM, for the encoder, and as one string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workflow_scripts.study.choices import View

if TYPE_CHECKING:
    import pyarrow as pa

EncoderText = tuple[str, ...]  # the parts of an example that are pooled apart
# Of the paper (section 3.2), for LM and encoder alike.
TEMPLATE = "Question: {prompt}\nAnswer: {response}"


def language_model_prompt(prompt: str) -> str:
    """Return what the LM reads before the response, where no chat template is used."""
    return TEMPLATE.format(prompt=prompt, response="")


def encoder_text(prompt: str, response: str, prompt_words: int, view: View) -> EncoderText:
    """Return what the encoder reads of an example: the prompt's first words and the response.

    `joint` is the paper's view (section 3.2): one text. `split` is ours: prompt and response are pooled apart.
    """
    words = prompt.split(maxsplit=prompt_words)
    if len(words) > prompt_words:
        prompt = prompt[: len(prompt) - len(words[-1])].rstrip()
    return (TEMPLATE.format(prompt=prompt, response=response),) if view == "joint" else (prompt, response)


def chat_messages(prompt: str, messages: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the turns before the response, as chat templates take them."""
    if messages:
        return [dict(message) for message in messages[:-1]]
    return [{"role": "user", "content": prompt}]


def encoder_texts(corpus: pa.Table, prompt_words: int, view: View) -> list[EncoderText]:
    """Return the encoder's text of every row of a corpus table with columns prompt and response."""
    return [
        encoder_text(prompt, response, prompt_words, view)
        for prompt, response in zip(corpus["prompt"].to_pylist(), corpus["response"].to_pylist(), strict=True)
    ]
