"""A saved encoder is a plain sentence-transformers folder with the same vectors."""

import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_study import encoder_values
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.corpora.templates import encoder_text, encoder_texts
from workflow_scripts.encoder.init_encoder import init_encoder, tokens_of_lm
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


def test_the_prompt_is_cut_in_words_and_the_response_is_not():
    assert encoder_text("a  b\nc d", "x y z", 3, "joint") == ("Question: a  b\nc\nAnswer: x y z",)
    assert encoder_text("a b c", "x", 3, "joint") == ("Question: a b c\nAnswer: x",)
    assert encoder_text("a  b\nc d", "x y z", 3, "split") == ("a  b\nc", "x y z")


def test_the_untrained_encoder_depends_on_corpus_and_seed_alone(tiny, tmp_path):
    init_encoder(tiny.corpus, tmp_path / "again", **encoder_values())
    init_encoder(tiny.corpus, tmp_path / "other", **encoder_values() | {"seed": 2})
    for name in ("model.safetensors", "tokenizer.json", "2_Dense/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny.untrained / name).read_bytes()
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (
        tiny.untrained / "model.safetensors"
    ).read_bytes()


@pytest.fixture(scope="module")
def split_folder(tiny, tmp_path_factory):
    """An encoder that reads prompt and response apart, means of length 1, started at the principal axes."""
    folder = tmp_path_factory.mktemp("split") / "encoder"
    init_encoder(tiny.corpus, folder, **encoder_values(view="split", normalized=True, projection="principal"))
    return folder


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


def test_parts_with_different_transformers_are_refused(tiny, split_folder, tmp_path):
    shutil.copytree(split_folder, tmp_path / "mixed")
    shutil.copy(tiny.untrained / "model.safetensors", tmp_path / "mixed" / "response" / "model.safetensors")
    with torch.no_grad():
        changed = load_encoder(tiny.untrained, 64)
        changed.transformer.embeddings.word_embeddings.weight += 1
    changed.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "mixed" / "response" / "model.safetensors")
    with pytest.raises(StudyError, match="different transformers"):
        load_encoder(tmp_path / "mixed", 64)


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


@pytest.mark.parametrize("view", ["joint", "split"])
def test_an_encoder_can_read_the_tokens_of_the_lm(tiny, tmp_path, view):
    """In plain sentence-transformers too, in padded batches, although the LM pads with its end-of-text token."""
    folder = tmp_path / "encoder"
    spec = encoder_values(view=view, normalized=True, tokenizer="language_model")
    source = {"model": "builtin:tiny", "revision": None, "trust_remote_code": False}
    init_encoder(tiny.corpus, folder, language_model=tiny.language_model, lm_source=source, **spec)
    model, lm = load_encoder(folder, 64), AutoTokenizer.from_pretrained(tiny.language_model)
    texts = encoder_texts(read_table(tiny.corpus), 256, view)[:20]
    tokens = model.tokenize(texts)
    assert [part.tolist() for part in tokens[0]] == [
        [*lm(part)["input_ids"][:63], lm.eos_token_id] for part in texts[0]
    ]
    vectors = model.encode(tokens, 500)
    for part, name in enumerate(("prompt", "response") if view == "split" else ("",)):
        plain = SentenceTransformer(str(folder / name), device="cpu")
        found = plain.encode([text[part] for text in texts], batch_size=20)
        width = found.shape[1]
        np.testing.assert_allclose(found, vectors[:, width * part : width * (part + 1)], atol=1e-5)


def test_a_tokenizer_that_is_python_code_alone_is_told():
    with pytest.raises(StudyError, match="Write `tokenizer: wordpiece`"):
        tokens_of_lm(SimpleNamespace(is_fast=False))


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


@pytest.mark.parametrize("prompt_scale", [0.5, 2.0])
def test_prompts_start_at_their_share_of_the_responses(tiny, tmp_path, prompt_scale):
    spec = encoder_values(view="split", projection="principal", prompt_scale=prompt_scale)
    init_encoder(tiny.corpus, tmp_path / "encoder", **spec)
    model = load_encoder(tmp_path / "encoder", 64)
    vectors = model.encode(model.tokenize(encoder_texts(read_table(tiny.corpus), 256, "split")), 500)
    prompts, responses = (np.sqrt((half**2).sum(1).mean()) for half in np.split(vectors, 2, axis=1))
    assert prompts / responses == pytest.approx(prompt_scale, rel=1e-3)


def test_a_projection_that_is_brought_is_kept(tiny, split_folder, tmp_path):
    spec = encoder_values(model=str(split_folder), dimension=8, projection="principal", hidden=1)
    init_encoder(tiny.corpus, tmp_path / "own", **spec)
    texts = [("a question", "an answer")]
    ours, theirs = load_encoder(tmp_path / "own", 64), load_encoder(split_folder, 64)
    assert (ours.encode(ours.tokenize(texts), 100) == theirs.encode(theirs.tokenize(texts), 100)).all()


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
