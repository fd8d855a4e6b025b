"""Unit costs of a corpus of any size, a row: read in, stored, scored, merged. docs/scale.md multiplies them.

All go through the stages' own code. What needs an encoder is measured by benchmarks/encoder.py.
Run: python benchmarks/scale.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import alternate, in_fresh_process, report
from lengths import flan_like_examples
from scoring import DIMENSION, GROWTH_TESTS, SETTINGS, SUBSETS, inputs, random_examples, write_inputs

from workflow_scripts.core.parquet import read_table, write_batches
from workflow_scripts.corpora.prepare_corpus import prepare_corpus
from workflow_scripts.embeddings.cache import StoredEmbeddings
from workflow_scripts.scoring.corpus_scores import CorpusScores
from workflow_scripts.scoring.score_part import score_part
from workflow_scripts.scoring.sources import read_evaluation
from workflow_scripts.scoring.tables import read_part
from workflow_scripts.study.sections import Corpus

ROWS, BLOCK = 100_000, 10_000


def read_corpus(folder: Path) -> dict[str, Any]:
    """Read rows of words, whose lengths are those of real instruction data, as JSONL; time it."""
    vocabulary = 20_000
    random = np.random.default_rng(0)
    letters = random.integers(97, 123, (vocabulary, 4), np.uint8)
    words = np.array([bytes(word).decode() for word in letters])
    with open(folder / "rows.jsonl", "w") as file:
        for example in flan_like_examples(ROWS, vocabulary, 0):
            # Few words are frequent, as in text: else no compression would find anything.
            text = words[(vocabulary * random.random(len(example.tokens)) ** 3).astype(int)]
            prompt, response = text[: example.prompt_tokens], text[example.prompt_tokens :]
            file.write(json.dumps({"prompt": " ".join(prompt), "response": " ".join(response)}) + "\n")
    corpus = folder / "corpus.parquet"
    settings = Corpus(source=str(folder / "rows.jsonl")).model_dump(exclude={"without"})
    seconds = _seconds(lambda: prepare_corpus(corpus, folder / "rejected.parquet", **settings))
    size = {"JSONL": (folder / "rows.jsonl").stat().st_size, "Parquet": corpus.stat().st_size}
    return {"seconds": seconds, **{name: number / ROWS for name, number in size.items()}}


def store_embeddings(folder: Path) -> dict[str, Any]:
    """Write embeddings as `embed_corpus` does, and look all of them up again by hash."""
    corpus = read_table(folder / "corpus.parquet", ["hash"])
    hashes = corpus["hash"].to_pylist()
    schema = pa.schema(
        [("example_id", pa.int32()), ("hash", pa.string()), ("embedding", pa.list_(pa.float16(), DIMENSION))]
    )

    def blocks() -> Any:
        for start in range(0, ROWS, BLOCK):
            values = pa.FixedSizeListArray.from_arrays(random_examples(start, start + BLOCK).ravel(), DIMENSION)
            ids = pa.array(range(start, start + BLOCK), pa.int32())
            yield pa.table([ids, hashes[start : start + BLOCK], values], schema=schema)

    ready = list(blocks())
    path = folder / "embeddings.parquet"
    writing = _seconds(lambda: write_batches(path, schema, ready, key="benchmark"))
    found = np.empty((BLOCK, DIMENSION), np.float16)

    def look_up() -> None:
        stored = StoredEmbeddings([path], "benchmark")
        for start in range(0, ROWS, BLOCK):
            if len(stored.fill(hashes[start : start + BLOCK], found)):
                raise SystemExit("an embedding that was written is not found again")

    return {"write": writing, "look up": _seconds(look_up), "bytes": path.stat().st_size / ROWS}


def score_and_merge(folder: Path) -> dict[str, Any]:
    """Score a part, and merge it into the scores of others."""
    outputs = [folder / "part_scores.parquet", folder / "part_sums.parquet"]
    files = inputs(folder, "train.parquet")
    scoring = _seconds(lambda: score_part(*files, *outputs, part="1", **SETTINGS))
    _, _, membership = read_evaluation(*files[:2])
    result = CorpusScores(GROWTH_TESTS, SETTINGS["top"], membership, SETTINGS["poolings"])
    merging = _seconds(lambda: result.merge(read_part(*outputs, GROWTH_TESTS, SUBSETS)))
    return {"score": scoring, "merge": merging, "bytes": sum(path.stat().st_size for path in outputs)}


def _seconds(work: Any) -> float:
    return alternate({"work": work}, 2)["work"].seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        read = in_fresh_process(read_corpus, folder)
        stored = in_fresh_process(store_embeddings, folder)
        write_inputs(folder, GROWTH_TESTS, ROWS, 0)
        scored = in_fresh_process(score_and_merge, folder)
        footer = pq.read_metadata(folder / "corpus.parquet")
    pairs = ROWS * GROWTH_TESTS
    rows = [
        {"cost": "read JSONL into corpora/, rows/s", "value": ROWS / read["seconds"]},
        {"cost": "JSONL, bytes a row", "value": read["JSONL"]},
        {"cost": "corpora/, bytes a row", "value": read["Parquet"]},
        {"cost": "corpora/, footer bytes a row", "value": footer.serialized_size / ROWS},
        {"cost": f"embeddings/ of {DIMENSION} numbers, bytes a row", "value": stored["bytes"]},
        {"cost": "write embeddings, rows/s", "value": ROWS / stored["write"]},
        {"cost": "find stored embeddings by hash, rows/s", "value": ROWS / stored["look up"]},
        {"cost": "score, million pairs/s", "value": pairs / scored["score"] / 1e6},
        {"cost": "score, MiB of memory", "value": scored["peak_mib"]},
        {"cost": f"a part's scores of {GROWTH_TESTS} tests, {SUBSETS} subsets, MB", "value": scored["bytes"] / 1e6},
        {"cost": "merge a part, s", "value": scored["merge"]},
    ]
    report("scale", rows, rows_measured=ROWS, tests=GROWTH_TESTS, subsets=SUBSETS)


if __name__ == "__main__":
    main()
