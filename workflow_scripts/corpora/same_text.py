"""Which rows of a short list say the same: the same answer, or nearly the same words."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

# A short answer, as `Yes.` or a class's name, is the same for many questions that have nothing in common.
SHORTEST_ANSWER_WORDS = 3
# Jaccard similarity of the sets of word 3-grams from which two rows are nearly the same.
NEAR = 0.8
# What is beyond isn't compared, so that no text can make it slow.
COMPARED_CHARACTERS = 4_000

_WORD = re.compile(r"\w+")


def first_of_same(rows: Iterable[tuple[str, str]]) -> list[int]:
    """Return for each row the place of the first row that it says the same as; its own place if there is none.

    Two rows say the same if their responses have the same words, three or more, or if the Jaccard similarity of the
    word 3-grams of prompt and response together is at least 0.8. Case and punctuation count for nothing, nor does what
    is beyond the first 4,000 characters of a prompt or a response. A row is compared with the first row of each group.

    Parameters
    ----------
    rows: prompt and response of each, in their order.
    """
    firsts: list[int] = []
    answers: dict[tuple[str, ...], int] = {}
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes: dict[int, int] = {}
    for place, (prompt, response) in enumerate(rows):
        asked, answer = (_words(text) for text in (prompt, response))
        words = (*asked, *answer)
        grams = {words[start : start + 3] for start in range(len(words) - 2)}
        first = answers.get(answer)
        if first is None:
            common = Counter(holder for gram in grams for holder in holders.get(gram, ()))
            near = (holder for holder, both in common.items() if both >= NEAR * (len(grams) + sizes[holder] - both))
            first = min(near, default=place)
        if first == place:
            sizes[place] = len(grams)
            for gram in grams:
                holders[gram].append(place)
        if len(answer) >= SHORTEST_ANSWER_WORDS:
            answers.setdefault(answer, first)
        firsts.append(first)
    return firsts


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text[:COMPARED_CHARACTERS].casefold()))
