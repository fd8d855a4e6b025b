"""A question and its answer, whose training examples are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Query:
    """An answer whose training examples are wanted.

    Parameters
    ----------
    prompt: what was asked.
    response: the answer.
    row: where it stands in its file, if it is of a file.
    file: name of that file.
    contrast: another answer to the same prompt; scores are then for `response` and against this one.
    """

    prompt: str
    response: str
    row: int = 1
    file: str | None = None
    contrast: str | None = None


def query_columns(queries: Sequence[Query], asked: np.ndarray) -> dict[str, pa.Array]:
    """Return the columns that name a query, one row for each of these places.

    Parameters
    ----------
    queries: all of them.
    asked: int [rows], place of each row's query in `queries`.
    """
    chosen = [queries[place] for place in asked]
    return {
        "query": pa.array([query.row for query in chosen], pa.int64()),
        "query_file": pa.array([query.file for query in chosen], pa.string()),
        "query_prompt": pa.array([query.prompt for query in chosen], pa.string()),
        "query_response": pa.array([query.response for query in chosen], pa.string()),
        "query_contrast": pa.array([query.contrast for query in chosen], pa.string()),
    }
