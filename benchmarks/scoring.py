"""Scoring: one pass over tiles beside the bare matrix product and beside two plain ways.

Run: python benchmarks/scoring.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from harness import Timing, alternate, in_fresh_process, report

from workflow_scripts.lib.group_scores import Membership
from workflow_scripts.lib.tables import write_batches
from workflow_scripts.lib.tiles import CorpusScores
from workflow_scripts.methods.embeddings import embedding_tiles, inner_products

DIMENSION, TOP, SUBSETS, SUBSET_EXAMPLES, TILE = 384, 50, 100, 1000, 8192
TESTS, EXAMPLES = 500, 100_000
LOOPED_TESTS = 25  # The plain ways are run for so many tests; their time is proportional to the tests.
GROWTH_TESTS, GROWTH_EXAMPLES, PARTS = 1000, (250_000, 500_000, 1_000_000), 8
ROUNDS = 7


def random_tests(tests: int) -> np.ndarray:
    """Return embeddings float32 [tests, DIMENSION] whose scores have a standard deviation of about 2."""
    return np.random.default_rng(1).standard_normal((tests, DIMENSION), np.float32) / 10


def random_examples(start: int, stop: int) -> np.ndarray:
    """Return embeddings float16 [stop - start, DIMENSION]."""
    return np.random.default_rng(start).standard_normal((stop - start, DIMENSION), np.float32).astype(np.float16)


def random_subsets(examples: int) -> list[np.ndarray]:
    """Return the ids of the members of each subset."""
    generator = np.random.default_rng(2)
    return [generator.choice(examples, SUBSET_EXAMPLES, replace=False) for _ in range(SUBSETS)]


def score(tests: np.ndarray, tiles: Iterator[tuple[np.ndarray, torch.Tensor]], membership: Membership) -> CorpusScores:
    """Return top lists and group scores, the fast way."""
    scores = CorpusScores(len(tests), TOP, membership, ("attention",))
    scores.add_tiles(tiles, inner_products(tests))
    return scores


def tiles_in_memory(examples: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield tiles of float16 embeddings that are in memory already."""
    for start in range(0, len(examples), TILE):
        tile = examples[start : start + TILE]
        yield np.arange(start, start + len(tile)), torch.from_numpy(tile)


def dense_matrix_and_loop(tests: np.ndarray, examples: np.ndarray, subsets: list[np.ndarray]) -> list[Any]:
    """Score the plain way: a dense matrix, then a loop over tests and subsets."""
    results = []
    for scores in tests @ examples.T:
        order = np.argsort(scores)
        groups = [pooled(scores[subset]) for subset in subsets]
        results.append((order[::-1][:TOP], order[:TOP], groups))
    return results


def pair_by_pair(tests: np.ndarray, examples: np.ndarray, subsets: list[np.ndarray]) -> list[Any]:
    """Score the plainest way: one similarity per test and subset, from the members' embeddings."""
    results = []
    for test in tests:
        order = np.argsort(examples @ test)
        groups = [pooled(examples[subset] @ test) for subset in subsets]
        results.append((order[::-1][:TOP], order[:TOP], groups))
    return results


def pooled(scores: np.ndarray) -> float:
    """Return the group score of members' scores, float32 [members]."""
    magnitudes = np.abs(scores)
    weights = np.exp(magnitudes - magnitudes.max())
    return float((weights * scores).sum() / weights.sum())


def compare_ways() -> dict[str, Any]:
    """Time the fast way, the bare matrix product and the plain ways in turns; check that they agree."""
    tests, stored = random_tests(TESTS), random_examples(0, EXAMPLES)
    examples, subsets = stored.astype(np.float32), random_subsets(EXAMPLES)
    membership, few = Membership(subsets), tests[:LOOPED_TESTS]
    dense, tile = np.empty((TESTS, EXAMPLES), np.float32), np.empty((TILE, TESTS), np.float32)

    def product_in_tiles() -> None:
        for start in range(0, EXAMPLES, TILE):
            block = examples[start : start + TILE]
            np.matmul(block, tests.T, out=tile[: len(block)])

    timings = alternate(
        {
            "matrix product, dense": lambda: np.matmul(tests, examples.T, out=dense),
            "matrix product, in tiles": product_in_tiles,
            "fast": lambda: score(tests, tiles_in_memory(stored), membership),
        },
        ROUNDS,
    )
    plain = alternate(
        {
            "dense matrix and loop": lambda: dense_matrix_and_loop(few, examples, subsets),
            "pair by pair": lambda: pair_by_pair(few, examples, subsets),
        },
        2,
    )
    scale = TESTS / LOOPED_TESTS
    timings |= {name: Timing(one.seconds * scale, one.cpu_seconds * scale) for name, one in plain.items()}
    check(score(tests, tiles_in_memory(stored), membership), dense_matrix_and_loop(few, examples, subsets))
    return {"timings": timings}


def check(found: CorpusScores, expected: list[Any]) -> None:
    """Raise unless the fast way's results are the plain way's."""
    helpful, harmful = found.top("helpful")[0], found.top("harmful")[0]
    for test, (best, worst, groups) in enumerate(expected):
        np.testing.assert_array_equal(helpful[test], best)
        np.testing.assert_array_equal(harmful[test], worst)
        np.testing.assert_allclose(found.groups("attention")[test], groups, rtol=1e-4, atol=1e-4)


def score_file(path: Path, tests: int, examples: int) -> dict[str, Any]:
    """Score embeddings on disk, as the stage does."""
    membership, queries = Membership(random_subsets(examples)), random_tests(tests)
    timings = alternate({"fast": lambda: score(queries, embedding_tiles(path, TILE), membership)}, 3)
    return {"timing": timings["fast"]}


def score_in_parts(path: Path, tests: int, examples: int) -> dict[str, Any]:
    """Score embeddings whole and in parts; raise unless both give the same results."""
    membership, queries = Membership(random_subsets(examples)), random_tests(tests)
    whole = score(queries, embedding_tiles(path, TILE), membership)
    merged = CorpusScores(tests, TOP, membership, ("attention",))
    bounds = np.linspace(0, examples, PARTS + 1).astype(int)
    for low, high in pairwise(bounds):
        part = (
            (ids[kept], tile[torch.from_numpy(kept)])
            for ids, tile in embedding_tiles(path, TILE)
            if (kept := (ids >= low) & (ids < high)).any()
        )
        merged.merge(score(queries, part, membership))
    for sign in ("helpful", "harmful"):
        np.testing.assert_array_equal(whole.top(sign)[0], merged.top(sign)[0])
        np.testing.assert_allclose(whole.top(sign)[1], merged.top(sign)[1], rtol=1e-6)
    difference = np.abs(whole.groups("attention") - merged.groups("attention")).max()
    np.testing.assert_allclose(whole.groups("attention"), merged.groups("attention"), rtol=1e-6, atol=1e-6)
    return {"largest_group_difference": float(difference)}


def write_examples(path: Path, examples: int) -> None:
    """Write random embeddings the way `embed_corpus` stores them."""
    schema = pa.schema([("example_id", pa.int32()), ("embedding", pa.list_(pa.float16(), DIMENSION))])

    def tables() -> Iterator[pa.Table]:
        for start in range(0, examples, 2 * TILE):
            stop = min(start + 2 * TILE, examples)
            values = pa.FixedSizeListArray.from_arrays(random_examples(start, stop).ravel(), DIMENSION)
            yield pa.table([pa.array(range(start, stop), pa.int32()), values], schema=schema)

    write_batches(path, schema, tables())


def main() -> None:
    """Run all cases, each in a process of its own, and write the results."""
    ways = in_fresh_process(compare_ways)["timings"]
    bare = min((one for name, one in ways.items() if name.startswith("matrix product")), key=lambda one: one.seconds)
    rows = [
        {**_row(name, TESTS, EXAMPLES, timing), "times the matrix product": timing.seconds / bare.seconds}
        for name, timing in ways.items()
    ]
    growth = []
    with tempfile.TemporaryDirectory() as folder:
        for tests, examples in [(TESTS, EXAMPLES), *((GROWTH_TESTS, size) for size in GROWTH_EXAMPLES)]:
            path = Path(folder) / f"{examples}.parquet"
            write_examples(path, examples)
            found = in_fresh_process(score_file, path, tests, examples)
            row = _row("fast, from disk", tests, examples, found["timing"])
            growth.append({**row, "peak MiB": found["peak_mib"]})
        parts = in_fresh_process(score_in_parts, path, tests, examples)
    fast, loop, pairs = (ways[name] for name in ("fast", "dense matrix and loop", "pair by pair"))
    first, last = growth[1], growth[-1]
    report(
        "scoring",
        rows + growth,
        matrix_rate_gflops=2e-9 * TESTS * EXAMPLES * DIMENSION / bare.seconds,
        fast_over_matrix_product=fast.seconds / bare.seconds,
        fast_over_matrix_product_cpu=fast.cpu_seconds / bare.cpu_seconds,
        dense_loop_over_fast=loop.seconds / fast.seconds,
        pair_by_pair_over_fast=pairs.seconds / fast.seconds,
        us_per_example_1m_over_250k=last["us per example"] / first["us per example"],
        cpu_us_per_example_1m_over_250k=last["cpu us per example"] / first["cpu us per example"],
        parts=PARTS,
        parts_same_top_lists=True,
        parts_largest_group_difference=parts["largest_group_difference"],
        scaled=f"the plain ways were run for {LOOPED_TESTS} of the {TESTS} tests, and their seconds scaled up",
    )


def _row(way: str, tests: int, examples: int, timing: Timing) -> dict[str, Any]:
    return {
        "way": way,
        "tests x examples": f"{tests} x {examples}",
        "seconds": timing.seconds,
        "cpu seconds": timing.cpu_seconds,
        "us per example": 1e6 * timing.seconds / examples,
        "cpu us per example": 1e6 * timing.cpu_seconds / examples,
    }


if __name__ == "__main__":
    main()
