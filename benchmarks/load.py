"""Sizes of the paper's study and beyond, through the real writers and readers: memory and time.

Run: python benchmarks/load.py

Three cases, each in a process of its own: 10 million targets collected and trained on for some steps; 1 million
corpus rows prepared, embedded (by a stub model) and scored; 1,000 jobs that end at once on a slow shared disk.
`--scale 0.01` runs a hundredth of it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import in_fresh_process, report

FOLDS, SUBSETS, EVALUATED = 100, 100, 1000  # 10 million targets, as in the paper
POOL, SUBSET_EXAMPLES, WORDS = 100_000, 1000, 12
ROWS, TESTS = 1_000_000, 100
JOBS, LATENCY_SECONDS = 1000, 0.2
STEPS, MAX_GIB = 3, 6.0


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_blocks(folder: Path, folds: int, evaluated: int) -> list[Path]:
    """Write made-up losses as fine-tuning jobs do, one block per fold."""
    from workflow_scripts.core.parquet import write_batches
    from workflow_scripts.targets.finetune_shard import SCHEMA

    def runs(fold: int) -> Iterator[pa.Table]:
        random = np.random.default_rng(fold)
        tests = random.choice(POOL, evaluated, replace=False).astype(np.int32)
        base = random.normal(3, 1, evaluated).astype(np.float32)
        for index in range(SUBSETS):
            loss = base - random.normal(0.1, 0.1, evaluated).astype(np.float32)
            numbers = {name: np.full(evaluated, value, np.int32) for name, value in (("fold", fold), ("index", index))}
            yield pa.table(
                {
                    **numbers,
                    "seed": np.zeros(evaluated, np.int32),
                    "example_id": tests,
                    "base_loss": base,
                    "loss": loss,
                    "status": ["ok"] * evaluated,
                },
                schema=SCHEMA,
            )

    paths = [folder / f"f{fold:04d}_s0000.parquet" for fold in range(folds)]
    for fold, path in enumerate(paths):
        write_batches(path, SCHEMA, runs(fold), key="load")
    return paths


def write_subsets(path: Path, folds: int) -> None:
    """Write who is in which subset."""
    from workflow_scripts.core.parquet import write_batches
    from workflow_scripts.targets.sample_subsets import SCHEMA

    def tables() -> Iterator[pa.Table]:
        for fold in range(folds):
            random = np.random.default_rng((fold, 1))
            members = [random.choice(POOL, SUBSET_EXAMPLES, replace=False).astype(np.int32) for _ in range(SUBSETS)]
            numbers = {"fold": [fold] * SUBSETS, "subset": [fold * SUBSETS + index for index in range(SUBSETS)]}
            yield pa.table({**numbers, "example_ids": members}, schema=SCHEMA)

    write_batches(path, SCHEMA, tables())


def write_source(path: Path, rows: int) -> None:
    """Write a corpus as JSON Lines."""
    random = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        for row in range(rows):
            words = " ".join(f"w{number}" for number in random.integers(0, 5000, WORDS))
            file.write(json.dumps({"prompt": f"{row} {words}?", "response": words[::-1]}) + "\n")


def prepare(source: Path, corpus: Path) -> None:
    """Prepare a corpus as the stage does."""
    from workflow_scripts.corpora.prepare_corpus import prepare_corpus
    from workflow_scripts.study.sections import Corpus

    settings = Corpus(source=str(source)).model_dump(exclude={"without"})
    prepare_corpus(corpus, corpus.with_suffix(".rejected.parquet"), **settings)


def make_encoder(corpus: Path, folder: Path) -> None:
    """Write the smallest encoder there is: words without their context."""
    from workflow_scripts.core.parquet import read_batches
    from workflow_scripts.corpora.templates import encoder_texts
    from workflow_scripts.encoder.init_encoder import small_encoder, wordpiece_tokenizer

    first = pa.Table.from_batches([next(read_batches(corpus, 2000, ["prompt", "response"]))])
    texts = encoder_texts(first, 256, "joint")
    small_encoder(wordpiece_tokenizer(texts, 2000), "joint", 64, 64, 64, 0, 1).save(folder)


def targets_case(folder: Path, scale: float) -> dict[str, Any]:
    """Collect the targets of all folds, and train on them for some steps."""
    from workflow_scripts.encoder.train_encoder import train_encoder
    from workflow_scripts.study.sections import EncoderTraining
    from workflow_scripts.targets.collect_targets import collect_targets

    folds, evaluated = max(round(FOLDS * scale), 4), EVALUATED
    blocks = write_blocks(folder / "train", folds, evaluated)
    write_subsets(folder / "subsets.parquet", folds)
    sizes = {"folds": folds, "subsets_per_fold": SUBSETS, "seeds": 1, "max_diverged_share": 0.0}
    collecting = timed(lambda: collect_targets(blocks, folder / "targets.parquet", **sizes))
    write_source(folder / "train.jsonl", POOL)
    prepare(folder / "train.jsonl", folder / "corpus.parquet")
    make_encoder(folder / "corpus.parquet", folder / "untrained")
    training = timed(
        lambda: train_encoder(
            corpus=folder / "corpus.parquet",
            untrained=folder / "untrained",
            subsets=folder / "subsets.parquet",
            targets=folder / "targets.parquet",
            encoder=folder / "encoder",
            log=folder / "log.parquet",
            training=EncoderTraining(
                steps=STEPS,
                learning_rate=1e-3,
                warmup_steps=1,
                learned_scale=True,
                validation_folds=1,
                validate_every=STEPS,
                chunk_tokens=16384,
            ),
            prompt_words=256,
            max_tokens=64,
            seed=1,
        )
    )
    return {
        "what": f"{folds * SUBSETS * evaluated:,} targets",
        "collect seconds": collecting,
        f"{STEPS} steps seconds": training,
        "MiB on disk": (folder / "targets.parquet").stat().st_size / 2**20,
    }


def corpus_case(folder: Path, scale: float) -> dict[str, Any]:
    """Prepare, embed and score a long corpus; the encoder's forward pass is a stub."""
    from workflow_scripts.embeddings.embed_corpus import embed_corpus
    from workflow_scripts.embeddings.tiles import embedding_tiles, inner_products
    from workflow_scripts.encoder.model import AttributionEncoder
    from workflow_scripts.scoring.corpus_scores import CorpusScores
    from workflow_scripts.scoring.group_scores import Membership

    rows = round(ROWS * scale)
    write_source(folder / "pool.jsonl", rows)
    corpus, embeddings = folder / "pool.parquet", folder / "embeddings.parquet"
    preparing = timed(lambda: prepare(folder / "pool.jsonl", corpus))
    make_encoder(corpus, folder / "untrained")

    def stub(self: AttributionEncoder, examples: list, max_batch_tokens: int, precision: str = "float32") -> np.ndarray:
        return np.random.default_rng(len(examples)).standard_normal((len(examples), self.dimension), np.float32)

    AttributionEncoder.encode = stub
    spec = {"prompt_words": 256, "max_tokens": 64, "chunk_tokens": 16384, "precision": "float32"}
    embedding = timed(
        lambda: embed_corpus(corpus, folder / "untrained", embeddings, embedding_precision="float16", **spec)
    )
    random = np.random.default_rng(1)
    membership = Membership([random.choice(rows, min(1000, rows), replace=False) for _ in range(100)])
    tests = random.standard_normal((TESTS, 64), np.float32)
    scores = CorpusScores(TESTS, 50, membership, ("attention",))
    scoring = timed(lambda: scores.add_tiles(embedding_tiles(embeddings, 8192), inner_products(tests)))
    assert np.isfinite(scores.groups("attention")).all()
    return {
        "what": f"{rows:,} corpus rows",
        "prepare seconds": preparing,
        "embed seconds": embedding,
        f"score {TESTS} tests seconds": scoring,
    }


def jobs_case(folder: Path, scale: float) -> dict[str, Any]:
    """End many jobs at once where every sync and rename takes long; nothing may be lost."""
    from workflow_scripts.core.parquet import read_table
    from workflow_scripts.targets.finetune_shard import SCHEMA
    from workflow_scripts.targets.run_cache import FinishedRuns

    replace, sync = os.replace, os.fsync

    def slow(function: Callable[..., object]) -> Callable[..., object]:
        def late(*arguments: object, **words: object) -> object:
            time.sleep(LATENCY_SECONDS)
            return function(*arguments, **words)

        return late

    jobs = max(round(JOBS * scale), 10)

    def job(number: int) -> None:
        losses = FinishedRuns(folder / f"{number:04d}.parquet", "load", SCHEMA.names[:3])
        for index in range(2):
            columns = {name: np.full(20, value) for name, value in zip(SCHEMA.names, (number, index, 0), strict=False)}
            others = {"example_id": np.arange(20), "base_loss": np.ones(20), "loss": np.full(20, number + index / 2)}
            table = pa.table({**columns, **others, "status": ["ok"] * 20}).cast(SCHEMA)
            losses.add((number, index, 0), table)
        losses.publish([(number, index, 0) for index in range(2)], SCHEMA)

    os.replace, os.fsync = slow(replace), slow(sync)
    try:
        with ThreadPoolExecutor(jobs) as pool:
            ending = timed(lambda: list(pool.map(job, range(jobs))))
    finally:
        os.replace, os.fsync = replace, sync
    lost = 0
    for number in range(jobs):
        table = read_table(folder / f"{number:04d}.parquet")
        lost += table["loss"].to_pylist() != [number + index / 2 for index in range(2) for _ in range(20)]
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    if lost or left:
        raise RuntimeError(f"{lost} of {jobs} jobs lost results, and {len(left)} temporary files stayed")
    return {
        "what": f"{jobs:,} jobs at once, {LATENCY_SECONDS:g} s a sync or rename",
        "seconds": ending,
        "lost": lost,
    }


def main() -> None:
    """Run all cases, each in a process of its own, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sizes (default: 1)")
    scale = parser.parse_args().scale
    rows = []
    for case in (targets_case, corpus_case, jobs_case):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(in_fresh_process(case, Path(folder), scale))
            if rows[-1]["peak_mib"] > 1024 * MAX_GIB:
                raise RuntimeError(f"{case.__name__} took more than {MAX_GIB:g} GiB")
    report("load", rows, scale=scale)


if __name__ == "__main__":
    main()
