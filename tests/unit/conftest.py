"""Small data and models for the unit tests."""

import pytest
from model_hub import ModelHub
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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with nothing on it, an empty cache, and the network switched on."""
    with ModelHub() as made:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
        files = made.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield made
