"""Load of `workflow_scripts.serve`: response times of clients that ask without pause, and memory.

Run: python benchmarks/serve.py [--rows 100000] [--seconds 60] [--layers 0 12] [--large 1000000]

Each client sends one query of 30 words after the other, no two the same, as the page does: 10 helpful and 10 harmful
cards, rows that say the same folded. The clients run on the same cores as the server. Encoders have GTE-Small's width
and random weights, with as many layers as asked for; the corpus is made of random words. The same requests answered one
by one in this process, without HTTP and without others that wait, are the floor. Memory is what the server holds beyond
the pages of mapped files (RssAnon), at its highest from its start on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import report

ROOT = Path(__file__).resolve().parents[1]
CLIENTS, ALONE, DIMENSION, EMBEDDED, BATCH = 20, 100, 384, 256, 50_000
WORDS = [f"{first}{second}{third}" for first in "bcdfglmnprst" for second in "aeiou" for third in "bdklmnrstz"]
FILES = {"encoder": "encoder", "corpus": "corpus.parquet", "embeddings": "embeddings.parquet"}


def words(rng: np.random.Generator, texts: int, length: int) -> list[str]:
    """Return texts of random words."""
    return [" ".join(WORDS[place] for place in row) for row in rng.integers(0, len(WORDS), (texts, length))]


def make(folder: Path, rows: int, layers: int) -> None:
    """Write an encoder, a corpus and its embeddings: the encoder's own for the first rows, made up for the others."""
    from workflow_scripts.core.files import folder_hash
    from workflow_scripts.core.parquet import read_table, write_batches
    from workflow_scripts.corpora.tables import CORPUS_SCHEMA
    from workflow_scripts.corpora.templates import encoder_texts
    from workflow_scripts.encoder.init_encoder import small_encoder, wordpiece_tokenizer

    def corpus() -> Iterator[pa.Table]:
        rng = np.random.default_rng(0)
        for start in range(0, rows, BATCH):
            numbers = range(start, min(start + BATCH, rows))
            columns = {
                "example_id": numbers,
                "prompt": words(rng, len(numbers), 30),
                "response": words(rng, len(numbers), 30),
                "messages": [None] * len(numbers),
                "label": [str(number % 7) for number in numbers],
                "source_row": [number + 1 for number in numbers],
                "source_file": ["rows.jsonl"] * len(numbers),
                "hash": [f"{number:016x}" for number in numbers],
            }
            yield pa.table(columns, schema=CORPUS_SCHEMA)

    def embeddings() -> Iterator[pa.Table]:
        rng = np.random.default_rng(1)
        for start in range(0, rows, BATCH):
            numbers = range(start, min(start + BATCH, rows))
            vectors = rng.standard_normal((len(numbers), DIMENSION), np.float32).astype(np.float16)
            if not start:
                vectors[:EMBEDDED] = model.encode(model.tokenize(texts[:EMBEDDED]), 16384)
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION)
            hashes = [f"{number:016x}" for number in numbers]
            yield pa.table({"example_id": pa.array(numbers, pa.int32()), "hash": hashes, "embedding": column})

    write_batches(folder / "corpus.parquet", CORPUS_SCHEMA, corpus())
    texts = encoder_texts(read_table(folder / "corpus.parquet").slice(0, 2000), 256, "joint")
    model = small_encoder(wordpiece_tokenizer(texts, 2000), "joint", DIMENSION, 512, 384, layers, 1)
    model.save(folder / "encoder")
    schema = pa.schema(
        [("example_id", pa.int32()), ("hash", pa.string()), ("embedding", pa.list_(pa.float16(), DIMENSION))]
    )
    write_batches(folder / "embeddings.parquet", schema, embeddings(), None, encoder=folder_hash(folder / "encoder"))


class Memory(threading.Thread):
    """Watches how much memory a process holds beyond the pages of mapped files, in MiB."""

    def __init__(self, process: int):
        super().__init__(daemon=True)
        self.status, self.most = Path(f"/proc/{process}/status"), 0.0

    def run(self) -> None:
        try:
            while found := re.search(r"RssAnon:\s+(\d+)", self.status.read_text()):
                self.most = max(self.most, int(found.group(1)) / 1024)
                time.sleep(0.05)
        except OSError:
            pass


@contextmanager
def server(folder: Path) -> Iterator[tuple[int, Memory, subprocess.Popen[str]]]:
    """Yield the port of a server of a folder's files, its memory and its process."""
    named = [word for option, file in FILES.items() for word in (f"--{option}", str(folder / file))]
    with subprocess.Popen(
        [sys.executable, "-m", "workflow_scripts.serve", *named, "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        memory = Memory(process.pid)
        memory.start()
        assert process.stderr
        said = []
        for line in iter(process.stderr.readline, ""):
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                break
        else:
            raise SystemExit("".join(said))
        try:
            yield int(found.group(1)), memory, process
        finally:
            process.terminate()


def body(prompt: str) -> dict[str, Any]:
    return {"queries": [{"prompt": prompt[: len(prompt) // 2], "response": prompt[len(prompt) // 2 :]}], "fold": True}


def ask(port: int, seconds: float) -> tuple[list[float], int]:
    """Return the seconds that each request took, and how many failed."""
    took: list[float] = []
    failed: list[str] = []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        # The warm-up asks other queries: the server remembers what it has embedded.
        rng = np.random.default_rng((number, round(1e6 * end)))
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < end:
            asked = json.dumps(body(words(rng, 1, 30)[0]))
            start = time.perf_counter()
            try:
                connection.request("POST", "/api/attribute", asked, {"content-type": "application/json"})
                answer = connection.getresponse()
                told = answer.read()
            except OSError as error:
                failed.append(str(error))
                connection = HTTPConnection("127.0.0.1", port, timeout=60)
                continue
            took.append(time.perf_counter() - start)
            if answer.status != 200 or told.count(b'"sign"') != 20:
                failed.append(f"{answer.status}: {told[:100]!r}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took, len(failed)


def alone(folder: Path) -> list[float]:
    """Return the seconds that each request takes in this process."""
    from workflow_scripts.search.embedded import embedded_corpus
    from workflow_scripts.search.mapped import mapped_corpus
    from workflow_scripts.search.query import Query
    from workflow_scripts.serve.answers import Answerer, Request
    from workflow_scripts.serve.schemas import Asked

    rng = np.random.default_rng(2)
    took = []
    with (
        embedded_corpus(
            str(folder / "encoder"), folder / "corpus.parquet", folder / "embeddings.parquet", without_torch=True
        ) as embedded,
        mapped_corpus(folder / "corpus.parquet", embedded.embeddings) as mapped,
    ):
        answerer = Answerer(embedded, mapped)
        for text in words(rng, ALONE, 30):
            asked = Asked(**body(text))
            start = time.perf_counter()
            answerer.answer([Request([Query(one.prompt, one.response) for one in asked.queries], asked)])
            took.append(time.perf_counter() - start)
    return took


def cpu_seconds(process: int) -> float:
    parts = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def measure(folder: Path, rows: int, layers: int, seconds: float) -> dict[str, Any]:
    """Return one row of the table."""
    make(folder, rows, layers)
    floor = alone(folder)
    with server(folder) as (port, memory, process):
        ask(port, 1)
        before = cpu_seconds(process.pid)
        took, failed = ask(port, seconds)
        used = cpu_seconds(process.pid) - before
    times = np.percentile(took, [50, 95, 99])
    bare = np.percentile(floor, [50, 95])
    return {
        "rows": rows,
        "layers": layers,
        "requests": len(took),
        "errors": failed,
        "a second": len(took) / seconds,
        "p50 ms": 1000 * times[0],
        "p95 ms": 1000 * times[1],
        "p99 ms": 1000 * times[2],
        "one alone p50 ms": 1000 * bare[0],
        "one alone p95 ms": 1000 * bare[1],
        "ratio of p95": times[1] / bare[1],
        "server cpu ms a request": 1000 * used / len(took),
        "memory MiB": memory.most,
    }


def main() -> None:
    """Print and store the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 12])
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of the case for memory; 0 for none")
    given = parser.parse_args()
    cases = [(given.rows, layers, given.seconds) for layers in given.layers]
    cases += [(given.large, given.layers[0], 10.0)] if given.large else []
    rows = []
    for case in cases:
        with tempfile.TemporaryDirectory() as temporary:
            rows.append(measure(Path(temporary), *case))
    report("serve", rows, clients=CLIENTS, load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
