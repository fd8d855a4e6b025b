"""Losses and gradients of tiny LMs of many families are those of plain transformers, one example at a time."""

import pytest
from comparison import compare_language_model
from families import LANGUAGE_MODEL_CUT, LANGUAGE_MODELS, NOT_CAUSAL, PACKED

from workflow_scripts.core.errors import StudyError

WHOLE = [
    name if name in LANGUAGE_MODEL_CUT else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(LANGUAGE_MODELS)
]


@pytest.mark.parametrize("name", WHOLE)
def test_losses_are_those_of_plain_transformers_or_the_lm_is_refused(name, tmp_path):
    if name in NOT_CAUSAL:
        with pytest.raises(StudyError, match=r"reads the tokens that it should predict.*Name an LM that reads from"):
            compare_language_model(name, tmp_path)
        return
    found = compare_language_model(name, tmp_path)
    assert found.distance <= 1e-5
    assert found.gradients <= 1e-4
    assert found.way.startswith("packed" if name in PACKED else ("padded", "one length"))
