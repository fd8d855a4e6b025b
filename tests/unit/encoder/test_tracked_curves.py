"""Training curves in trackers: each step once, the same run after an interruption, and no tracker's fault is ours.

TensorBoard's event files are read back by its own reader where it is installed; the others are stand-ins that record
how they are called.
"""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from workflow_scripts.core import tracking as core_tracking
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.tracking import Tracking, require_tracker
from workflow_scripts.encoder import tracked_curves as module
from workflow_scripts.encoder.tracked_curves import TrackedCurves

PACKAGES = ("tensorboard", "trackio", "wandb", "mlflow")


class Written:
    """What was written to a stand-in: (run, step, values), and the runs that were opened and ended."""

    def __init__(self):
        self.rows, self.opened, self.ended, self.options = [], [], 0, []

    def end(self, *_):
        self.ended += 1

    def steps(self):
        return [step for _, step, _ in self.rows]


def module_with(monkeypatch, name, **functions):
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None, origin="a stand-in")
    for key, value in functions.items():
        setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def stand_in_for_tensorboard(monkeypatch, written):
    class SummaryWriter:
        def __init__(self, folder):
            written.opened.append(folder)
            self.folder, self.waiting = folder, {}

        def add_scalar(self, curve, value, step):
            self.waiting.setdefault(step, {})[curve] = value

        def flush(self):
            written.rows += [(self.folder, step, values) for step, values in self.waiting.items()]
            self.waiting = {}

        def close(self):
            written.end()

    module_with(monkeypatch, "tensorboard")
    module_with(monkeypatch, "torch.utils.tensorboard", SummaryWriter=SummaryWriter)


def stand_in_for_trackio(monkeypatch, written):
    def init(project, *, name, resume):
        written.opened.append(name)
        written.options.append((project, resume))

    def log(values, *, step):
        written.rows.append((written.opened[-1], step, values))

    module_with(monkeypatch, "trackio", init=init, log=log, finish=written.end)


def stand_in_for_wandb(monkeypatch, written):
    def init(*, project, name, id, dir, resume):
        written.opened.append(id)
        written.options.append((project, resume))
        return SimpleNamespace(
            id=id, log=lambda values, *, step: written.rows.append((id, step, values)), finish=written.end
        )

    module_with(monkeypatch, "wandb", init=init)


def stand_in_for_mlflow(monkeypatch, written):
    def start_run(*, run_id=None, run_name=None):
        written.opened.append(run_id or f"run {len(set(written.opened))}")
        return SimpleNamespace(info=SimpleNamespace(run_id=written.opened[-1]))

    def log_metrics(values, *, step):
        written.rows.append((written.opened[-1], step, values))

    module_with(monkeypatch, "mlflow", start_run=start_run, log_metrics=log_metrics, end_run=written.end)


@pytest.fixture(params=PACKAGES)
def stand_in(request, monkeypatch, tmp_path):
    written = Written()
    {
        "tensorboard": stand_in_for_tensorboard,
        "trackio": stand_in_for_trackio,
        "wandb": stand_in_for_wandb,
        "mlflow": stand_in_for_mlflow,
    }[request.param](monkeypatch, written)
    return Tracking(request.param, tmp_path / "logs" / "train_encoder"), written


def curves(tracking, *, resumes, key="a1"):
    return TrackedCurves(tracking, "smoke/encoder", key, resumes=resumes)


def test_values_are_written_as_the_steps_happen(stand_in):
    tracking, written = stand_in
    one = curves(tracking, resumes=False)
    one.log(0, {"loss": None, "validation_lds": 0.1})
    assert [row[1:] for row in written.rows] == [(0, {"validation_lds": 0.1})]
    one.log(1, {"loss": 0.5, "validation_lds": None})
    assert [row[1:] for row in written.rows][1:] == [(1, {"loss": 0.5})]
    one.close()
    assert written.ended == 1


def test_a_resumed_training_continues_the_same_run_without_repeating_a_step(stand_in):
    tracking, written = stand_in
    first = curves(tracking, resumes=False)
    for step in range(6):
        first.log(step, {"loss": 1.0})
    # The last checkpoint is that of step 3: steps 4 and 5 are trained again.
    again = curves(tracking, resumes=True)
    for step in range(4, 8):
        again.log(step, {"loss": 1.0})
    assert written.steps() == list(range(8))
    assert len(written.opened) == 2
    assert len({run for run, _, _ in written.rows}) == 1


def test_a_training_that_starts_over_and_one_of_other_settings_begin_anew(stand_in):
    tracking, written = stand_in
    curves(tracking, resumes=False).log(0, {"loss": 1.0})
    curves(tracking, resumes=False).log(0, {"loss": 2.0})
    curves(tracking, resumes=True, key="b2").log(0, {"loss": 3.0})
    assert written.steps() == [0, 0, 0]
    runs = [run for run, _, _ in written.rows]
    # Event files of the same settings are replaced in their folder; other trackers keep both runs.
    assert len(set(runs)) == (2 if tracking.tracker == "tensorboard" else 3)
    assert runs[2] not in runs[:2]


def test_a_fault_of_the_tracker_ends_the_tracking_alone(stand_in, monkeypatch, capsys):
    tracking, written = stand_in
    one = curves(tracking, resumes=False)

    def fails(*_):
        raise ConnectionError("the server\nis away")

    one._run = one._run._replace(log=fails)
    one.log(0, {"loss": 1.0})
    one.log(1, {"loss": 1.0})
    one.close()
    said = capsys.readouterr().err
    assert said.count(f"track: {tracking.tracker} failed (the server is away); training goes on without it") == 1
    assert written.rows == []


def test_a_tracker_that_cannot_start_is_an_error_before_the_first_step(stand_in, monkeypatch):
    tracking, _ = stand_in

    def refuses(*_):
        raise RuntimeError("no API key")

    monkeypatch.setitem(module._OPENED_BY, tracking.tracker, refuses)
    with pytest.raises(StudyError, match=rf"track: {tracking.tracker} can't start \(no API key\)"):
        curves(tracking, resumes=False)


def test_a_folder_of_a_tracker_s_name_is_not_its_package(tmp_path, monkeypatch):
    (tmp_path / "no_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StudyError, match="is not installed"):
        require_tracker("no_tracker")


@pytest.mark.parametrize("tracker", PACKAGES)
def test_a_missing_package_is_named_with_the_command_that_installs_it(tracker, monkeypatch):
    monkeypatch.setattr(core_tracking, "find_spec", lambda name: None)
    with pytest.raises(
        StudyError, match=f"track is {tracker}, but {tracker} is not installed: run `pip install {tracker}`"
    ):
        require_tracker(tracker)


def test_tensorboard_s_own_reader_reads_the_curves(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracking = Tracking("tensorboard", tmp_path / "train_encoder")
    first = curves(tracking, resumes=False)
    for step in range(5):
        first.log(step, {"loss": 1 / (step + 1), "validation_lds": 0.5 if step % 2 == 0 else None})
    # Not closed, as by a kill; steps 3 and 4 are trained again.
    again = curves(tracking, resumes=True)
    for step in range(3, 7):
        again.log(step, {"loss": 1 / (step + 1)})
    again.close()
    events = accumulator.EventAccumulator(str(tracking.folder / "a1"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [
        (step, pytest.approx(1 / (step + 1))) for step in range(7)
    ]
    assert [one.step for one in events.Scalars("validation_lds")] == [0, 2, 4]
    assert json.loads((tracking.folder / "a1" / "tracked.json").read_text())["last_step"] == 6
