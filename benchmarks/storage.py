"""Targets on disk: bytes a target, seconds to collect them and to read them into the encoder's training.

Losses are synthetic and of full precision; they go through the stages' own writers and readers. The plain way beside
them is one JSON file a fine-tuning run, read one after the other.
Run: python benchmarks/storage.py
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import alternate, in_fresh_process, report

from workflow_scripts.core.parquet import write_batches, write_table
from workflow_scripts.targets.collect_targets import collect_targets
from workflow_scripts.targets.finetune_shard import SCHEMA as LOSSES_SCHEMA
from workflow_scripts.targets.sample_subsets import SCHEMA as SUBSETS_SCHEMA
from workflow_scripts.targets.tables import read_folds

# The paper's: folds x subsets x evaluated examples; and a tenth and a hundredth of them.
SUBSETS, JUDGED, SUBSET_EXAMPLES, POOL = 100, 1000, 1000, 100_000
FOLDS = (1, 10, 100)
SUBSETS_PER_JOB = 50
PLAIN_RUNS = 1000  # The plain way is read for so many runs at most, and its seconds scaled up.


def losses_of_fold(fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (example ids [JUDGED], base losses [JUDGED], losses [SUBSETS, JUDGED]), losses float32."""
    random = np.random.default_rng(fold)
    base = random.lognormal(0.5, 0.6, JUDGED)
    losses = base * (0.9 + 0.03 * random.standard_normal((SUBSETS, JUDGED)))
    return random.choice(POOL, JUDGED, replace=False), base.astype(np.float32), losses.astype(np.float32)


def write_blocks(folder: Path, folds: int) -> list[Path]:
    """Write the files that fine-tuning jobs leave."""
    paths = []
    for fold in range(folds):
        ids, base, losses = losses_of_fold(fold)
        for first in range(0, SUBSETS, SUBSETS_PER_JOB):
            columns = {
                "fold": np.full(SUBSETS_PER_JOB * JUDGED, fold),
                "index": np.repeat(np.arange(first, first + SUBSETS_PER_JOB), JUDGED),
                "seed": np.zeros(SUBSETS_PER_JOB * JUDGED, int),
                "example_id": np.tile(ids, SUBSETS_PER_JOB),
                "base_loss": np.tile(base, SUBSETS_PER_JOB),
                "loss": losses[first : first + SUBSETS_PER_JOB].ravel(),
                "status": ["ok"] * (SUBSETS_PER_JOB * JUDGED),
            }
            paths.append(folder / f"f{fold:04d}_s{first // SUBSETS_PER_JOB:04d}.parquet")
            write_table(paths[-1], pa.table(columns, schema=LOSSES_SCHEMA), key="benchmark")
    return paths


def write_subsets(path: Path, folds: int) -> None:
    """Write who is in which subset."""

    def tables() -> Iterator[pa.Table]:
        for fold in range(folds):
            random = np.random.default_rng(fold)
            members = [random.choice(POOL, SUBSET_EXAMPLES, replace=False) for _ in range(SUBSETS)]
            numbers = range(fold * SUBSETS, (fold + 1) * SUBSETS)
            yield pa.table({"fold": [fold] * SUBSETS, "subset": numbers, "example_ids": members}, SUBSETS_SCHEMA)

    write_batches(path, SUBSETS_SCHEMA, tables())


def collect(folder: Path, folds: int) -> dict[str, Any]:
    """Time the stage that joins the jobs' files."""
    blocks = sorted(folder.glob("f*.parquet"))
    sizes = {"folds": folds, "subsets_per_fold": SUBSETS, "seeds": 1, "max_diverged_share": 0.0}
    timing = alternate({"collect": lambda: collect_targets(blocks, folder / "targets.parquet", **sizes)}, 1)["collect"]
    return {"seconds": timing.seconds}


def read(folder: Path, folds: int) -> dict[str, Any]:
    """Time the encoder's training reading subsets and targets."""
    found: list[Any] = []
    timing = alternate({"read": lambda: found.append(read_folds(*_tables(folder)))}, 1)["read"]
    if len(found[0]) != folds or found[0][-1].labels.shape != (SUBSETS, JUDGED):
        raise SystemExit("the targets that were read are not those that were written")
    return {"seconds": timing.seconds}


def _tables(folder: Path) -> tuple[Path, Path]:
    return folder / "subsets.parquet", folder / "targets.parquet"


def plain(folder: Path, folds: int) -> dict[str, Any]:
    """Time reading one JSON file a run; return the bytes a target too."""
    runs = min(folds * SUBSETS, PLAIN_RUNS)
    for run in range(runs):
        ids, _, losses = losses_of_fold(run // SUBSETS)
        rows = dict(zip(map(str, ids), losses[run % SUBSETS].tolist(), strict=True))
        (folder / f"{run}.json").write_text(json.dumps(rows))
    paths = sorted(folder.glob("*.json"))
    size = sum(path.stat().st_size for path in paths)
    timing = alternate({"plain": lambda: [json.loads(path.read_text()) for path in paths]}, 1)["plain"]
    return {"seconds": timing.seconds * folds * SUBSETS / runs, "bytes": size / runs / JUDGED}


def main() -> None:
    rows = []
    for folds in FOLDS:
        with tempfile.TemporaryDirectory() as name:
            folder, targets = Path(name), folds * SUBSETS * JUDGED
            blocks = write_blocks(folder, folds)
            write_subsets(folder / "subsets.parquet", folds)
            collected, ours, theirs = (in_fresh_process(case, folder, folds) for case in (collect, read, plain))
            rows.append(
                {
                    "targets": targets,
                    "bytes a target": (folder / "targets.parquet").stat().st_size / targets,
                    "bytes a target, jobs' files": sum(path.stat().st_size for path in blocks) / targets,
                    "bytes a target, JSON": theirs["bytes"],
                    "collect s": collected["seconds"],
                    "collect MiB": collected["peak_mib"],
                    "read s": ours["seconds"],
                    "read MiB": ours["peak_mib"],
                    "read JSON s": theirs["seconds"],
                    "ratio": theirs["seconds"] / ours["seconds"],
                }
            )
    report("storage", rows, scaled=f"JSON was read for {PLAIN_RUNS} runs at most, and its seconds scaled up")


if __name__ == "__main__":
    main()
