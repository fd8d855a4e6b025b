"""Curate a source of a million rows: memory and processor time of each stage, each in a process of its own.

Run: python benchmarks/curation.py [--rows 1000000] [--kept 0.5]

The source is JSON Lines with columns that no stage reads; its embeddings (384 numbers, half precision) are made up.
Both forms are written: JSON Lines and Parquet.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import in_fresh_process, report

TESTS, DIMENSION, WORDS, ROWS_AT_ONCE = 1000, 384, 40, 10_000


def write_source(path: Path, rows: int) -> None:
    """Write rows of some 600 bytes, with columns that aren't read."""
    rng = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        for row in range(rows):
            words = " ".join(f"w{number}" for number in rng.integers(0, 50_000, WORDS))
            own = {"id": row, "meta": {"by": f"u{row % 977}", "votes": [row % 7, row % 5]}, "at": row / 3}
            file.write(
                json.dumps({"prompt": f"{row} {words}?", "response": words[::-1], "label": row % 9, **own}) + "\n"
            )


def write_embeddings(path: Path, rows: int) -> None:
    """Write made-up embeddings."""
    from workflow_scripts.core.parquet import write_batches

    kind = pa.list_(pa.float16(), DIMENSION)
    schema = pa.schema([("example_id", pa.int32()), ("embedding", kind)])

    def tables() -> Iterator[pa.Table]:
        rng = np.random.default_rng(1)
        for start in range(0, rows, ROWS_AT_ONCE):
            number = min(ROWS_AT_ONCE, rows - start)
            numbers = pa.array(rng.normal(size=number * DIMENSION).astype(np.float16))
            column = pa.FixedSizeListArray.from_arrays(numbers, DIMENSION)
            yield pa.table([pa.array(range(start, start + number), pa.int32()), column], schema=schema)

    write_batches(path, schema, tables())


def prepare(source: Path, corpus: Path) -> dict[str, Any]:
    """Read a source into a corpus."""
    from workflow_scripts.corpora.prepare_corpus import prepare_corpus
    from workflow_scripts.study.sections import Corpus

    settings = Corpus(source=str(source)).model_dump(exclude={"without"})
    prepare_corpus(corpus, corpus.with_suffix(".rejected.parquet"), **settings)
    return {}


def make(folder: Path, rows: int) -> dict[str, Any]:
    """Write the source, the tests and their embeddings."""
    from workflow_scripts.core.parquet import write_table

    for name, number in (("rows", rows), ("tests", TESTS)):
        write_source(folder / f"{name}.jsonl", number)
        prepare(folder / f"{name}.jsonl", folder / f"{name}.parquet")
        write_embeddings(folder / f"{name}.embeddings.parquet", number)
    ids = pa.array([list(range(TESTS))], pa.list_(pa.int32()))
    write_table(folder / "validation.parquet", pa.table({"fold": pa.array([0], pa.int32()), "example_ids": ids}))
    return {}


def select(folder: Path, kept: float) -> dict[str, Any]:
    """Select by the mean score, within quotas."""
    from workflow_scripts.curation.select_examples import select_examples
    from workflow_scripts.study.curation_section import Curation

    start = time.process_time()
    select_examples(
        folder / "rows.parquet",
        folder / "tests.parquet",
        folder / "validation.parquet",
        None,
        [folder / "rows.embeddings.parquet"],
        [folder / "tests.embeddings.parquet"],
        folder / "selection.parquet",
        choice=Curation(evaluation="e", rule="mean_score", size=kept, quotas={"*": 0.3}),
        near_duplicate=None,
        seed=0,
        tile_examples=8192,
    )
    return {"stage": "select_examples", "cpu_seconds": time.process_time() - start}


def write(folder: Path, form: str) -> dict[str, Any]:
    """Write the selected rows with their own columns."""
    from workflow_scripts.curation.write_curated import write_curated
    from workflow_scripts.study.sections import Corpus

    start = time.process_time()
    paths = [folder / "selection.parquet", folder / "rows.parquet", None, folder / f"chosen.{form}"]
    origin = Corpus(source=str(folder / "rows.jsonl"))
    write_curated(*paths, origin=origin, prefix="curation_", form=form, for_review=False)
    return {"stage": f"write_curated ({form})", "cpu_seconds": time.process_time() - start}


def summarize(folder: Path) -> dict[str, Any]:
    """Write the summary."""
    from workflow_scripts.curation.summarize_curation import summarize_curation
    from workflow_scripts.study.curation_section import Curation

    start = time.process_time()
    paths = [folder / "selection.parquet", folder / "rows.parquet", folder / "rows.rejected.parquet"]
    choice = Curation(evaluation="e", rule="mean_score", size=0.5)
    summarize_curation(*paths, folder / "summary.md", name="best", choice=choice)
    return {"stage": "summarize_curation", "cpu_seconds": time.process_time() - start}


def main() -> None:
    """Print and store the peak memory and processor time of each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kept", type=float, default=0.5, help="share of the rows that are selected")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        in_fresh_process(make, folder, given.rows)
        results = [in_fresh_process(select, folder, given.kept)]
        results += [in_fresh_process(write, folder, form) for form in ("jsonl", "parquet")]
        results.append(in_fresh_process(summarize, folder))
        size = (folder / "rows.jsonl").stat().st_size / 2**20
    report("curation", results, source_rows=given.rows, kept=given.kept, source_mib=size)


if __name__ == "__main__":
    main()
