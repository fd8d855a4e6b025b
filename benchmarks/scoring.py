"""Scoring: one pass over tiles beside the bare matrix product and two plain ways; its growth; and in parts.

Run: python benchmarks/scoring.py [--only ways]  (five minutes on two cores; only the comparison: one)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import Timing, alternate, in_fresh_process, report

from workflow_scripts.core.parquet import read_table, write_batches, write_table
from workflow_scripts.embeddings.tiles import inner_products
from workflow_scripts.scoring.corpus_scores import CorpusScores
from workflow_scripts.scoring.group_scores import Membership
from workflow_scripts.scoring.merge_scores import merge_scores
from workflow_scripts.scoring.score_pairs import score_pairs
from workflow_scripts.scoring.score_part import score_part

DIMENSION, TOP, SUBSETS, SUBSET_EXAMPLES, TILE = 384, 50, 100, 1000, 8192
OF_STUDY = {"method": "airrep", "poolings": ["attention"]}
SETTINGS = {**OF_STUDY, "top": TOP, "tile_examples": TILE}
TESTS, EXAMPLES = 500, 100_000
LOOPED_TESTS = 25  # The plain ways are run for so many tests; their time is proportional to the tests.
GROWTH_TESTS, GROWTH_EXAMPLES, PARTS = 1000, (250_000, 500_000, 1_000_000), 8
ROUNDS = 5


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


def score(tests: np.ndarray, tiles: Iterator[tuple[np.ndarray, np.ndarray]], membership: Membership) -> CorpusScores:
    """Return top lists and group scores, the fast way."""
    scores = CorpusScores(len(tests), TOP, membership, ("attention",))
    scores.add_tiles(tiles, inner_products(tests))
    return scores


def tiles_in_memory(examples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield tiles of float16 embeddings that are in memory already."""
    for start in range(0, len(examples), TILE):
        tile = examples[start : start + TILE]
        yield np.arange(start, start + len(tile)), tile


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


def score_file(folder: Path) -> dict[str, Any]:
    """Time the stage on the files in `folder`."""
    files = inputs(folder, "train.parquet")
    outputs = [folder / "scores.parquet", folder / "groups.parquet"]

    def run() -> None:
        score_pairs(*corpora(folder), *files, *outputs, evaluation="benchmark", seed=0, **SETTINGS)

    return {"timing": alternate({"fast": run}, 2)["fast"]}


def score_in_parts(folder: Path) -> dict[str, Any]:
    """Time the stages that score a corpus in parts; raise unless they write what the whole gave."""
    names = range(PARTS)
    scores, sums = ([folder / f"{kind}.{part}.parquet" for part in names] for kind in ("scores", "sums"))
    merged = [folder / "merged_scores.parquet", folder / "merged_groups.parquet"]

    def run() -> None:
        for part in names:
            files = inputs(folder, f"train.{part}.parquet")
            score_part(*files, scores[part], sums[part], part=str(part), **SETTINGS)
        subsets, validation, *_ = inputs(folder, "train.parquet")
        evaluation = [*corpora(folder), subsets, validation]
        merge_scores(*evaluation, scores, sums, *merged, **OF_STUDY, evaluation="benchmark", top=TOP)

    timing = alternate({"parts": run}, 1)["parts"]
    largest = 0.0
    for name, path in zip(("scores", "groups"), merged, strict=True):
        whole, parts = read_table(folder / f"{name}.parquet"), read_table(path)
        if not whole.drop_columns("score").equals(parts.drop_columns("score")):
            raise SystemExit(f"{name} of parts are other rows than those of the whole")
        difference = np.abs(whole["score"].to_numpy() - parts["score"].to_numpy()).max()
        largest = max(largest, float(difference))
    return {"timing": timing, "largest_difference": largest}


def corpora(folder: Path) -> tuple[Path, Path]:
    """Return the corpora of which scoring reads where the rows of the top lists stand."""
    return folder / "corpus.parquet", folder / "tests.parquet"


def inputs(folder: Path, train: str) -> tuple[Path, Path, Path, list[Path]]:
    """Return the files that scoring reads: subsets, validation, embeddings of the training corpus and the tests."""
    return folder / "subsets.parquet", folder / "validation.parquet", folder / train, [folder / "test.parquet"]


def write_inputs(folder: Path, tests: int, examples: int, parts: int) -> None:
    """Write random embeddings the way `embed_corpus` stores them, whole and in parts, and an evaluation."""
    ids = pa.list_(pa.int32())
    subsets = {"fold": [0] * SUBSETS, "subset": range(SUBSETS), "example_ids": pa.array(random_subsets(examples), ids)}
    write_table(folder / "subsets.parquet", pa.table(subsets))
    write_table(folder / "validation.parquet", pa.table({"fold": [0], "example_ids": pa.array([range(tests)], ids)}))
    write_table(folder / "test.parquet", embeddings_table(0, random_tests(tests)))
    for path, rows in zip(corpora(folder), (examples, tests), strict=True):
        where = {"source_file": ["rows.jsonl"] * rows, "source_row": np.arange(1, rows + 1)}
        write_table(path, pa.table(where))
    starts = range(0, examples, 2 * TILE)
    files = {"train": starts} | {f"train.{part}": starts[part::parts] for part in range(parts)}
    for name, chosen in files.items():
        tables = (embeddings_table(i, random_examples(i, min(i + 2 * TILE, examples))) for i in chosen)
        write_batches(folder / f"{name}.parquet", embeddings_table(0, random_examples(0, 1)).schema, tables)


def embeddings_table(start: int, embeddings: np.ndarray) -> pa.Table:
    """Return embeddings [examples, DIMENSION] of consecutive ids as a table, in half precision."""
    ids = pa.array(range(start, start + len(embeddings)), pa.int32())
    values = pa.array(embeddings.astype(np.float16).ravel())
    return pa.table({"example_id": ids, "embedding": pa.FixedSizeListArray.from_arrays(values, DIMENSION)})


def main() -> None:
    """Run all cases, each in a process of its own, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["ways", "growth"], help="one of the two benchmarks")
    only = parser.parse_args().only
    if only != "growth":
        report_ways()
    if only != "ways":
        report_growth()


def report_ways() -> None:
    """Compare the fast way with the bare product and the plain ways."""
    ways = in_fresh_process(compare_ways)["timings"]
    bare = min((one for name, one in ways.items() if name.startswith("matrix product")), key=lambda one: one.seconds)
    fast, loop, pairs = (ways[name] for name in ("fast", "dense matrix and loop", "pair by pair"))
    report(
        "scoring",
        [
            {**_row(name, TESTS, EXAMPLES, timing), "times the matrix product": timing.seconds / bare.seconds}
            for name, timing in ways.items()
        ],
        matrix_rate_gflops=2e-9 * TESTS * EXAMPLES * DIMENSION / bare.seconds,
        fast_over_matrix_product=fast.seconds / bare.seconds,
        fast_over_matrix_product_cpu=fast.cpu_seconds / bare.cpu_seconds,
        dense_loop_over_fast=loop.seconds / fast.seconds,
        pair_by_pair_over_fast=pairs.seconds / fast.seconds,
        scaled=f"the plain ways were run for {LOOPED_TESTS} of the {TESTS} tests, and their seconds scaled up",
    )


def report_growth() -> None:
    """Run the stages on files of growing size, the largest in parts too."""
    rows = []
    for tests, examples in [(TESTS, EXAMPLES), *((GROWTH_TESTS, size) for size in GROWTH_EXAMPLES)]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            parts = PARTS if examples == GROWTH_EXAMPLES[-1] else 0
            write_inputs(folder, tests, examples, parts)
            found = in_fresh_process(score_file, folder)
            rows.append({**_row("from disk", tests, examples, found["timing"]), "peak MiB": found["peak_mib"]})
            if parts:
                split = in_fresh_process(score_in_parts, folder)
                row = _row(f"in {PARTS} parts", tests, examples, split["timing"])
                rows.append({**row, "peak MiB": split["peak_mib"]})
    first, last = rows[1], rows[-2]
    report(
        "scoring_growth",
        rows,
        us_per_example_1m_over_250k=last["us per example"] / first["us per example"],
        cpu_us_per_example_1m_over_250k=last["cpu us per example"] / first["cpu us per example"],
        parts_same_top_lists=True,
        parts_largest_difference_of_a_score=split["largest_difference"],
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
