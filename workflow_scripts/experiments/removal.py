"""Removal of training examples: what both its runs and their evaluation go by."""

import numpy as np

RANDOM = "random_removal"
WHOLE = "whole"


def most_helpful(example_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the ids by falling score; of equal scores the lower id comes first."""
    return example_ids[np.lexsort((example_ids, -scores))]
