"""What a model of sentence-transformers does to a text is what is read of it, or it is refused."""

import json
import logging

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, LayerNorm, Normalize, Pooling, Transformer

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.corpora.templates import encoder_texts
from workflow_scripts.encoder.loading import load_encoder, load_trained_encoder
from workflow_scripts.methods import sentence_encoder

TEXTS = ["a question and its answer", "two", "some more words than the others have, " * 5]


def dense(activation=None, **options):
    torch.manual_seed(1)
    return Dense(32, 8, activation_function=activation or torch.nn.Identity(), **options)


def second():
    torch.manual_seed(2)
    return Dense(8, 4, activation_function=torch.nn.Identity())


# Modules after the transformer, and what is said of them.
OTHERS = {
    "tanh": (lambda: [Pooling(32, pooling_mode="mean"), dense(torch.nn.Tanh())], "Dense (Tanh)"),
    "two": (
        lambda: [Pooling(32, pooling_mode="mean"), dense(), second()],
        "Pooling (mean), Dense (Identity), Dense (Identity)",
    ),
    "cls": (lambda: [Pooling(32, pooling_mode="cls"), dense()], "Pooling (cls)"),
    "max": (lambda: [Pooling(32, pooling_mode="max"), dense()], "Pooling (max)"),
    "last token": (lambda: [Pooling(32, pooling_mode="lasttoken"), dense()], "Pooling (lasttoken)"),
    "mean and max": (
        lambda: [Pooling(32, pooling_mode=["mean", "max"]), Dense(64, 8, activation_function=torch.nn.Identity())],
        "Pooling (mean, max)",
    ),
    "normalized after": (lambda: [Pooling(32, pooling_mode="mean"), dense(), Normalize()], "Identity), Normalize"),
    "layer norm": (lambda: [Pooling(32, pooling_mode="mean"), LayerNorm(32), dense()], "LayerNorm, Dense"),
    "residual": (lambda: [Pooling(32, pooling_mode="mean"), dense(use_residual=True)], "use_residual"),
}
ENCODERS = {
    "mean": lambda: [Pooling(32, pooling_mode="mean"), dense()],
    "without bias": lambda: [Pooling(32, pooling_mode="mean"), dense(bias=False)],
    "normalized": lambda: [Pooling(32, pooling_mode="mean"), Normalize(), dense()],
}


def saved(tiny, folder, modules, **options):
    transformer = Transformer(str(tiny.untrained), max_seq_length=32)
    model = SentenceTransformer(modules=[transformer, *modules], device="cpu", **options)
    model.save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def assert_same_directions(found, expected):
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() >= 1 - 1e-5


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_is_no_attribution_encoder_is_told_and_embedded_as_itself(tiny, tmp_path, name):
    modules, said = OTHERS[name]
    plain = saved(tiny, tmp_path / "model", modules())
    for load in (load_trained_encoder, lambda folder: load_encoder(folder, 64)):
        with pytest.raises(StudyError) as refused:
            load(tmp_path / "model")
        assert said in str(refused.value)
        assert "scoring.sentence_encoders" in str(refused.value)
    found = sentence_encoder.open_embedder(None, {}, False, model=str(tmp_path / "model")).embed(TEXTS)
    assert_same_directions(found, plain.encode(TEXTS))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_linear_layer_of_the_mean_is_an_encoder_with_the_vectors_of_sentence_transformers(tiny, tmp_path, name):
    plain = saved(tiny, tmp_path / "model", ENCODERS[name]())
    encoder = load_trained_encoder(tmp_path / "model")
    assert encoder.max_tokens == 32  # the model says so
    found = encoder.encode(encoder.tokenize([(text,) for text in TEXTS]))
    np.testing.assert_allclose(found, plain.encode(TEXTS), atol=1e-5)


def test_a_prompt_before_every_text_is_no_attribution_encoder(tiny, tmp_path):
    options = {"prompts": {"text": "query: "}, "default_prompt_name": "text"}
    saved(tiny, tmp_path / "model", ENCODERS["mean"](), **options)
    with pytest.raises(StudyError, match="every text follows 'query: '"):
        load_trained_encoder(tmp_path / "model")


def test_texts_in_lower_case_are_told(tiny, tmp_path):
    saved(tiny, tmp_path / "model", ENCODERS["mean"]())
    file = tmp_path / "model" / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_lower_case": True}))
    with pytest.raises(StudyError, match="do_lower_case"):
        load_trained_encoder(tmp_path / "model")


def test_training_starts_from_a_model_of_another_pooling_and_says_so(tiny, tmp_path, capsys):
    saved(tiny, tmp_path / "model", [Pooling(32, pooling_mode="cls"), Normalize()])
    encoder = load_encoder(tmp_path / "model", 64, dimension=8)
    assert (encoder.dimension, encoder.normalized) == (8, False)
    assert "its own pooling (cls) isn't used" in capsys.readouterr().err
    with pytest.raises(StudyError, match="has no projection"):
        load_trained_encoder(tmp_path / "model")


def test_a_transformer_in_a_folder_of_its_own_is_found(tiny, tmp_path):
    """The older layout of sentence-transformers."""
    plain = saved(tiny, tmp_path / "model", ENCODERS["mean"]())
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    (tmp_path / "model" / "0_Transformer").mkdir()
    for file in (tmp_path / "model").glob("*"):
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(tmp_path / "model" / "0_Transformer" / file.name)
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    encoder = load_trained_encoder(tmp_path / "model")
    found = encoder.encode(encoder.tokenize([(text,) for text in TEXTS]))
    np.testing.assert_allclose(found, plain.encode(TEXTS), atol=1e-5)


def test_a_model_without_a_transformer_is_refused(tiny, tmp_path):
    saved(tiny, tmp_path / "model", ENCODERS["mean"]())
    file = tmp_path / "model" / "modules.json"
    modules = json.loads(file.read_text())
    modules[0]["type"] = "sentence_transformers.models.StaticEmbedding"
    file.write_text(json.dumps(modules))
    with pytest.raises(StudyError, match="whose first module is a Transformer"):
        load_encoder(tmp_path / "model", 64)


@pytest.mark.parametrize("normalized", [False, True])
def test_plain_sentence_transformers_says_nothing_about_encoders(
    tiny, tmp_path, caplog, capfd, monkeypatch, normalized
):
    encoder = load_encoder(tiny.untrained, 64)
    encoder.normalized = normalized
    encoder.save(tmp_path / "encoder")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        plain = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    assert not [record.getMessage() for record in caplog.records]
    assert "newly initialized" not in capfd.readouterr().err
    texts = [text for (text,) in encoder_texts(read_table(tiny.corpus), 256, "joint")[:10]]
    found = encoder.encode(encoder.tokenize([(text,) for text in texts]))
    np.testing.assert_allclose(plain.encode(texts), found, atol=1e-5)
