"""A baseline of random scores: the LDS of a method that knows nothing."""

from __future__ import annotations

import numpy as np

from workflow_scripts.core.seeds import derive_seed
from workflow_scripts.methods.text_scorer import Texts, TextScorer


def open_scorer(train: Texts, test: Texts, seed: int) -> TextScorer:
    """Return a scorer of uniform scores in [0, 1); they depend on the seed alone, not on the tiles."""
    tests, examples = len(test.prompts), len(train.prompts)
    stream = derive_seed(seed, "random scores")

    def score(rows: slice, columns: slice) -> np.ndarray:
        start, stop, _ = rows.indices(examples)
        # Each score is one draw of the stream, so a tile begins at the draw of its first score.
        draws = np.random.Generator(np.random.PCG64(stream).advance(start * tests))
        return draws.random((stop - start, tests))[:, columns].astype(np.float32)

    return TextScorer(score, 0)
