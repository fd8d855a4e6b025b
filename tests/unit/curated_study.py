"""A source with columns that no stage reads, its corpus, tests, embeddings and top lists, for the tests of curation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.corpora.prepare_corpus import prepare_corpus
from workflow_scripts.curation.tables import SELECTION_SCHEMA
from workflow_scripts.study.sections import Corpus


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def read_corpus(source: str, corpus: Path, **keys: Any) -> Path:
    """Read a source into a `corpora/` file."""
    settings = Corpus(source=source, max_rejected_share=0.5, **keys).model_dump(exclude={"without"})
    prepare_corpus(corpus, corpus.with_suffix(".rejected.parquet"), **settings)
    return corpus


def write_validation(path: Path, test_ids: Sequence[int]) -> Path:
    ids = pa.array([list(test_ids)], pa.list_(pa.int32()))
    write_table(path, pa.table({"fold": pa.array([0], pa.int32()), "example_ids": ids}))
    return path


def write_embeddings(path: Path, vectors: np.ndarray, ids: Sequence[int] | None = None) -> Path:
    numbers = np.asarray(vectors, np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1])
    chosen = pa.array(range(len(numbers)) if ids is None else ids, pa.int32())
    write_table(path, pa.table({"example_id": chosen, "embedding": column}))
    return path


def write_top_lists(path: Path, rows: Sequence[tuple[int, int, int, float]]) -> Path:
    """Write helpful top lists: (test, rank, example, score) each."""
    tests, ranks, examples, scores = zip(*rows, strict=True)
    columns = {"test_id": tests, "rank": ranks, "example_id": examples}
    table = pa.table({name: pa.array(values, pa.int32()) for name, values in columns.items()})
    table = table.append_column("sign", pa.array(["helpful"] * len(rows)))
    write_table(path, table.append_column("score", pa.array(scores, pa.float32())))
    return path


def write_selection(corpus: Path, path: Path, chosen: list[int]) -> Path:
    """Write a selection of these example ids, best first."""
    taken = read_table(corpus).take(pa.array(chosen))
    columns = {
        "rank": range(1, len(chosen) + 1),
        "example_id": chosen,
        "score": [1 / (place + 1) for place in range(len(chosen))],
        "near_duplicates": [0] * len(chosen),
        **{name: taken[name] for name in ("label", "source_file", "source_row", "hash")},
        "test_id": [7] * len(chosen),
        "test_file": ["tests.jsonl"] * len(chosen),
        "test_row": [8] * len(chosen),
        "reason": [f"reason {example}" for example in chosen],
    }
    write_table(path, pa.table(columns).cast(SELECTION_SCHEMA))
    return path
