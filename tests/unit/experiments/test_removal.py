"""Which examples the removal takes away first."""

import numpy as np

from workflow_scripts.experiments.removal import most_helpful


def test_the_most_helpful_come_first_and_ties_by_id():
    assert most_helpful(np.array([9, 4, 7, 2]), np.array([1.0, 3.0, 1.0, -2.0])).tolist() == [4, 7, 9, 2]
