"""Format numbers, durations and sizes for people, and state results in a sentence."""

from __future__ import annotations

import math

from workflow_scripts.report.results import Difference, EvaluationResult, LdsRow, method_name
from workflow_scripts.study.config import Study

ABSENT = "–"


def decimal(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """Return `value` with a fixed number of digits and a true minus sign; a missing value as a dash."""
    if value is None or math.isnan(value):
        return ABSENT
    value = round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval(low: float | None, high: float | None, digits: int = 2, signed: bool = False) -> str:
    """Return `[low, high]`, or an empty text if no interval is known."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"[{decimal(low, digits, signed)}, {decimal(high, digits, signed)}]"


def count(value: int) -> str:
    """Return an integer with thousands separators."""
    return f"{value:,}"


def share(part: float, whole: float) -> str:
    """Return `part` of `whole` in percent; a small share that isn't zero is never shown as zero."""
    if not whole:
        return ABSENT
    percent = 100 * part / whole
    if percent and percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if 0 < percent < 10 else f"{percent:.0f} %"


def times(ratio: float | None) -> str:
    """Return a ratio as e.g. `1.2 x`; a missing one as a dash."""
    return ABSENT if ratio is None else f"{ratio:.2g} x" if ratio < 10 else f"{ratio:,.0f} x"


def duration(seconds: float | None) -> str:
    """Return seconds in a readable unit, from ms to h; missing ones as a dash."""
    if seconds is None or math.isnan(seconds):
        return ABSENT
    # What rounds to 0.1 s is shown in seconds.
    if seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms" if seconds else "0 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def size(number: float | None) -> str:
    """Return a number of bytes in a readable unit, from B to TB (powers of 1,000); a missing one as a dash."""
    if number is None or math.isnan(number):
        return ABSENT
    units = ("B", "kB", "MB", "GB", "TB")
    power = 0
    while number >= 1000 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    whole = number >= 100 or number == int(number)
    return f"{number:.0f} {units[power]}" if whole else f"{number:.1f} {units[power]}"


def headline(result: EvaluationResult) -> str:
    """Return a sentence on how well AirRep predicts compared with its best rival, whichever is better.

    The rival is the best row that isn't AirRep with another pooling. It says "above" or "below" only if the interval of
    the difference excludes zero.
    """
    ceiling = f"; the noise ceiling is {decimal(result.ceiling)}." if result.ceiling is not None else "."
    if result.main is None:
        best = result.rows[0]
        return f"{best.name} predicts fine-tuning effects with {_measured(best, result)}{ceiling}"
    sentence = f"{result.main.name} predicts fine-tuning effects with {_measured(result.main, result)}"
    if result.rival is not None:
        sentence += ", " + _against(result.main, result.rival)
    return sentence + ceiling


def unjudged_headline(study: Study) -> str:
    """Return a sentence on what a study without an LDS shows."""
    sets = " and ".join(f"“{name}”" for name in study.evaluations)
    methods = " and ".join(method_name(method) for method in study.scoring.methods)
    return (
        f"The most helpful and most harmful training examples for {sets}, as {methods} "
        f"{'has' if len(study.scoring.methods) == 1 else 'have'} it. How right that is was not measured."
    )


def _measured(row: LdsRow, result: EvaluationResult) -> str:
    return f"LDS {decimal(row.lds)} {interval(row.ci_low, row.ci_high)} on “{result.name}”"


def _against(main: LdsRow, rival: LdsRow) -> str:
    name = rival.name.replace("Untrained encoder", "the untrained encoder")
    lead = rival.lead or Difference(main.lds - rival.lds, None, None)
    distance = decimal(abs(lead.difference))
    if lead.ci_low is None or lead.ci_high is None:
        return f"beside {decimal(rival.lds)} of {name}, with no interval of the difference"
    if lead.ci_low > 0:
        return f"{distance} above {name}, the next best method"
    if lead.ci_high < 0:
        return f"{distance} below {name}, which does better"
    bounds = interval(lead.ci_low, lead.ci_high, signed=True)
    return (
        f"which can't be told apart from {name} at {decimal(rival.lds)} "
        f"(difference {decimal(lead.difference, signed=True)} {bounds})"
    )
