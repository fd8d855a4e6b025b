"""Fit a method before it embeds anything: projections, second moments, adapters."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import start_work
from workflow_scripts.language_model.losses import load_language_model
from workflow_scripts.language_model.tokens import read_examples
from workflow_scripts.methods.embedder import LanguageModelReader, WarmupExamples
from workflow_scripts.methods.loading import load_module
from workflow_scripts.methods.warmup import warmup_sample
from workflow_scripts.study.sections import Finetuning


def fit_method(
    tokens: Path,
    fitted: Path,
    *,
    language_model: Path | None = None,
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    module: str,
    settings: dict[str, Any],
    examples: int,
    measured_examples: int,
    finetuning: Finetuning,
    seed: int,
) -> None:
    """Write the tensors that `fit` of the method's module returns to `fitted` (safetensors).

    Parameters
    ----------
    tokens: `tokens/` file of the warm-up's corpus.
    fitted: safetensors file to write.
    language_model: folder of the LM that the method uses; None to load `model`.
    model: folder or hub id of the LM.
    revision: commit, tag or branch on the hub; None for the default branch.
    trust_remote_code: whether code that comes with the model may run.
    module: name of the method's module, see `study.methods.EmbeddingSpec`.
    settings: keyword arguments of its `fit`.
    examples: number of examples of the warm-up.
    measured_examples: how many of them second moments are measured on.
    finetuning: the section `finetuning` of the config, with the changes of the warm-up.
    seed: seed of all random choices.

    Raises
    ------
    StudyError: a model or file can't be read, or the method can't be fitted to the LM.
    """
    lm = load_language_model(language_model or model, revision, trust_remote_code, precision=finetuning.precision)
    reader = LanguageModelReader(lm, finetuning.step_tokens, finetuning.precision)
    method = load_module(module)
    start_work()
    sample = warmup_sample(read_examples(tokens), examples, seed)
    tensors = method.fit(reader, WarmupExamples(sample, measured_examples, finetuning, seed), **settings)
    with atomic_path(fitted) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


if __name__ == "__main__":
    run_stage(fit_method)
