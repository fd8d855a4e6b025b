"""Embeddings of tiny encoders of many families are those of sentence-transformers, one text at a time."""

import re

import pytest
from comparison import compare_encoder
from families import ENCODER_CUT, ENCODERS, PACKED_ENCODERS, REFUSED_ENCODERS

from workflow_scripts.core.errors import StudyError

WHOLE = [name if name in ENCODER_CUT else pytest.param(name, marks=pytest.mark.slow) for name in sorted(ENCODERS)]


@pytest.mark.parametrize("name", WHOLE)
def test_embeddings_are_those_of_sentence_transformers_or_the_encoder_is_refused(name, tmp_path):
    if name in REFUSED_ENCODERS:
        with pytest.raises(StudyError, match=re.escape(REFUSED_ENCODERS[name][1])):
            compare_encoder(name, tmp_path)
        return
    found = compare_encoder(name, tmp_path)
    assert found.distance <= 1e-5
    assert found.way.startswith("packed" if name in PACKED_ENCODERS else ("padded", "one length"))
