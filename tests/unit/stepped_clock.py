"""A clock for `core.timing` that moves only when a test says so."""

from types import SimpleNamespace

from workflow_scripts.core import timing


class SteppedClock:
    """Stands in for the clock and the processor time of this process, which starts at zero.

    Parameters
    ----------
    monkeypatch: pytest's, which puts the real ones back.
    """

    def __init__(self, monkeypatch):
        self.now, self.used = 0.0, 0.0
        time = SimpleNamespace(time=lambda: self.now, process_time=lambda: self.used)
        monkeypatch.setattr(timing, "time", time)
        monkeypatch.setattr(timing, "os", SimpleNamespace(times=lambda: (0.0,) * 5))
        monkeypatch.setattr(timing, "_process_start", lambda: 0.0)

    def step(self, clock: float, processor: float = 0.0) -> None:
        """Let seconds pass on the clock, and the processor work for some."""
        self.now += clock
        self.used += processor
