"""Unigram F1 of an answer and a reference text."""

from __future__ import annotations

import re
from collections import Counter


def unigrams(text: str) -> list[str]:
    """Return the words of a text: lower case, runs of letters and digits."""
    return re.findall(r"[^\W_]+", text.lower())


def unigram_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of the words, in [0, 1]; repeated words count repeatedly.

    It is 1 for two texts without words, and 0 if only one has none.
    """
    ours, theirs = Counter(unigrams(answer)), Counter(unigrams(reference))
    if not ours and not theirs:
        return 1.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())
