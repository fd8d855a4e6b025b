"""Where an encoder starts: the principal axes of texts and of words."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_study import encoder_values

from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.corpora.templates import encoder_texts
from workflow_scripts.encoder.init_encoder import init_encoder
from workflow_scripts.encoder.loading import load_encoder


def test_the_principal_start_centres_and_levels_the_texts_it_saw(tiny, split_folder):
    model = load_encoder(split_folder, 64)
    tokens = model.tokenize(encoder_texts(read_table(tiny.corpus), 256, "split"))
    vectors = model.encode(tokens, 500)
    with torch.inference_mode():
        means = model.means(tokens).numpy()
    np.testing.assert_allclose(np.linalg.norm(means, axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(vectors.mean(0), 0, atol=1e-3)
    for part in range(2):
        variances = np.sort(np.linalg.eigvalsh(np.cov(means[:, part].T, bias=True)))[::-1]
        found = np.cov(vectors[:, 8 * part : 8 * part + 8].T, bias=True)
        expected = variances[:8] / np.sqrt(variances[:8] + variances.mean() / 100)
        np.testing.assert_allclose(found, np.diag(expected), atol=1e-4)


def test_words_that_occur_in_the_same_texts_start_alike(tmp_path):
    """Of three kinds of texts, each with words of its own."""
    kinds = [["red", "blue", "green"], ["one", "two", "three"], ["cat", "dog", "cow"]]
    rows = [{"prompt": " ".join(kind), "response": " ".join(kind[:2])} for kind in kinds for _ in range(20)]
    write_table(tmp_path / "corpus.parquet", pa.Table.from_pylist(rows))
    spec = encoder_values(view="split", layers=0, word_embeddings="principal", vocabulary=100)
    init_encoder(tmp_path / "corpus.parquet", tmp_path / "encoder", **spec)
    model = load_encoder(tmp_path / "encoder", 64)
    words = model.transformer.embeddings.word_embeddings.weight.detach()
    assert not model.transformer.embeddings.position_embeddings.weight.any()
    ids = [[model.tokenizer.convert_tokens_to_ids(word) for word in kind[:2]] for kind in kinds]
    vectors = torch.nn.functional.normalize(words[torch.tensor(ids).flatten()], dim=1)
    likeness = vectors @ vectors.T
    same = torch.block_diag(*[torch.ones(2, 2)] * 3).bool()
    assert likeness[same].min() > likeness[~same].max() + 0.3


def test_prompts_that_are_all_the_same_count_for_nothing(tmp_path, capsys):
    rows = [{"prompt": "Classify this.", "response": f"kind {n % 7} of {n % 5}"} for n in range(60)]
    write_table(tmp_path / "corpus.parquet", pa.Table.from_pylist(rows))
    spec = encoder_values(view="split", layers=0, projection="principal", prompt_scale=0.6, vocabulary=100)
    init_encoder(tmp_path / "corpus.parquet", tmp_path / "encoder", **spec)
    model = load_encoder(tmp_path / "encoder", 64)
    vectors = model.encode(model.tokenize([(row["prompt"], row["response"]) for row in rows]), 500)
    prompts, responses = np.split(vectors, 2, axis=1)
    assert not prompts.any()
    assert np.isfinite(responses).all()
    assert responses.any()
    assert "all prompts are the same as far as they are read" in capsys.readouterr().err


@pytest.mark.parametrize("prompt_scale", [0.5, 2.0])
def test_prompts_start_at_their_share_of_the_responses(tiny, tmp_path, prompt_scale):
    spec = encoder_values(view="split", projection="principal", prompt_scale=prompt_scale)
    init_encoder(tiny.corpus, tmp_path / "encoder", **spec)
    model = load_encoder(tmp_path / "encoder", 64)
    vectors = model.encode(model.tokenize(encoder_texts(read_table(tiny.corpus), 256, "split")), 500)
    prompts, responses = (np.sqrt((half**2).sum(1).mean()) for half in np.split(vectors, 2, axis=1))
    assert prompts / responses == pytest.approx(prompt_scale, rel=1e-3)
