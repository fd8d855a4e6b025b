"""Work that is cut into forward passes, done again in smaller ones where the memory does not suffice."""

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
    """Return what `work(tokens)` gives, and the tokens that it was done with: half as many after each lack of memory.

    The cut into forward passes changes the order of sums alone, so results agree to rounding.

    Parameters
    ----------
    work: starts over when it is called again.
    tokens: most tokens in one forward pass; it comes from the config's `key`.
    lengths: tokens of each example.

    Raises
    ------
    StudyError: one example alone is too much.
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
                    "or take a GPU with more memory."
                ) from error
        # Only here has the failed attempt let go of its tensors.
        tokens = min(tokens, sum(lengths)) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(f"out of memory: again with {tokens:,} tokens in a forward pass. {key} may be set to that from the start.")


@contextmanager
def explained_lack_of_memory(what: str, advice: str) -> Iterator[None]:
    """Tell the user what to do if the memory does not suffice for something that no smaller forward pass would help.

    Raises
    ------
    StudyError: it doesn't; the message is that the memory does not suffice for `what`, and the `advice`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise StudyError(f"the memory does not suffice for {what}. {advice}") from error
