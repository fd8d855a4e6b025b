"""Unigram F1 of two texts."""

from __future__ import annotations

import re
from collections import Counter


def unigrams(text: str) -> list[str]:
    """Return the words of a text: lower case, runs of letters and digits."""
    return re.findall(r"[^\W_]+", text.lower())


def unigram_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of the words, each counted as often as it stands there.

    Two texts without a word agree (1); one with and one without don't (0).
    """
    ours, theirs = Counter(unigrams(answer)), Counter(unigrams(reference))
    if not ours and not theirs:
        return 1.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())
