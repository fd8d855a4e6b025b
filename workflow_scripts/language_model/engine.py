"""The engine that fine-tunes, native or DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workflow_scripts.core.errors import StudyError
from workflow_scripts.language_model.finetuner import Finetuner
from workflow_scripts.language_model.losses import load_language_model

if TYPE_CHECKING:
    from workflow_scripts.language_model.deepspeed_finetuner import ZeroFinetuner


def open_tuner(
    source: Sequence[Any], *, zero: Mapping[str, Any] | None = None, **settings: Any
) -> Finetuner | ZeroFinetuner:
    """Return the engine that fine-tunes: native, or DeepSpeed with its own settings `zero`.

    `source` is what `load_language_model` takes: folder or hub id, revision, whether remote code is trusted.
    """
    if zero is None:
        return Finetuner(load_language_model(*source, precision=settings["precision"]), **settings)
    try:
        from workflow_scripts.language_model.deepspeed_finetuner import ZeroFinetuner
    except ModuleNotFoundError as error:
        raise StudyError(
            f"finetuning.engine is deepspeed, but {error.name} is not installed: run "
            "`pip install -r envs/requirements-deepspeed.lock` in the workflow's environment, or write engine: native."
        ) from None
    return ZeroFinetuner(load_language_model(*source, device="cpu"), **zero, **settings)
