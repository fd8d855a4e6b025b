"""Embeddings of tiny encoders of many families are those of sentence-transformers, one text at a time."""

import pytest
from comparison import compare_encoder
from compatibility import listed
from families import ENCODER_CUT, ENCODERS

WHOLE = [name if name in ENCODER_CUT else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS]


@pytest.mark.parametrize("name", WHOLE)
def test_embeddings_are_those_of_sentence_transformers_or_the_encoder_is_refused(name, tmp_path):
    found = compare_encoder(name, tmp_path)
    assert found.distance <= 1e-5
    assert found.way == listed("Encoders")[name]
