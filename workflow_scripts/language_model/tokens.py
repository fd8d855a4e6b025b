"""Tokenised examples, and how they are read from files."""

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
    """One tokenised example.

    Parameters
    ----------
    tokens: int [length], token ids of prompt and response.
    prompt_tokens: number of prompt tokens, which come first and have no loss; at least 1.
    """

    tokens: np.ndarray
    prompt_tokens: int


def read_examples(tokens: Path) -> Mapping[int, TokenizedExample]:
    """Return the examples of a `tokens/` file by example id; their tokens, int32, are views of one array."""
    table = read_table(tokens, ["example_id", "input_ids", "prompt_tokens"]).combine_chunks()
    column = table["input_ids"].combine_chunks()
    flat, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    return {
        int(example_id): TokenizedExample(flat[offsets[row] : offsets[row + 1]], int(prompt_tokens))
        for row, (example_id, prompt_tokens) in enumerate(
            zip(table["example_id"].to_numpy(), table["prompt_tokens"].to_numpy(), strict=True)
        )
    }
