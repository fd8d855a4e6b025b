"""Which experiment tracker a job's training curves go to; no tracker is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from workflow_scripts.core.errors import StudyError

TrackerName = Literal["tensorboard", "trackio", "wandb", "mlflow"]


@dataclass(frozen=True)
class Tracking:
    """Which tracker a job's curves go to.

    Parameters
    ----------
    tracker: name of the tracker, which is that of its package.
    folder: folder for its files, beside the job's log.
    """

    tracker: TrackerName
    folder: Path


def require_tracker(tracker: TrackerName) -> None:
    """Raise a `StudyError` if the package of a tracker is not installed; the package isn't imported."""
    found = find_spec(tracker)
    # A plain folder of that name, as `wandb` makes one, counts as a package without a file.
    if found is None or found.origin is None:
        raise StudyError(
            f"track is {tracker}, but {tracker} is not installed: run `pip install {tracker}` in the workflow's "
            "environment, or leave `track` out."
        )
