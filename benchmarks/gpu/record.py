"""What a run of the GPU acceptance prints and writes: a line a figure, and a JSON file that is whole at any time."""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow_scripts.core.files import atomic_path

LINE = 118


class OutOfTime(Exception):  # noqa: N818
    """The run's time has ended in the middle of a case."""


class Record:
    """The cases of one run and what came of them.

    Parameters
    ----------
    out: the JSON file, rewritten after every case; None for none.
    seconds: after so many, no case begins, and the one that runs is cut off.
    resume: go on with a run that `out` holds: its cases are not run again, and its time has been running.
    """

    def __init__(self, out: Path | None, seconds: float, resume: bool = False):
        self.out = out
        self.state: dict[str, Any] = {"started": time.time(), "cases": {}}
        if resume and out is not None and out.exists():
            self.state = json.loads(out.read_text())
            for name, content in self.cases.items():
                if content.get("state") == "began":
                    Case(name, content).fail(RuntimeError("the process ended in the middle of it"))
        self.deadline = self.state["started"] + seconds

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        return self.state["cases"]

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.time()

    def run(self, name: str, case: Callable[[Case], None], seconds: float) -> None:
        """Run `case` unless it is done, or fewer than the `seconds` that it takes are left.

        Whatever it raises is one line on the screen, and a traceback in the file.
        """
        if name in self.cases:
            return
        found = Case(name)
        self.cases[name] = found.content
        if self.seconds_left < seconds:
            found.skip(f"{seconds:.0f} s needed, {max(self.seconds_left, 0):.0f} s left")
            self.write()
            return
        # A case that takes the device down with it must not be run again.
        found.content["state"] = "began"
        self.write()
        started = time.time()
        before = signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, max(self.seconds_left, 1.0))
        try:
            case(found)
        except OutOfTime:
            found.skip("its time ended in the middle of it")
        except Exception as error:
            found.fail(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        found.content["state"] = "ended"
        found.content["seconds"] = round(time.time() - started, 2)
        self.write()

    def write(self) -> None:
        """Write everything so far to the file, whole or not at all."""
        if self.out is None:
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.out) as temporary:
            temporary.write_text(json.dumps(self.state, indent=1, default=str) + "\n")

    def counts(self) -> dict[str, int]:
        """Return how many lines passed, failed and were skipped."""
        verdicts = [row["verdict"] for case in self.cases.values() for row in case["rows"]]
        return {verdict: verdicts.count(verdict) for verdict in ("PASS", "FAIL", "SKIPPED")}


def _stop(*_: object) -> None:
    raise OutOfTime


class Case:
    """What one case found; every call prints a line.

    A check has a bound, and passes or fails. A figure has none: its goal is what a certain machine is to reach.
    """

    def __init__(self, name: str, content: dict[str, Any] | None = None):
        self.name = name
        self.content: dict[str, Any] = {"rows": []} if content is None else content

    def check(self, what: str, measured: float, bound: float, at_least: bool = False) -> bool:
        """Compare `measured` with the most, or the least, that it may be; return whether it passed."""
        # False for NaN.
        passed = bool(measured >= bound if at_least else measured <= bound)
        words = f"{measured:.3g}, {'at least' if at_least else 'at most'} {bound:.3g}"
        self._row("PASS" if passed else "FAIL", what, words, measured=measured, bound=bound)
        return passed

    def figure(self, what: str, value: float, unit: str, goal: float | None = None, at_least: bool = False) -> None:
        """Tell a figure, and beside it the goal."""
        words = f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:.3g} {unit}"
        if goal is not None:
            met = value >= goal if at_least else value <= goal
            words += f"  (goal: {'at least' if at_least else 'at most'} {goal:,g}; {'met' if met else 'not met'})"
        self._row("", what, words, value=value, unit=unit, goal=goal)

    def fact(self, what: str, value: object) -> None:
        """Tell something that is no number."""
        self._row("", what, str(value), value=value)

    def skip(self, reason: str, what: str = "") -> None:
        """Say that something was not done."""
        self._row("SKIPPED", what, reason)

    def fail(self, error: Exception) -> None:
        """Say that the case raised `error`."""
        self.content |= {"state": "ended", "traceback": "".join(traceback.format_exception(error))}
        reason = (str(error).strip().splitlines() or [""])[0]
        self._row("FAIL", "", f"{type(error).__name__}: {reason}")

    def _row(self, verdict: str, what: str, words: str, **values: object) -> None:
        self.content["rows"].append({"verdict": verdict, "what": what, "words": words, **values})
        line = f"{verdict:<7} {self.name:<22} {f'{what}: ' if what else ''}{words}"
        print(line if len(line) <= LINE else line[: LINE - 1] + "…", flush=True)
