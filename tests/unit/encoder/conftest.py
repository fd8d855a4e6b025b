"""Encoders that several test files read."""

import pytest
from tiny_study import encoder_values

from workflow_scripts.encoder.init_encoder import init_encoder


@pytest.fixture(scope="session")
def split_folder(tiny, tmp_path_factory):
    """An encoder that reads prompt and response apart, means of length 1, started at the principal axes."""
    folder = tmp_path_factory.mktemp("split") / "encoder"
    init_encoder(tiny.corpus, folder, **encoder_values(view="split", normalized=True, projection="principal"))
    return folder
