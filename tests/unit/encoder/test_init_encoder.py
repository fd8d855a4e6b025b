"""An untrained encoder: new from corpus and seed, with the LM's tokens, or from a model with a projection."""

from types import SimpleNamespace

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny_study import encoder_values
from transformers import AutoTokenizer

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.corpora.templates import encoder_texts
from workflow_scripts.encoder.init_encoder import init_encoder, tokens_of_lm
from workflow_scripts.encoder.loading import load_encoder


def test_the_untrained_encoder_depends_on_corpus_and_seed_alone(tiny, tmp_path):
    init_encoder(tiny.corpus, tmp_path / "again", **encoder_values())
    init_encoder(tiny.corpus, tmp_path / "other", **encoder_values() | {"seed": 2})
    for name in ("model.safetensors", "tokenizer.json", "2_Dense/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny.untrained / name).read_bytes()
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (
        tiny.untrained / "model.safetensors"
    ).read_bytes()


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


def test_a_projection_that_is_brought_is_kept(tiny, split_folder, tmp_path):
    spec = encoder_values(model=str(split_folder), dimension=8, projection="principal", hidden=1)
    init_encoder(tiny.corpus, tmp_path / "own", **spec)
    texts = [("a question", "an answer")]
    ours, theirs = load_encoder(tmp_path / "own", 64), load_encoder(split_folder, 64)
    assert (ours.encode(ours.tokenize(texts), 100) == theirs.encode(theirs.tokenize(texts), 100)).all()
