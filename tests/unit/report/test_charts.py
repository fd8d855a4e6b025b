"""The convex front of a scatter plot, from the leftmost point to the highest."""

import numpy as np
import pytest

from workflow_scripts.report.charts import convex_front


def _front(*points):
    return [(x, 100 - y) for x, y in convex_front([(x, 100 - lds) for x, lds in points])]


def test_methods_below_the_line_between_two_others_are_left_out():
    # In the middle: below the line, on it, dearer and worse, of equal price and worse.
    assert _front((90, 80), (10, 20), (50, 40), (50, 50), (95, 70), (10, 5)) == [(10, 20), (90, 80)]
    assert _front((90, 80), (10, 20), (50, 60)) == [(10, 20), (50, 60), (90, 80)]


def test_the_cheapest_method_begins_the_front_and_may_be_all_of_it():
    assert _front((10, 60), (40, 30), (90, 59)) == [(10, 60)]
    assert _front() == []


@pytest.mark.parametrize("seed", range(20))
def test_no_method_is_above_the_front(seed):
    points = np.random.default_rng(seed).uniform(0, 100, (12, 2)).round(2)
    front = np.array(_front(*map(tuple, points)))
    assert {tuple(one) for one in front.round(2)} <= {tuple(one) for one in points}
    assert (np.diff(front[:, 1]) > 0).all()
    # Beyond the best method the front stays as high.
    assert (points[:, 1] <= np.interp(points[:, 0], front[:, 0], front[:, 1]) + 1e-6).all()
