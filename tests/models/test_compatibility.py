"""docs/compatibility.md is what `compatibility.py` writes for the listed families."""

from compatibility import PAGE, listed, page
from families import ENCODERS, LANGUAGE_MODELS


def test_the_page_has_a_row_for_each_model_and_was_not_edited():
    language_models, encoders = listed("Language models"), listed("Encoders")
    assert list(language_models) == sorted(LANGUAGE_MODELS)
    assert list(encoders) == sorted(ENCODERS)
    assert page(language_models, encoders) == PAGE.read_text(encoding="utf-8")
