"""Progress of long stages (units done, rate, time left), on the screen and in the stage's log."""

from __future__ import annotations

import sys
import time
from datetime import timedelta


def say(message: str) -> None:
    """Print one line to standard error, which `core.stage` copies to the stage's log."""
    print(message, file=sys.stderr, flush=True)


class Progress:
    """Count finished units of work and report them at most every `interval` seconds, and at the end.

    Parameters
    ----------
    title: begins each line, e.g. `finetune_shard train 0`.
    total: number of units in all.
    unit: what they are called, in the plural, e.g. `subsets`.
    done: units that an earlier attempt had finished; they don't count towards the rate.
    interval: fewest seconds between two lines.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0, interval: float = 10.0):
        self.title, self.total, self.unit, self.interval = title, total, unit, interval
        self.done = self.done_before = done
        self.start = self.last_said = time.monotonic()
        if done:
            say(f"{title}: resuming at {done:,} of {total:,} {unit}")

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` more as done; `note` (e.g. the current loss) is printed at the end of the line."""
        self.done += units
        now = time.monotonic()
        if self.done < self.total and now - self.last_said < self.interval:
            return
        self.last_said = now
        elapsed = max(now - self.start, 1e-9)
        rate = (self.done - self.done_before) / elapsed
        if self.done < self.total:
            left = timedelta(seconds=round((self.total - self.done) / rate)) if rate else "?"
            tail = f"{left} left"
        else:
            tail = f"done in {timedelta(seconds=round(elapsed))}"
        share = 100 * self.done / max(self.total, 1)
        say(
            f"{self.title}: {self.done:,} of {self.total:,} {self.unit} ({share:.0f} %), "
            f"{rate:.3g} {self.unit}/s, {tail}" + (f", {note}" if note else "")
        )


def one_line(text: str, characters: int) -> str:
    """Return a text as one line for the screen, cut at `characters`, without control sequences of terminals."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= characters else line[: characters - 1] + "…"
