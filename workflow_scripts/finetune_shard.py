"""Fine-tune the base LM on a block of subsets and measure each validation example's loss (paper, 3.1)."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from workflow_scripts.lib.errors import StudyError
from workflow_scripts.lib.finetuning import Finetuner
from workflow_scripts.lib.language_model import TokenizedExample, load_language_model
from workflow_scripts.lib.models import folder_hash
from workflow_scripts.lib.processes import agreed, is_first
from workflow_scripts.lib.progress import Progress, say
from workflow_scripts.lib.specs import STAGE_VERSIONS
from workflow_scripts.lib.stage import run_stage
from workflow_scripts.lib.subsets import Fold, Sampling, corpus_ids
from workflow_scripts.lib.tables import file_hash, read_metadata, read_table, spec_hash, write_table

if TYPE_CHECKING:
    from workflow_scripts.lib.zero_finetuning import ZeroFinetuner

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
    finetuning: dict[str, Any],
) -> None:
    """Write the losses of every (fold, index, seed) of the block to `losses`.

    `folds` and `indexes` are [first, past the last]. A run depends on (seed, pool, fold, index, number of the
    seed) alone, so the cut into blocks changes no number. Finished runs are kept in a folder beside `losses`
    until the block is whole, and a block that grew keeps the runs it had; both only if they come from the
    same LM, tokens and settings. `finetuning` has the settings of `Finetuner`, and those of DeepSpeed under `zero`
    where a LM needs several GPUs.
    """
    draw = Sampling(**sampling)
    runs = [(fold, index, seed) for fold in range(*folds) for index in range(*indexes) for seed in range(seeds)]
    key = spec_hash(
        {
            "version": STAGE_VERSIONS["finetune_shard"],
            "model": folder_hash(language_model) if language_model else [model, revision],
            "tokens": file_hash(train_tokens, test_tokens),
            "sampling": sampling,
            "finetuning": finetuning,
        }
    )
    finished = FinishedRuns(losses, key)
    # Meanwhile the job of a killed driver may write other runs of the same block.
    missing = agreed([run for run in runs if run not in finished])
    progress = Progress(
        f"finetune_shard {draw.pool} folds {folds[0]}-{folds[1] - 1} subsets {indexes[0]}-{indexes[1] - 1}",
        len(runs),
        "runs",
        done=len(runs) - len(missing),
    )
    if missing:
        train = read_examples(train_tokens)
        test = train if train_tokens == test_tokens else read_examples(test_tokens)
        train_ids, test_ids = corpus_ids(train_tokens, test_tokens)
        tuner = _tuner([language_model or model, revision, trust_remote_code], **finetuning)
        fold_number = None
        for fold, index, seed in missing:
            if fold != fold_number:
                fold_number, drawn = fold, draw.fold(fold, train_ids, test_ids)
                judged = [test[i] for i in drawn.evaluated]
                tuner.reset()
                base = tuner.losses(judged)
            subset = draw.subset(fold, index, drawn.pool)
            ended = tuner.finetune([train[i] for i in subset], draw.seed, draw.pool, "finetune", fold, index, seed)
            measured = tuner.losses(judged) if ended else np.full(len(judged), np.nan, np.float32)
            finished.add((fold, index, seed), _run_table((fold, index, seed), drawn, base, measured))
            progress.advance(note=f"mean loss {measured.mean():.3f} (base {base.mean():.3f})")
    finished.publish(runs)


def _tuner(
    source: Sequence[Any], *, zero: Mapping[str, Any] | None = None, **settings: Any
) -> "Finetuner | ZeroFinetuner":
    """Return the engine that fine-tunes: native, or DeepSpeed with its own settings `zero`."""
    if zero is None:
        return Finetuner(load_language_model(*source), **settings)
    try:
        from workflow_scripts.lib.zero_finetuning import ZeroFinetuner
    except ModuleNotFoundError as error:
        raise StudyError(
            f"finetuning.engine is deepspeed, but {error.name} is not installed: run "
            "`pip install -r envs/requirements-deepspeed.lock` in the workflow's environment, or write engine: native."
        ) from None
    return ZeroFinetuner(load_language_model(*source, device="cpu"), **zero, **settings)


def read_examples(tokens: Path) -> Mapping[int, TokenizedExample]:
    """Return the examples of a `tokens/` file by example id; their tokens share one memory block."""
    table = read_table(tokens, ["example_id", "input_ids", "prompt_tokens"]).combine_chunks()
    column = table["input_ids"].combine_chunks()
    flat, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    return {
        int(example_id): TokenizedExample(flat[offsets[row] : offsets[row + 1]], int(prompt_tokens))
        for row, (example_id, prompt_tokens) in enumerate(
            zip(table["example_id"].to_numpy(), table["prompt_tokens"].to_numpy(), strict=True)
        )
    }


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


class FinishedRuns:
    """The runs of a block that are done: on disk one by one, then as one file.

    A file that is damaged or was made with another `key` counts as absent. Of several processes, the first reads and
    writes.
    """

    def __init__(self, losses: Path, key: str):
        self.losses, self.key = Path(losses), key
        self.folder = self.losses.with_name(f".{self.losses.stem}.{key}.runs")
        self.tables: dict[Run, pa.Table] = {}
        for path in [self.losses, *sorted(self.folder.glob("*.parquet"))] if is_first() else []:
            if path.exists():
                self._take(path)

    def _take(self, path: Path) -> None:
        try:
            if read_metadata(path).get("key") != self.key:
                return
            table = read_table(path)
        except StudyError as error:
            say(f"finetune_shard: {error} Its runs are done again.")
            return
        runs = np.stack([table[name].to_numpy() for name in SCHEMA.names[:3]], axis=1)
        firsts = np.flatnonzero(np.r_[True, (runs[1:] != runs[:-1]).any(axis=1)]) if len(runs) else []
        for first, last in zip(firsts, [*firsts[1:], len(runs)], strict=True):
            self.tables[tuple(int(part) for part in runs[first])] = table.slice(first, last - first)

    def __contains__(self, run: Run) -> bool:
        return run in self.tables

    def add(self, run: Run, table: pa.Table) -> None:
        """Keep a run that has just ended, on disk too."""
        self.tables[run] = table
        if is_first():
            write_table(self.folder / "{}_{}_{}.parquet".format(*run), table, key=self.key)

    def publish(self, runs: Sequence[Run]) -> None:
        """Write all `runs` in order as one file and drop the single ones."""
        if is_first():
            write_table(self.losses, pa.concat_tables([self.tables[run] for run in runs]), key=self.key)
            shutil.rmtree(self.folder, ignore_errors=True)


if __name__ == "__main__":
    run_stage(snakemake, finetune_shard)  # noqa: F821
