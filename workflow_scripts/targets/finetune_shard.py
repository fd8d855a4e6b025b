"""Fine-tune the base LM on a block of subsets and measure each validation example's loss (paper, 3.1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from workflow_scripts.core.distributed import broadcast_from_rank_zero
from workflow_scripts.core.files import file_hash, folder_hash
from workflow_scripts.core.gpus import determinism
from workflow_scripts.core.parquet import spec_hash
from workflow_scripts.core.progress import Progress
from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.language_model.engine import open_tuner
from workflow_scripts.language_model.tokens import read_examples
from workflow_scripts.study.sections import Finetuning
from workflow_scripts.study.stage_versions import STAGE_VERSIONS
from workflow_scripts.targets.run_cache import FinishedRuns
from workflow_scripts.targets.sampling import Fold, Sampling, corpus_ids

SCHEMA = pa.schema(
    [
        ("fold", pa.int32()),
        ("index", pa.int32()),
        ("seed", pa.int32()),
        ("example_id", pa.int32()),
        ("base_loss", pa.float32()),
        ("loss", pa.float32()),
        ("status", pa.string()),
    ]
)
Run = tuple[int, int, int]  # fold, index of the subset in the fold, number of the seed


def finetune_shard(
    train_tokens: Path,
    test_tokens: Path,
    losses: Path,
    *,
    language_model: Path | None = None,
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    sampling: dict[str, Any],
    folds: Sequence[int],
    indexes: Sequence[int],
    seeds: int,
    finetuning: Finetuning,
) -> None:
    """Run every (fold, index, seed) of a block of subsets, and write the evaluated examples' losses.

    A run depends on (study seed, pool, fold, index, number of the seed) alone, so the division into blocks changes no
    number. Finished runs are kept in a folder beside `losses` until the block is complete, and runs that this block or
    another one had are kept where blocks have other sizes now; only if they come from the same LM, tokens and settings.

    Parameters
    ----------
    train_tokens: `tokens/` file of the corpus that subsets are drawn from.
    test_tokens: `tokens/` file of the corpus that evaluated examples are drawn from; may be the same.
    losses: Parquet file to write, one row per run and evaluated example; losses are in nats per response token.
    language_model: folder of the LM, where the workflow made or fetched it; None to load `model`.
    model: folder or hub id of the LM.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.
    sampling: values of `targets.sampling.Sampling`.
    folds: [first, last + 1] of the block's folds.
    indexes: [first, last + 1] of the block's subsets in each fold.
    seeds: number of fine-tuning runs per subset.
    finetuning: the section `finetuning` of the config.

    Raises
    ------
    StudyError: the LM can't be loaded, a corpus is too small, or memory runs out even for one example.
    """
    draw = Sampling(**sampling)
    runs = [(fold, index, seed) for fold in range(*folds) for index in range(*indexes) for seed in range(seeds)]
    key = spec_hash(
        {
            "version": STAGE_VERSIONS["finetune_shard"],
            "model": folder_hash(language_model) if language_model else [model, revision],
            "tokens": file_hash(train_tokens, test_tokens),
            "sampling": sampling,
            "finetuning": finetuning.spec(),
            **determinism(),
        }
    )
    finished = FinishedRuns(losses, key, SCHEMA.names[:3])
    finished.look_for(runs)
    # Meanwhile the job of a killed driver may write other runs of the same block.
    missing = broadcast_from_rank_zero([run for run in runs if run not in finished])
    progress = Progress(
        f"finetune_shard {draw.pool} folds {folds[0]}-{folds[1] - 1} subsets {indexes[0]}-{indexes[1] - 1}",
        len(runs),
        "runs",
        done=len(runs) - len(missing),
    )
    if missing:
        tuner = open_tuner((language_model or model, revision, trust_remote_code), finetuning)
        start_work()
        train = read_examples(train_tokens)
        test = train if train_tokens == test_tokens else read_examples(test_tokens)
        train_ids, test_ids = corpus_ids(train_tokens, test_tokens)
        fold_number = None
        for fold, index, seed in missing:
            if fold != fold_number:
                fold_number, drawn = fold, draw.fold(fold, train_ids, test_ids)
                evaluated = [test[i] for i in drawn.evaluated]
                tuner.reset()
                base = tuner.losses(evaluated)
            subset = draw.subset(fold, index, drawn.pool)
            ended = tuner.finetune([train[i] for i in subset], draw.seed, draw.pool, "finetune", fold, index, seed)
            measured = tuner.losses(evaluated) if ended else np.full(len(evaluated), np.nan, np.float32)
            finished.add((fold, index, seed), _run_table((fold, index, seed), drawn, base, measured))
            progress.advance(note=f"mean loss {measured.mean():.3f} (base {base.mean():.3f})")
    finished.publish(runs, SCHEMA)


def _run_table(run: Run, drawn: Fold, base: np.ndarray, measured: np.ndarray) -> pa.Table:
    count = len(measured)
    ok = bool(np.isfinite(measured).all())
    return pa.table(
        {
            **{name: np.full(count, value) for name, value in zip(SCHEMA.names[:3], run, strict=True)},
            "example_id": drawn.evaluated,
            "base_loss": base,
            "loss": measured if ok else pa.nulls(count, pa.float32()),
            "status": ["ok" if ok else "diverged"] * count,
        },
        schema=SCHEMA,
    )


if __name__ == "__main__":
    run_stage(finetune_shard)
