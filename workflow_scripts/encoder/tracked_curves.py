"""Training curves in an experiment tracker, as the steps happen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.progress import one_line, say
from workflow_scripts.core.tracking import TrackerName, Tracking

PROJECT = "airrep"
LONGEST_REASON = 300


class TrackedCurves:
    """Curves of one training, which an interrupted training continues.

    Each step is written once, also where a resumed training repeats steps after its last checkpoint. An error of the
    tracker ends the tracking, never the training.

    Parameters
    ----------
    tracking: which tracker, and the folder for its files.
    name: name of the training, for people.
    key: hash of everything that decides the training; another key is another run of the tracker.
    resumes: whether the training goes on from a checkpoint; otherwise its curves begin anew.

    Raises
    ------
    StudyError: the tracker can't start.
    """

    def __init__(self, tracking: Tracking, name: str, key: str, *, resumes: bool):
        self._tracker, folder = tracking.tracker, tracking.folder / key
        self._state = folder / "tracked.json"
        if not resumes:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        state = json.loads(self._state.read_text(encoding="utf-8")) if self._state.exists() else {}
        self._last_step: int = state.get("last_step", -1)
        try:
            self._run: _Run | None = _OPENED_BY[tracking.tracker](folder, name, state.get("run"))
        except Exception as error:
            reason = one_line(str(error), LONGEST_REASON)
            raise StudyError(
                f"track: {tracking.tracker} can't start ({reason}). Set it up as its documentation says, or leave "
                "`track` out."
            ) from error

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add a step to the curves.

        Parameters
        ----------
        step: number of the step; one that was written before is skipped.
        values: the value of each curve; None where the step has none.
        """
        if self._run is None or step <= self._last_step:
            return
        try:
            self._run.log({name: value for name, value in values.items() if value is not None}, step)
            self._last_step = step
            with atomic_path(self._state) as temporary:
                temporary.write_text(json.dumps({"run": self._run.id, "last_step": step}), encoding="utf-8")
        except Exception as error:
            self._stop(error)

    def close(self) -> None:
        """End the run of the tracker."""
        try:
            if self._run is not None:
                self._run.close()
        except Exception as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        say(f"track: {self._tracker} failed ({one_line(str(error), LONGEST_REASON)}); training goes on without it")
        self._run = None


class _Run(NamedTuple):
    """A run of a tracker: `id` by which it is opened again, and the functions that add a step and end it."""

    id: str
    log: Callable[[dict[str, float], int], None]
    close: Callable[[], object]


def _open_tensorboard(folder: Path, name: str, run: str | None) -> _Run:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def log(values: dict[str, float], step: int) -> None:
        for curve, value in values.items():
            writer.add_scalar(curve, value, step)
        # A killed training has its last steps on the disk, and whoever watches sees them at once.
        writer.flush()

    return _Run(folder.name, log, writer.close)


def _open_trackio(folder: Path, name: str, run: str | None) -> _Run:
    import trackio

    run = run or f"{name} {_new_id()}"
    trackio.init(project=PROJECT, name=run, resume="allow")
    return _Run(run, lambda values, step: trackio.log(values, step=step), trackio.finish)


def _open_wandb(folder: Path, name: str, run: str | None) -> _Run:
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    opened: Any = wandb.init(project=project, name=name, id=run or _new_id(), dir=str(folder), resume="allow")
    return _Run(opened.id, lambda values, step: opened.log(values, step=step), opened.finish)


def _open_mlflow(folder: Path, name: str, run: str | None) -> _Run:
    import mlflow

    opened: Any = mlflow.start_run(run_id=run, run_name=None if run else name)
    return _Run(opened.info.run_id, lambda values, step: mlflow.log_metrics(values, step=step), mlflow.end_run)


def _new_id() -> str:
    return os.urandom(4).hex()


_OPENED_BY: dict[TrackerName, Callable[[Path, str, str | None], _Run]] = {
    "tensorboard": _open_tensorboard,
    "trackio": _open_trackio,
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
}
