"""Faults to inject, and the record of what came of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FLIP_SEED = 7


@dataclass(frozen=True)
class Fault:
    """One kind of fault: how often it was injected, what it cost, and what the user was told."""

    name: str
    injected: int
    lost: int
    wrong: int
    saw: str


@dataclass
class FaultTable:
    """All faults of a run of the suite."""

    rows: list[Fault] = field(default_factory=list)

    def record(self, name: str, injected: int, saw: str, *, lost: int = 0, wrong: int = 0) -> None:
        """Add a row, and fail the test if a result was lost or is wrong.

        `lost` counts finished results that had to be made again, `wrong` results that differ from a straight run.
        """
        self.rows.append(Fault(name, injected, int(lost), int(wrong), " ".join(saw.split())))
        assert (lost, wrong) == (0, 0), f"{name}: {lost} lost, {wrong} wrong"

    def text(self) -> str:
        """Return the rows as a Markdown table."""
        names = ("fault", "times injected", "lost results", "wrong results", "what the user saw")
        lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        lines += [f"| {row.name} | {row.injected} | {row.lost} | {row.wrong} | {row.saw} |" for row in self.rows]
        return "\n".join(lines)


def killed(work: Callable[[], object], seconds: float) -> bool:
    """Do `work` in a twin of this process and kill it after `seconds`; return whether it was still at work."""
    twin = os.fork()
    if twin == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(twin, signal.SIGKILL)
    _, status = os.waitpid(twin, 0)
    return os.WIFSIGNALED(status)


def in_twin(work: Callable[[], object]) -> int:
    """Do `work` in a twin of this process; return its exit code, or minus the signal that ended it."""
    twin = os.fork()
    if twin == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            os._exit(code)
    _, status = os.waitpid(twin, 0)
    return os.waitstatus_to_exitcode(status)


@contextmanager
def changed_bytes(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    """Put changed bytes in the place of a file's own for the time of the block."""
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    try:
        yield
    finally:
        path.write_bytes(whole)


def flipped(bit: int) -> Callable[[bytes], bytes]:
    """Return a change that flips one bit of a file, counted over all its bytes."""

    def change(whole: bytes) -> bytes:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    return change
