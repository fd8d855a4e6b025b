"""Join the losses of all fine-tuning jobs of a pool and compute labels from them (paper, section 3.1)."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import CONTENTS, read_metadata, read_table, write_batches
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.targets.labels import standardised_labels

SCHEMA = pa.schema(
    [
        ("fold", pa.int32()),
        ("subset", pa.int32()),
        ("seed", pa.int32()),
        ("example_id", pa.int32()),
        ("loss", pa.float32()),
        # Half precision: the noise between seeds is a hundred times its step, and 10 million targets take
        # less than 8 bytes each.
        ("delta", pa.float16()),
        ("label", pa.float16()),
        ("status", pa.string()),
    ]
)


def collect_targets(
    blocks: Sequence[Path],
    targets: Path,
    *,
    folds: int,
    subsets_per_fold: int,
    seeds: int,
    max_diverged_share: float,
) -> None:
    """Join the blocks' losses, add loss delta and label, and write one row per run and example.

    The delta is the base LM's loss minus the fine-tuned LM's, in nats per response token: positive where training on
    the subset helped. The label r(x, S) of example x and subset S is minus the loss (mean over seeds), standardised
    over the subsets of the fold; null where all runs on a subset diverged. The file's metadata counts the `runs`, and
    how many `diverged`.

    Parameters
    ----------
    blocks: files that `finetune_shard` wrote for the pool, in any order.
    targets: Parquet file to write, sorted by fold, subset, seed.
    folds: number of folds of the pool.
    subsets_per_fold: number of subsets in a fold.
    seeds: number of fine-tuning runs per subset.
    max_diverged_share: largest share of the runs that may diverge, in [0, 1].

    Raises
    ------
    StudyError: blocks were made with different settings, a run is missing, or more than `max_diverged_share` of the
        runs diverged.
    """
    _check_settings(blocks)
    table = pa.concat_tables([read_table(path) for path in blocks])
    table = table.sort_by([(name, "ascending") for name in ("fold", "index", "seed")])
    runs = folds * subsets_per_fold * seeds
    if table.num_rows == 0 or table.num_rows % runs:
        raise StudyError(
            f"{targets.stem}: the {len(blocks)} block files hold {table.num_rows:,} targets, which is not a "
            f"whole number for each of {runs:,} runs. Delete {blocks[0].parent} and run again."
        )
    diverged = table["status"].to_numpy()[:: table.num_rows // runs] == "diverged"
    if diverged.mean() > max_diverged_share:
        raise StudyError(
            f"{targets.stem}: {diverged.sum():,} of {runs:,} fine-tuning runs diverged, more than "
            f"finetuning.max_diverged_share ({max_diverged_share:g}). Lower finetuning.learning_rate."
        )
    rows = table.num_rows // folds
    shape = (subsets_per_fold, seeds, rows // (subsets_per_fold * seeds))
    write_batches(
        targets,
        SCHEMA,
        (_fold_targets(table.slice(fold * rows, rows), fold, shape) for fold in range(folds)),
        runs=str(runs),
        diverged=str(diverged.sum()),
    )
    say(f"collect_targets {targets.stem}: {table.num_rows:,} targets of {runs:,} runs, {diverged.sum():,} diverged")


def _check_settings(blocks: Sequence[Path]) -> None:
    """Reject a block of another LM or other settings, e.g. of a job that ran on after the study was changed."""
    metadata = {path: read_metadata(path) for path in blocks}
    if len(lms := {entries[CONTENTS]: path for path, entries in metadata.items() if CONTENTS in entries}) > 1:
        raise StudyError(
            "blocks were made with different contents of one LM: "
            + "; ".join(f"{path} with {contents}" for contents, path in lms.items())
            + ". Delete those of the LM that isn't meant and run again; or give the study of the new LM another `run`."
        )
    made_with = {path: entries.get("key") for path, entries in metadata.items()}
    usual = statistics.mode(made_with.values())
    strays = [str(path) for path, key in made_with.items() if key != usual]
    if strays:
        raise StudyError(
            f"{', '.join(strays)} {'was' if len(strays) == 1 else 'were'} made with other settings than the other "
            "blocks, perhaps by a job of an earlier run that was never cancelled. Delete it and run again."
        )


def _fold_targets(table: pa.Table, fold: int, shape: tuple[int, int, int]) -> pa.Table:
    """Return the targets of one fold; `shape` is (subsets, seeds, examples), by which its rows are sorted."""
    losses = table["loss"].to_numpy().reshape(shape)
    labels = np.broadcast_to(standardised_labels(losses)[:, None, :], shape).reshape(-1)
    delta = table["base_loss"].to_numpy() - losses.reshape(-1)
    return pa.table(
        {
            "fold": table["fold"],
            "subset": table["index"].to_numpy() + fold * shape[0],
            "seed": table["seed"],
            "example_id": table["example_id"],
            "loss": table["loss"],
            "delta": pa.array(delta.astype(np.float16), from_pandas=True),
            "label": pa.array(labels.astype(np.float16), from_pandas=True),
            "status": table["status"],
        },
        schema=SCHEMA,
    )


if __name__ == "__main__":
    run_stage(collect_targets)
