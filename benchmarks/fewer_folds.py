"""What fewer training folds cost in LDS, and what predicted targets give back.

The encoder of a finished study is trained on shares of its measured folds, alone and with the folds of
`targets.surrogate`, if the study has them, and on these alone. All are evaluated on the same held-back folds. It takes
the targets of `snakemake --cores all targets encoder`.
Run: python benchmarks/fewer_folds.py [--config config.yaml]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from harness import report

from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.encoder.train_encoder import train_encoder
from workflow_scripts.study.config import load_study
from workflow_scripts.study.plan import StudyPlan

SHARES = (1.0, 0.5, 0.25, 0.1)
# Of the steps, where there are measured folds too.
SURROGATE_SHARE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="config.yaml", help="a study whose targets are there")
    path = parser.parse_args().config
    plan = StudyPlan(load_study(yaml.safe_load(Path(path).read_text(encoding="utf-8")), origin=path))
    if not (plan.results / "targets" / "train.parquet").exists():
        sys.exit(f"there are no targets in {plan.results}: run `snakemake --cores all targets encoder` first")
    predicted = (plan.results / "targets" / "surrogate.parquet").exists()
    ways = [(share, surrogate) for share in SHARES for surrogate in ([0.0, SURROGATE_SHARE] if predicted else [0.0])]
    rows = [train_on(plan, *way) for way in [*ways, *([(0.0, 1.0)] if predicted else [])]]
    for row in rows:
        row["share of LDS"] = row["validation LDS"] / rows[0]["validation LDS"]
    report("fewer_folds", rows, study=path)


def train_on(plan: StudyPlan, share: float, surrogate_share: float) -> dict[str, float]:
    """Train on `share` of the measured folds, `surrogate_share` of the steps on predicted ones.

    Returns
    -------
    How many folds these are, and the best LDS on the held-back ones.
    """
    held_back = plan.study.encoder_training.validation_folds
    folds = plan.study.targets.folds
    kept = round((folds - held_back) * share)
    surrogate = (plan.results / part / "surrogate.parquet" for part in ("subsets", "targets"))
    names = ("surrogate_subsets", "surrogate_targets")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("subsets", "targets"):
            write_table(
                folder / f"{part}.parquet", fewer_folds(plan.results / part / "train.parquet", kept, folds, held_back)
            )
        train_encoder(
            plan.results / "corpora" / f"{plan.study.targets.corpus}.parquet",
            plan.results / "encoder_untrained",
            folder / "subsets.parquet",
            folder / "targets.parquet",
            folder / "encoder",
            folder / "log.parquet",
            **(dict(zip(names, surrogate, strict=True)) if surrogate_share else {}),
            training=plan.study.encoder_training.model_copy(update={"surrogate_share": surrogate_share}),
            prompt_words=plan.study.encoder.prompt_words,
            max_tokens=plan.study.encoder.max_tokens,
            seed=plan.study.seed,
        )
        best = pc.max(read_table(folder / "log.parquet")["validation_lds"]).as_py()
    return {
        "measured folds": kept,
        "of the steps on predicted ones": surrogate_share,
        "validation LDS": best,
        "seconds": time.perf_counter() - start,
    }


def fewer_folds(path: Path, kept: int, folds: int, held_back: int) -> pa.Table:
    """Return the rows of the first `kept` folds and of the last `held_back`, which are numbered on from there."""
    table = read_table(path)
    fold = table["fold"]
    first_held_back = folds - held_back
    moved = pc.if_else(pc.less(fold, kept), fold, pc.subtract(fold, first_held_back - kept)).cast(fold.type)
    table = table.set_column(table.column_names.index("fold"), "fold", moved)
    return table.filter(pc.or_(pc.less(fold, kept), pc.greater_equal(fold, first_held_back)))


if __name__ == "__main__":
    main()
