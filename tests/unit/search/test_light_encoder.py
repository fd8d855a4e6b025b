"""The encoder in NumPy gives what the one in torch does, and isn't used for what it can't read."""

import json
import shutil

import numpy as np
import pytest
import torch

from workflow_scripts.corpora.templates import encoder_text
from workflow_scripts.encoder.init_encoder import small_encoder, wordpiece_tokenizer
from workflow_scripts.encoder.loading import load_trained_encoder
from workflow_scripts.search.light_encoder import _gelu, load_light_encoder

TEXTS = [("What is the sum of 3 and 4?", "It is 7."), ("Why", ""), ("word " * 90, "Long ünïcode answers, too. " * 30)]


def encoder(folder, view="joint", layers=2):
    texts = [part for pair in TEXTS for part in encoder_text(*pair, 256, view)]
    tokenizer = wordpiece_tokenizer([(text,) for text in texts], 200)
    model = small_encoder(tokenizer, view, 16, 64, 32, layers, seed=1)
    # As after training: nothing is at its simplest value.
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save(folder)
    return folder


@pytest.mark.parametrize("view", ["joint", "split"])
@pytest.mark.parametrize("layers", [0, 2])
def test_embeddings_are_those_of_torch(tmp_path, view, layers):
    folder = encoder(tmp_path / "encoder", view, layers)
    texts = [encoder_text(*pair, 256, view) for pair in TEXTS]
    model, light = load_trained_encoder(folder), load_light_encoder(folder)
    assert (light.view, light.dimension) == (view, model.dimension)
    np.testing.assert_allclose(light.encode(texts), model.encode(model.tokenize(texts)), rtol=1e-4, atol=1e-5)


def test_means_of_length_one(tmp_path):
    folder = encoder(tmp_path / "encoder")
    model = load_trained_encoder(folder)
    model.normalized = True
    model.save(folder)
    texts = [encoder_text(*pair, 256, "joint") for pair in TEXTS]
    np.testing.assert_allclose(
        load_light_encoder(folder).encode(texts), model.encode(model.tokenize(texts)), rtol=1e-4, atol=1e-5
    )


def test_gelu_is_that_of_torch():
    values = np.linspace(-6, 6, 1001, dtype=np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(_gelu(values), expected, atol=1e-6)


@pytest.mark.parametrize(
    "change", [{"hidden_act": "relu"}, {"model_type": "roberta"}, {"position_embedding_type": "relative_key"}]
)
def test_other_kinds_are_left_to_torch(tmp_path, change):
    folder = encoder(tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert load_light_encoder(folder) is None


@pytest.mark.parametrize("missing", ["2_Dense", "tokenizer.json", "model.safetensors", "modules.json"])
def test_what_is_not_whole_is_left_to_torch(tmp_path, missing):
    folder = encoder(tmp_path / "encoder")
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert load_light_encoder(folder) is None
