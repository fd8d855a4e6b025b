"""Losses and gradients of tiny LMs of many families are those of plain transformers, one example at a time."""

import pytest
from comparison import compare_language_model
from compatibility import listed
from families import LANGUAGE_MODEL_CUT, LANGUAGE_MODELS

WHOLE = [name if name in LANGUAGE_MODEL_CUT else pytest.param(name, marks=pytest.mark.slow) for name in LANGUAGE_MODELS]


@pytest.mark.parametrize("name", WHOLE)
def test_losses_are_those_of_plain_transformers_or_the_lm_is_refused(name, tmp_path):
    found = compare_language_model(name, tmp_path)
    assert found.distance <= 1e-5
    assert found.gradients <= 1e-4
    assert found.way == listed("Language models")[name]
