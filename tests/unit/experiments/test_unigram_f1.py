"""F1 of answers against numbers made by hand."""

import pytest

from workflow_scripts.experiments.unigram_f1 import unigram_f1


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("The cat sat", "the cat sat.", 1.0),
        ("a a b", "a b b", 2 * 2 / 6),
        ("one two", "three", 0.0),
        ("one", "one two three", 0.5),
        ("", "one", 0.0),
        ("?!", "", 1.0),
    ],
)
def test_unigram_f1_of_hand(answer, reference, f1):
    assert unigram_f1(answer, reference) == pytest.approx(f1)
    assert unigram_f1(reference, answer) == pytest.approx(f1)
