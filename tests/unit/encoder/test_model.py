"""A saved encoder is a plain sentence-transformers folder with the same vectors."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from workflow_scripts.core.parquet import read_table
from workflow_scripts.corpora.templates import encoder_texts
from workflow_scripts.encoder.initialization import random_projections
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.encoder.model import AttributionEncoder
from workflow_scripts.models.packing import BUCKETS


@pytest.fixture(scope="module")
def texts(tiny):
    return [*encoder_texts(read_table(tiny.corpus), 256, "joint")[:40], ("one",), ("many words " * 100,)]


@pytest.fixture(scope="module")
def vectors(tiny, texts):
    model = load_encoder(tiny.untrained, 64)
    assert model.packed
    return model.encode(model.tokenize(texts), 16384)


def test_sentence_transformers_gives_the_same_vectors(tiny, texts, vectors):
    plain = SentenceTransformer(str(tiny.untrained), device="cpu")
    found = plain.encode([text for (text,) in texts], batch_size=7)
    cosine = (found * vectors).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(vectors, axis=1)
    assert cosine.min() >= 1 - 1e-5
    np.testing.assert_allclose(found, vectors, atol=1e-4)
    assert np.linalg.norm(found, axis=1).std() > 0.01  # not normalised
    assert plain.similarity_fn_name == "dot"
    assert plain.max_seq_length == 64
    assert plain.get_embedding_dimension() == 16


def test_transformers_gives_the_states_below_the_projection(tiny, texts, vectors):
    model, tokenizer = AutoModel.from_pretrained(tiny.untrained), AutoTokenizer.from_pretrained(tiny.untrained)
    (projection,) = load_encoder(tiny.untrained, 64).projections
    with torch.inference_mode():
        for (text,), vector in zip(texts[:5], vectors, strict=False):
            states = model(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state[0]
            np.testing.assert_allclose(projection(states.mean(0)), vector, atol=1e-4)


def test_batches_and_their_order_change_no_vector(tiny, texts, vectors):
    model = load_encoder(tiny.untrained, 64)
    tokens = model.tokenize(texts)
    np.testing.assert_allclose(model.encode(tokens, 1), vectors, atol=1e-5)
    np.testing.assert_allclose(model.encode(tokens[::-1], 500)[::-1], vectors, atol=1e-5)


def test_padding_gives_the_vectors_of_packing(tiny, texts, vectors):
    model = load_encoder(tiny.untrained, 64)
    model.transformer.set_attn_implementation("sdpa")
    model.packed = False
    np.testing.assert_allclose(model.encode(model.tokenize(texts), 2000), vectors, atol=1e-5)


def test_saving_again_changes_nothing(tiny, texts, vectors, tmp_path):
    load_encoder(tiny.untrained, 64).save(tmp_path / "copy")
    copy = load_encoder(tmp_path / "copy", 64)
    assert (copy.encode(copy.tokenize(texts), 16384) == vectors).all()


def test_texts_are_cut_where_the_model_ends(tiny):
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=16
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny.untrained)
    model = AttributionEncoder(BertModel(config), tokenizer, random_projections(32, 8, "joint", 0), max_tokens=512)
    assert model.max_tokens == 16
    assert len(model.tokenize([("many words " * 100,)])[0][0]) == 16


def test_a_split_encoder_is_two_plain_folders(tiny, split_folder):
    model = load_encoder(split_folder, 64)
    texts = encoder_texts(read_table(tiny.corpus), 256, "split")[:20]
    vectors = model.encode(model.tokenize(texts), 500)
    assert (model.view, model.dimension, vectors.shape) == ("split", 16, (20, 16))
    for part, folder in enumerate(("prompt", "response")):
        plain = SentenceTransformer(str(split_folder / folder), device="cpu")
        found = plain.encode([text[part] for text in texts])
        np.testing.assert_allclose(found, vectors[:, 8 * part : 8 * part + 8], atol=1e-4)


def test_split_scores_are_the_sum_of_both_parts(tiny, split_folder):
    model = load_encoder(split_folder, 64)
    pairs = [("a question", "an answer"), ("a question", "other words"), ("something else", "an answer")]
    same, other_response, other_prompt = model.encode(model.tokenize(pairs), 500)
    assert (same[:8] == other_response[:8]).all()
    assert (same[8:] == other_prompt[8:]).all()


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("tells", [True, False])
def test_tokens_are_those_that_transformers_gives(tiny, monkeypatch, keep, tells):
    model = load_encoder(tiny.untrained, 12)
    texts = [("The first of a few words, and many more than fit here.",), ("",), ("b a",), ("x" * 300,)]
    if not tells:
        # A class that does more to a text than to pass it on.
        call = type(model.tokenizer).__call__
        changed = lambda self, some, **options: call(self, [f"query {text}" for text in some], **options)  # noqa: E731
        monkeypatch.setattr(type(model.tokenizer), "__call__", changed)
    found = model.tokenize(texts, keep)
    side = {"first": "right", "last": "left"}[keep]
    model.tokenizer.truncation_side = side
    expected = model.tokenizer([text for (text,) in texts], truncation=True, max_length=12)["input_ids"]
    assert [tokens.tolist() for (tokens,) in found] == expected
    assert all(tokens.dtype == np.int32 for (tokens,) in found)
    assert model.tokenize([]) == []


def test_weights_in_bfloat16_compute_nearly_what_autocast_does(tiny):
    model = load_encoder(tiny.untrained, 64)
    tokens = model.tokenize([("a few words",), ("some others, of which there are more",)])
    exact, found = model.encode(tokens), {}
    for model.bfloat16_weights in (False, True):
        found[model.bfloat16_weights] = model.encode(tokens, precision="bfloat16")
        assert found[model.bfloat16_weights].dtype == np.float32
    scale = np.abs(exact).max()
    assert 0 < np.abs(found[True] - exact).max() < 0.05 * scale
    assert np.abs(found[False] - exact).max() < 0.05 * scale
    assert (model.encode(tokens) == exact).all()


def test_packing_can_be_tried_in_the_precision_that_will_run(tiny):
    model = load_encoder(tiny.untrained, 64)
    model.bfloat16_weights = True
    assert model.use_packing("bfloat16", BUCKETS)
    assert model.transformer.config._attn_implementation == BUCKETS
    assert model.use_packing("bfloat16")
    assert model.packed


@pytest.mark.parametrize("view", ["joint", "split"])
def test_without_layers_each_token_at_each_position_is_computed_once(tiny, monkeypatch, view):
    """And means and gradients are those of all tokens, padding or not."""
    texts = [*encoder_texts(read_table(tiny.corpus), 256, view)[:40], ("one",) * (1 if view == "joint" else 2)]
    tokenizer = AutoTokenizer.from_pretrained(tiny.untrained)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=0, num_attention_heads=2)
    transformer = BertModel(config, add_pooling_layer=False)
    torch.nn.init.normal_(transformer.embeddings.position_embeddings.weight)
    model = AttributionEncoder(transformer, tokenizer, random_projections(16, 8, view, 0), 64)
    assert model._is_context_free()
    rows = []
    transformer.embeddings.register_forward_hook(lambda _, inputs, output: rows.append(output.shape[1]))
    tokens = model.tokenize(texts)
    found = []
    for alone in (True, False):
        monkeypatch.setattr(AttributionEncoder, "_is_context_free", lambda self, alone=alone: alone)
        model.zero_grad()
        vectors = model(tokens)
        (vectors * torch.arange(vectors.numel()).view_as(vectors).sin()).sum().backward()
        found.append([vectors.detach(), *(p.grad for p in model.parameters())])
    parts = [part for example in tokens for part in example]
    assert rows == [len({pair for part in parts for pair in enumerate(part.tolist())}), sum(map(len, parts))]
    for once, plain in zip(*found, strict=True):
        torch.testing.assert_close(once, plain, rtol=1e-4, atol=1e-5)


def test_with_layers_states_depend_on_their_neighbours(tiny):
    assert not load_encoder(tiny.untrained, 64)._is_context_free()
