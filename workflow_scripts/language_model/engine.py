"""Choose the engine that fine-tunes an LM, native or DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workflow_scripts.core.errors import StudyError
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.losses import load_language_model, use_packing
from workflow_scripts.models.packing import BUCKETS
from workflow_scripts.models.transformers_import import PreTrainedModel
from workflow_scripts.study.sections import Finetuning

if TYPE_CHECKING:
    from workflow_scripts.language_model.deepspeed_finetuner import ZeroFinetuner


# Folder or hub id, revision, and whether code that comes with the model may run.
LanguageModelSource = tuple[str | Path, str | None, bool]
# Settings that both engines take.
_SETTINGS = {
    "learning_rate",
    "weight_decay",
    "batch_examples",
    "epochs",
    "precision",
    "step_tokens",
    "evaluation_tokens",
}


def native_tuner(lm: PreTrainedModel, finetuning: Finetuning) -> Finetuner:
    """Return the native engine for a loaded LM, whatever `finetuning.engine` is.

    Parameters
    ----------
    lm: in float32.
    finetuning: the section `finetuning` of the config.
    """
    return Finetuner(lm, compile=finetuning.compile, **finetuning.model_dump(include=_SETTINGS))


def open_tuner(source: LanguageModelSource, finetuning: Finetuning) -> Finetuner | ZeroFinetuner:
    """Load an LM and return the engine of `finetuning.engine` for it.

    Parameters
    ----------
    source: folder or hub id of the LM, its revision, and whether code that comes with it may run.
    finetuning: the section `finetuning` of the config.

    Raises
    ------
    StudyError: DeepSpeed is asked for and not installed, the LM can't be loaded, or memory runs out.
    """
    model, revision, trust_remote_code = source
    if finetuning.engine == "native":
        lm = load_language_model(model, revision, trust_remote_code, precision=finetuning.precision)
        return native_tuner(lm, finetuning)
    try:
        from workflow_scripts.language_model.deepspeed_finetuner import ZeroFinetuner
    except ModuleNotFoundError as error:
        raise StudyError(
            f"finetuning.engine is deepspeed, but {error.name} is not installed: run "
            "`pip install -r envs/requirements-deepspeed.lock` in the workflow's environment, or write engine: native."
        ) from None
    lm = load_language_model(model, revision, trust_remote_code, device="cpu")
    if lm.airrep_packed and finetuning.precision == "bfloat16":
        # The kernel that GPUs have for it can't be tested here, on the CPU.
        use_packing(lm, attention=BUCKETS)
    return ZeroFinetuner(
        lm,
        stage=finetuning.zero_stage,
        offload=finetuning.offload,
        **finetuning.model_dump(include=_SETTINGS),
    )
