"""Types of config values that code branches on; for modules that don't import pydantic, which the config needs."""

from __future__ import annotations

from typing import Literal

# How scores of examples become the score of a group; `chosen` is what folds held back from the encoder choose.
Pooling = Literal["attention", "signed", "mean", "sum", "chosen"]
# Those that weigh members by their scores: one pass over the scores computes one of them.
WEIGHING: frozenset[Pooling] = frozenset({"attention", "signed", "chosen"})
# Whether an encoder reads prompt and response as one text or as two.
View = Literal["joint", "split"]
# A correlation over fewer subsets is 1 or -1.
SMALLEST_NUMBER_OF_SUBSETS = 3
# What tables of experiments call rows that are no method's.
RANDOM_SELECTION, RANDOM_REMOVAL, FULL_DATA, WHOLE_BASE = "random_selection", "random_removal", "full_data", "whole"
BASE_LM, WARM_LM = "base_lm", "warm_lm"
NO_METHODS = frozenset({RANDOM_SELECTION, RANDOM_REMOVAL, FULL_DATA, WHOLE_BASE, BASE_LM, WARM_LM})
