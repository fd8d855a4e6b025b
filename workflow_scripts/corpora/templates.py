"""Text templates of examples, for the LM and for the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workflow_scripts.study.choices import View

if TYPE_CHECKING:
    import pyarrow as pa

EncoderText = tuple[str, ...]  # the parts of an example that are pooled separately
# The paper's (section 3.2), for both LM and encoder.
TEMPLATE = "Question: {prompt}\nAnswer: {response}"


def language_model_prompt(prompt: str) -> str:
    """Return the text before the response for an LM without a chat template."""
    return TEMPLATE.format(prompt=prompt, response="")


def encoder_text(prompt: str, response: str, prompt_words: int, view: View) -> EncoderText:
    """Return the encoder's text of an example: the prompt's first words and the response, in one part or two.

    Parameters
    ----------
    prompt: the whole prompt.
    response: the response.
    prompt_words: number of words of the prompt that are kept.
    view: `joint` for one part, as in the paper (section 3.2); `split` for two, which are pooled separately.
    """
    words = prompt.split(maxsplit=prompt_words)
    if len(words) > prompt_words:
        prompt = prompt[: len(prompt) - len(words[-1])].rstrip()
    return (TEMPLATE.format(prompt=prompt, response=response),) if view == "joint" else (prompt, response)


def chat_messages(prompt: str, messages: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the turns before the response, as the input of a chat template.

    Parameters
    ----------
    prompt: the content of the only turn, if `messages` is None.
    messages: turns of the chat, the response last.
    """
    if messages:
        return [dict(message) for message in messages[:-1]]
    return [{"role": "user", "content": prompt}]


def encoder_texts(corpus: pa.Table, prompt_words: int, view: View) -> list[EncoderText]:
    """Return the encoder's text of every row.

    Parameters
    ----------
    corpus: has the columns `prompt` and `response`.
    prompt_words: number of words of a prompt that are kept.
    view: `joint` for one part, `split` for two.
    """
    return [
        encoder_text(prompt, response, prompt_words, view)
        for prompt, response in zip(corpus["prompt"].to_pylist(), corpus["response"].to_pylist(), strict=True)
    ]
