"""Names and order that the runs of the removal curve and their evaluation share."""

import numpy as np

from workflow_scripts.study.choices import RANDOM_REMOVAL, WHOLE_BASE

RANDOM = RANDOM_REMOVAL
WHOLE = WHOLE_BASE


def most_helpful(example_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the ids by decreasing score, int [examples]; of equal scores the lower id comes first.

    Parameters
    ----------
    example_ids: int [examples].
    scores: float [examples].
    """
    return example_ids[np.lexsort((example_ids, -scores))]
