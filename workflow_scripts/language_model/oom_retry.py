"""Retry work in smaller forward passes after it ran out of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from workflow_scripts.core.errors import StudyError, lacks_memory
from workflow_scripts.core.progress import say

Result = TypeVar("Result")


def with_fewer_tokens(
    work: Callable[[int], Result], tokens: int, lengths: Sequence[int], key: str
) -> tuple[Result, int]:
    """Return the result of `work(tokens)`, and the tokens that it succeeded with; halve them after each lack of memory.

    The division into forward passes changes only the order of sums, so results agree to rounding.

    Parameters
    ----------
    work: takes the most tokens in one forward pass; starts over when it is called again.
    tokens: most tokens in one forward pass to start with.
    lengths: number of tokens of each example.
    key: config key of `tokens`, for the message.

    Raises
    ------
    StudyError: memory runs out even for one example.
    """
    while True:
        try:
            return work(tokens), tokens
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            if tokens <= max(lengths):
                raise StudyError(
                    f"the memory does not suffice for one example of {max(lengths):,} tokens. Lower "
                    "language_model.max_tokens, write finetuning.precision: bfloat16 or finetuning.engine: deepspeed, "
                    "or use a GPU with more memory."
                ) from error
        # Only here are the tensors of the failed attempt freed.
        tokens = min(tokens, sum(lengths)) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(f"out of memory: again with {tokens:,} tokens in a forward pass. {key} may be set to that from the start.")


@contextmanager
def explained_lack_of_memory(what: str, advice: str) -> Iterator[None]:
    """Explain a lack of memory in the block, where smaller forward passes would not help.

    Parameters
    ----------
    what: what the memory is needed for.
    advice: sentences that say what to do instead.

    Raises
    ------
    StudyError: memory ran out in the block; the message has `what` and `advice`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise StudyError(f"the memory does not suffice for {what}. {advice}") from error
