"""Where two cost lines meet, by hand."""

import math

import pytest

from workflow_scripts.study.break_even import Cost, crossover


@pytest.mark.parametrize(
    ("ours", "theirs", "examples"),
    [
        (Cost(1000, 0.01), Cost(100, 0.1), 10_000),
        (Cost(100, 0.1), Cost(1000, 0.1), 0),
        (Cost(50, 0.1), Cost(100, 0.2), 0),
        (Cost(1000, 0.1), Cost(0, 0.1), math.inf),
        (Cost(1000, 0.2), Cost(0, 0.1), math.inf),
    ],
)
def test_crossover_of_hand(ours, theirs, examples):
    assert crossover(ours, theirs) == pytest.approx(examples)


def test_the_papers_break_even():
    """Label making and training 200 GPU hours, 2,500 examples/s against 30: the order that the paper quotes."""
    found = crossover(Cost(5 * 3600, 1 / 2500), Cost(0, 1 / 30))
    assert 400_000 < found < 600_000
