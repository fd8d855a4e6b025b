"""Small data and models for the unit tests."""

import pytest
from tiny_study import TinyStudy, make_tiny_study


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_tiny_study(tmp_path_factory.mktemp("tiny"))
