"""Small data and models for the unit tests."""

import pytest
from plain_varlen import PlainVarlen
from tiny_study import TinyStudy, make_tiny_study

from workflow_scripts.models import packing


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_tiny_study(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def varlen(monkeypatch):
    """A kernel for variable lengths that runs here, where it would run on a GPU."""
    kernel = PlainVarlen()
    monkeypatch.setattr(packing, "varlen_attn", kernel)
    monkeypatch.setattr(packing, "_TAKES_ENABLE_GQA", True)
    monkeypatch.setattr(packing, "_runs_varlen", lambda device: True)
    return kernel
