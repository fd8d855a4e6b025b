"""Tokenised examples, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_scripts.core.parquet import read_table

# How the reason begins for which an example has no tokens to learn from.
NO_RESPONSE = "no response token"


@dataclass(frozen=True)
class TokenizedExample:
    """One example: `tokens` 1-D integers, of which the first `prompt_tokens` (at least 1) bear no loss."""

    tokens: np.ndarray
    prompt_tokens: int


def read_examples(tokens: Path) -> Mapping[int, TokenizedExample]:
    """Return the examples of a `tokens/` file by example id; their tokens share one memory block."""
    table = read_table(tokens, ["example_id", "input_ids", "prompt_tokens"]).combine_chunks()
    column = table["input_ids"].combine_chunks()
    flat, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    return {
        int(example_id): TokenizedExample(flat[offsets[row] : offsets[row + 1]], int(prompt_tokens))
        for row, (example_id, prompt_tokens) in enumerate(
            zip(table["example_id"].to_numpy(), table["prompt_tokens"].to_numpy(), strict=True)
        )
    }
