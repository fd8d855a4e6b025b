"""Which rows of a short list say the same: the same answer, or nearly the same words."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Any

# A short answer, as `Yes.` or a class's name, is the same for many questions that have nothing in common.
SHORTEST_ANSWER_WORDS = 3
# Jaccard similarity of the sets of word 3-grams from which two rows are nearly the same.
NEAR = 0.8
# What is beyond isn't compared, so that no text can make it slow.
COMPARED_CHARACTERS = 4_000
# At the edges of a word they say nothing.
SENTENCE_MARKS = ".,;:!?…\"'“”‘’«»()[]。，、；：！？「」"

_WORD = re.compile(r"\w+")


def first_of_same(rows: Iterable[tuple[str, str]]) -> list[int]:
    """Return for each row the place of the first row that it says the same as; its own place if there is none.

    Two rows say the same if their responses have the same words, three or more; or if these are fewer and the word
    3-grams of prompt and response together have a Jaccard similarity of at least 0.8. Another answer, by a single word,
    is never the same (`answer_words`). Of a prompt, case and punctuation count for nothing, nor does what is beyond its
    first 4,000 characters. A row is compared with the first row of each group.

    Parameters
    ----------
    rows: prompt and response of each, in their order.
    """
    firsts: list[int] = []
    known: dict[tuple[str, ...], int] = {}
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    grams_of: dict[int, set[tuple[str, ...]]] = {}
    answers: dict[int, tuple[str, ...]] = {}
    for place, (prompt, response) in enumerate(rows):
        asked, answer = _words(prompt), answer_words(response)
        words = (*asked, *answer)
        # Short rows have no 3-grams; the mark tells a whole row from an answer.
        keys = [("", *asked, "", *answer), *([answer] if len(answer) >= SHORTEST_ANSWER_WORDS else [])]
        first = next((known[key] for key in keys if key in known), None)
        if first is None:
            grams = {words[start : start + 3] for start in range(len(words) - 2)}
            near = {holder for gram in grams for holder in holders.get(gram, ())}
            same = (holder for holder in near if answers[holder] == answer and _similar(grams_of[holder], grams))
            first = min(same, default=place)
            if first == place:
                grams_of[place], answers[place] = grams, answer
                for gram in grams:
                    holders[gram].append(place)
        for key in keys:
            known.setdefault(key, first)
        firsts.append(first)
    return firsts


def answer_words(text: str) -> tuple[str, ...]:
    """Return the words of an answer, the same for two that differ in case, spaces and sentence marks alone.

    Other signs tell answers apart: -5 and 5, C++ and C, x < y and x > y. What is beyond the first 4,000 characters is
    one more word, its hash.
    """
    start, rest = (
        [stripped for word in part.casefold().split() if (stripped := word.strip(SENTENCE_MARKS))]
        for part in (text[:COMPARED_CHARACTERS], text[COMPARED_CHARACTERS:])
    )
    return (*start, hashlib.sha256("\n".join(rest).encode()).hexdigest()) if rest else tuple(start)


def _similar(left: AbstractSet[Any], right: AbstractSet[Any]) -> bool:
    both = len(left & right)
    return both >= NEAR * (len(left) + len(right) - both)


def _words(text: str) -> tuple[str, ...]:
    text = text[:COMPARED_CHARACTERS].casefold()
    if not text.isascii():
        # Vowel signs and tones of many scripts are no word characters for `re`, and tell words apart.
        text = "".join(f"{ord(one):x}" if unicodedata.category(one)[0] == "M" else one for one in text)
    return tuple(_WORD.findall(text))
