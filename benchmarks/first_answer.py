"""Processor time of the first answer of `workflow_scripts.attribute`, from the start of Python, over stored embeddings.

Run: python benchmarks/first_answer.py [--rows 100000] [--against CHECKOUT]

The encoder is one of GTE-Small's shape (12 layers of 384) with random weights; the embeddings of the corpus are its own
for the first rows and made up for the others. CHECKOUT is the project at another commit.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from harness import report

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, DIMENSION, EMBEDDED = 3, 384, 256
QUERY = ["--query", "What is the sum of 3 and 4?", "--response", "It is 7.", "--top", "5"]


def make(folder: Path, rows: int) -> None:
    """Write an encoder, a corpus and its embeddings."""
    from workflow_scripts.core.files import folder_hash
    from workflow_scripts.core.parquet import read_table, write_table
    from workflow_scripts.corpora.tables import CORPUS_SCHEMA
    from workflow_scripts.corpora.templates import encoder_texts
    from workflow_scripts.encoder.init_encoder import small_encoder, wordpiece_tokenizer

    numbers = range(rows)
    columns = {
        "example_id": numbers,
        "prompt": [f"What is the sum of {number} and {number % 7}?" for number in numbers],
        "response": [f"It is {number + number % 7}." for number in numbers],
        "messages": [None] * rows,
        "label": [str(number % 7) for number in numbers],
        "source_row": [number + 1 for number in numbers],
        "source_file": ["rows.jsonl"] * rows,
        "hash": [f"{number:016x}" for number in numbers],
    }
    write_table(folder / "corpus.parquet", pa.table(columns, schema=CORPUS_SCHEMA))
    texts = encoder_texts(read_table(folder / "corpus.parquet").slice(0, 2000), 256, "joint")
    model = small_encoder(wordpiece_tokenizer(texts, 2000), "joint", DIMENSION, 512, 384, 12, 1)
    model.save(folder / "encoder")
    vectors = np.random.default_rng(0).normal(size=(rows, DIMENSION)).astype(np.float16)
    vectors[:EMBEDDED] = model.encode(model.tokenize(texts[:EMBEDDED]))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION)
    ids = pa.array(numbers, pa.int32())
    table = pa.table({"example_id": ids, "hash": columns["hash"], "embedding": column})
    write_table(folder / "embeddings.parquet", table, encoder=folder_hash(folder / "encoder"))


def seconds(folder: Path, checkout: Path, *more: str) -> float:
    """Return the processor time of one command in a new Python of a checkout."""
    files = {"encoder": "encoder", "corpus": "corpus.parquet", "embeddings": "embeddings.parquet"}
    named = [word for option, file in files.items() for word in (f"--{option}", str(folder / file))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "workflow_scripts.attribute", *named, *QUERY, *more],
        check=True,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print and store the least of `ROUNDS` measurements, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--against", type=Path, default=None)
    given = parser.parse_args()
    ways: dict[str, tuple[Path, tuple[str, ...]]] = {"top 5": (ROOT, ()), "by label": (ROOT, ("--by", "label"))}
    if given.against:
        ways["top 5, the other checkout"] = (given.against.resolve(), ())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, given.rows)
        rounds = [{name: seconds(folder, *way[:1], *way[1]) for name, way in ways.items()} for _ in range(ROUNDS)]
    rows = [{"answer": name, "cpu_seconds": min(one[name] for one in rounds)} for name in ways]
    report("first_answer", rows, source_rows=given.rows, rounds=ROUNDS)


if __name__ == "__main__":
    main()
