"""Warm the base LM up on a sample of a corpus, for gradient methods (paper, section 4.1)."""

from pathlib import Path

import numpy as np

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.language_model.engine import native_tuner
from workflow_scripts.language_model.losses import load_language_model
from workflow_scripts.language_model.tokens import read_examples
from workflow_scripts.methods.warmup import warmup_sample
from workflow_scripts.models.loading import load_tokenizer, save_folder
from workflow_scripts.study.sections import Finetuning


def warmup_lm(
    tokens: Path,
    warm: Path,
    *,
    language_model: Path | None = None,
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    examples: int,
    finetuning: Finetuning,
    seed: int,
) -> None:
    """Fine-tune the base LM on a random sample of a corpus and write it.

    Parameters
    ----------
    tokens: `tokens/` file of the corpus.
    warm: folder to write.
    language_model: folder of the base LM, where the workflow made or fetched it; None to load `model`.
    model: folder or hub id of the base LM.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.
    examples: number of examples; all if the corpus has fewer.
    finetuning: the section `finetuning` of the config, with the warm-up's own epochs and learning rate.
    seed: seed of the sample and of the batches' order.

    Raises
    ------
    StudyError: the LM can't be loaded, memory runs out, or the run diverged.
    """
    source = (language_model or model, revision, trust_remote_code)
    tuner = native_tuner(load_language_model(*source, precision=finetuning.precision), finetuning)
    start_work()
    chosen = warmup_sample(read_examples(tokens), examples, seed)
    say(f"warmup_lm: {len(chosen):,} examples, {finetuning.epochs} epoch(s)")
    before = tuner.losses(chosen).mean()
    ended = tuner.finetune(chosen, seed, "warmup")
    after = tuner.losses(chosen).mean()
    # The last update comes after the last loss of the run.
    if not (ended and np.isfinite(after)):
        raise StudyError("the warm-up diverged. Lower warmup.learning_rate.")
    say(f"warmup_lm: mean loss {before:.3f} before, {after:.3f} after")
    save_folder(warm, tuner.lm, load_tokenizer(*source))


if __name__ == "__main__":
    run_stage(warmup_lm)
