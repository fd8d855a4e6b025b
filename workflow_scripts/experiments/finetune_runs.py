"""Fine-tune the base LM on lists of examples and measure each list's tests: their losses, and answers if asked for."""

from collections.abc import Mapping
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
from workflow_scripts.experiments.runs import MEASURED_SCHEMA, read_share
from workflow_scripts.language_model.engine import open_tuner
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.generation import greedy_answers
from workflow_scripts.language_model.tokens import TokenizedExample, read_examples
from workflow_scripts.models.loading import load_tokenizer
from workflow_scripts.study.sections import Finetuning
from workflow_scripts.study.stage_versions import STAGE_VERSIONS
from workflow_scripts.targets.run_cache import FinishedRuns


def finetune_runs(
    runs: Path,
    train_tokens: Path,
    test_tokens: Path,
    measured: Path,
    *,
    language_model: Path | None = None,
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    experiment: str,
    job: int,
    jobs: int,
    seed: int,
    new_tokens: int | None,
    finetuning: Finetuning,
) -> None:
    """Do the runs of one job and write what they measured.

    The order of the batches depends on `seed`, the experiment and the number of a run's own seed, so that runs on lists
    that differ only in what is left out can be compared. Finished runs are kept in a folder beside `measured` until the
    job is done, and a job whose runs changed keeps those that it, or another job, had.

    Parameters
    ----------
    runs: file that `experiments.runs.write_runs` wrote.
    train_tokens: `tokens/` file of the pool.
    test_tokens: `tokens/` file of the tests.
    measured: Parquet file to write, one row per run, seed and test; losses are in nats per response token.
    language_model: folder of the LM, where the workflow made or fetched it; None to load `model`.
    model: folder or hub id of the LM.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.
    experiment: name of the experiment.
    job: number of this job, from 0.
    jobs: number of jobs that the runs are distributed over.
    seed: the study's seed.
    new_tokens: longest answer to each test's prompt, in tokens; None for no answers.
    finetuning: the section `finetuning` of the config.

    Raises
    ------
    StudyError: the LM or a file can't be read, or memory runs out even for one example.
    """
    listed = read_share(runs, job, jobs)
    key = spec_hash(
        {
            "version": STAGE_VERSIONS["finetune_runs"],
            "model": folder_hash(language_model) if language_model else [model, revision],
            "tokens": file_hash(train_tokens, test_tokens),
            "seed": [seed, experiment],
            "new_tokens": new_tokens,
            "finetuning": finetuning.spec(),
            **determinism(),
        }
    )
    finished = FinishedRuns(measured, key, MEASURED_SCHEMA.names[:2])
    finished.look_for(list(listed))
    missing = broadcast_from_rank_zero([run for run in listed if run not in finished])
    title = f"finetune_runs {experiment} {job + 1} of {jobs}"
    progress = Progress(title, len(listed), "runs", done=len(listed) - len(missing))
    if missing:
        tuner = open_tuner((language_model or model, revision, trust_remote_code), finetuning)
        tokenizer = load_tokenizer(language_model or model, revision, trust_remote_code) if new_tokens else None
        start_work()
        train, test = read_examples(train_tokens), read_examples(test_tokens)
        for name, number in missing:
            lists = listed[name, number]
            tests = [test[i] for i in lists.test_ids]
            ended = tuner.finetune(_taking_part(train, lists), seed, experiment, "finetune", number)
            losses = tuner.losses(tests) if ended else np.full(len(tests), np.nan, np.float32)
            ended = bool(np.isfinite(losses).all())
            answers = [None] * len(tests)
            if tokenizer and ended:
                assert isinstance(tuner, Finetuner), "the config refuses answers of an LM that is split"
                prompts = [one.tokens[: one.prompt_tokens] for one in tests]
                limits = (tokenizer.eos_token_id, new_tokens, finetuning.evaluation_tokens, finetuning.precision)
                written = greedy_answers(tuner.lm, prompts, *limits)
                answers = tokenizer.batch_decode(written, skip_special_tokens=True)
            columns = {
                "run": [name] * len(tests),
                "seed": np.full(len(tests), number),
                "test_id": lists.test_ids,
                "loss": losses if ended else pa.nulls(len(tests), pa.float32()),
                "answer": pa.array(answers, pa.string()),
                "status": ["ok" if ended else "diverged"] * len(tests),
            }
            finished.add((name, number), pa.table(columns, schema=MEASURED_SCHEMA))
            progress.advance(note=f"mean loss {losses.mean():.3f}")
    finished.publish(list(listed), MEASURED_SCHEMA)


def _taking_part(train: Mapping[int, TokenizedExample], lists: Any) -> list[TokenizedExample]:
    """Return the run's examples; one that is left out stays in its batch, but all of it counts as prompt."""
    left_out = set(lists.left_out.tolist())
    return [
        TokenizedExample(train[i].tokens, len(train[i].tokens)) if i in left_out else train[i]
        for i in lists.example_ids.tolist()
    ]


if __name__ == "__main__":
    run_stage(finetune_runs)
