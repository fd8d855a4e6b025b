"""Warm the base LM up on a sample of a corpus: what gradient methods read (paper, section 4.1)."""

from pathlib import Path

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
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
    """Fine-tune the base LM on at most `examples` examples of `tokens`, and write it to the folder `warm`.

    `finetuning` is that section of the config, with the warm-up's own epochs and learning rate.

    Raises
    ------
    StudyError: the LM diverged.
    """
    source = (language_model or model, revision, trust_remote_code)
    tuner = native_tuner(load_language_model(*source, precision=finetuning.precision), finetuning)
    chosen = warmup_sample(read_examples(tokens), examples, seed)
    say(f"warmup_lm: {len(chosen):,} examples, {finetuning.epochs} epoch(s)")
    before = tuner.losses(chosen).mean()
    if not tuner.finetune(chosen, seed, "warmup"):
        raise StudyError("the warm-up diverged. Lower warmup.learning_rate.")
    say(f"warmup_lm: mean loss {before:.3f} before, {tuner.losses(chosen).mean():.3f} after")
    save_folder(warm, tuner.lm, load_tokenizer(*source))


if __name__ == "__main__":
    run_stage(warmup_lm)
