"""Measure what a method needs before it embeds anything: projections, second moments, adapters."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.stage import run_stage
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
    tokens: of the warm-up's corpus.
    language_model: folder of the LM that the method reads; None where `model` is a local folder.
    module, settings: as in `study.methods.EmbeddingSpec`.
    examples, measured_examples, finetuning, seed: see `WarmupExamples`.
    """
    lm = load_language_model(language_model or model, revision, trust_remote_code, precision=finetuning.precision)
    reader = LanguageModelReader(lm, finetuning.step_tokens, finetuning.precision)
    sample = warmup_sample(read_examples(tokens), examples, seed)
    tensors = load_module(module).fit(reader, WarmupExamples(sample, measured_examples, finetuning, seed), **settings)
    with atomic_path(fitted) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


if __name__ == "__main__":
    run_stage(fit_method)
