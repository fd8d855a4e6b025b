"""The layout of the authors' checkpoint, written here as their code writes it: read, scored with, and written."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import BertConfig, BertModel

from workflow_scripts.attribute import Query, attribute
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.corpora.templates import encoder_texts
from workflow_scripts.encoder.init_encoder import small_encoder, wordpiece_tokenizer
from workflow_scripts.encoder.loading import load_encoder, load_trained_encoder
from workflow_scripts.encoder.published_format import save_published
from workflow_scripts.encoder.take_encoder import take_encoder

HIDDEN = 32
LONG = {"prompt": "so many  words\n" * 200, "response": "and an answer " * 400}  # beyond 256 words and 512 tokens


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """BERT under `bert.`, `projector.weight` and `.bias`, all bfloat16; and the model in float32 that was rounded."""
    folder = tmp_path_factory.mktemp("published") / "checkpoint"
    texts = encoder_texts(read_table(tiny.corpus), 256, "joint")
    tokenizer = small_encoder(wordpiece_tokenizer(texts, 300), "joint", HIDDEN, 512, HIDDEN, 1, seed=1).tokenizer
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    model = nn.ModuleDict({"bert": BertModel(config, add_pooling_layer=False), "projector": nn.Linear(HIDDEN, HIDDEN)})
    model.bfloat16().float().eval()
    weights = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"dtype": "bfloat16"}))
    return folder, model, tokenizer


def expected_vectors(model, tokenizer, rows):
    """The paper's text and truncation, one row at a time: 256 words of the prompt, 512 tokens, mean, projection."""
    vectors = []
    for row in rows:
        text = f"Question: {' '.join(row['prompt'].split()[:256])}\nAnswer: {row['response']}"
        tokens = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            states = model["bert"](**tokens).last_hidden_state[0]
            vectors.append(model["projector"](states.mean(0)).numpy())
    return np.stack(vectors)


def rows_of(tiny):
    return [*read_table(tiny.corpus, ["prompt", "response"]).to_pylist()[:10], LONG]


def vectors_of(encoder, rows):
    return encoder.encode(encoder.tokenize(encoder_texts(pa.Table.from_pylist(rows), 256, encoder.view)), 4096)


@pytest.mark.parametrize("kind", ["bert", "airrep"])
def test_a_checkpoint_gives_the_papers_vectors_in_float32(tiny, checkpoint, tmp_path, kind):
    """The authors' code names the whole `airrep` in config.json, a kind that transformers doesn't know."""
    folder, model, tokenizer = checkpoint
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": kind, "architectures": ["AirRepModel"]}))
    encoder = load_trained_encoder(tmp_path)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert encoder.max_tokens == 512
    rows = rows_of(tiny)
    np.testing.assert_allclose(vectors_of(encoder, rows), expected_vectors(model, tokenizer, rows), atol=1e-5)


def test_a_checkpoint_is_taken_by_hub_name_as_a_plain_folder(tiny, checkpoint, tmp_path, monkeypatch):
    folder, model, tokenizer = checkpoint
    cached = tmp_path / "models--somebody--AirRep"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).symlink_to(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    taken = tmp_path / "encoder"
    take_encoder(taken, model="somebody/AirRep", revision=None, trust_remote_code=False, max_tokens=512)
    rows = rows_of(tiny)
    texts = [f"Question: {' '.join(row['prompt'].split()[:256])}\nAnswer: {row['response']}" for row in rows]
    plain = SentenceTransformer(str(taken), device="cpu").encode(texts)
    np.testing.assert_allclose(plain, expected_vectors(model, tokenizer, rows), atol=1e-5)

    asked = {"queries": [Query(**LONG)], "embeddings": None, "top": 5, "sign": "helpful"}
    by_name = attribute("somebody/AirRep", tiny.corpus, **asked)
    assert by_name.equals(attribute(str(taken), tiny.corpus, **asked))


def test_texts_are_cut_where_the_encoder_was_trained_to_cut(checkpoint, tiny, tmp_path):
    take = {"model": str(checkpoint[0]), "revision": None, "trust_remote_code": False}
    take_encoder(tmp_path / "short", **take, max_tokens=40)
    assert load_encoder(tmp_path / "short", 512).max_tokens == 40
    assert SentenceTransformer(str(tmp_path / "short"), device="cpu").max_seq_length == 40


def test_what_is_written_is_what_was_read(checkpoint, tmp_path):
    folder, *_ = checkpoint
    save_published(load_trained_encoder(folder), tmp_path / "again")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(after[name].dtype == torch.bfloat16 and after[name].equal(before[name]) for name in before)


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint, tmp_path):
    folder, *_ = checkpoint
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudyError, match=r"1 weights are missing, e\.g\. encoder\.layer\.1\.output\.dense\.weight"):
        load_trained_encoder(tmp_path)


def test_what_the_layout_has_no_place_for_is_refused(tiny, tmp_path):
    with pytest.raises(StudyError, match=r"makes 16 numbers from 32; write encoder\.dimension: 32"):
        save_published(load_encoder(tiny.untrained, 64), tmp_path / "narrow")
    split = small_encoder(wordpiece_tokenizer([("a question", "an answer")], 60), "split", 32, 64, 32, 1, seed=1)
    with pytest.raises(StudyError, match="prompt and response apart"):
        save_published(split, tmp_path / "split")
    normalized = small_encoder(
        wordpiece_tokenizer([("a question",)], 60), "joint", 32, 64, 32, 1, seed=1, normalized=True
    )
    with pytest.raises(StudyError, match="length 1"):
        save_published(normalized, tmp_path / "normalized")


def test_an_encoder_without_a_projection_is_not_taken(tiny, tmp_path):
    model = load_encoder(tiny.untrained, 64)
    model.transformer.save_pretrained(tmp_path / "bert")
    model.tokenizer.save_pretrained(tmp_path / "bert")
    take = {"model": str(tmp_path / "bert"), "revision": None, "trust_remote_code": False, "max_tokens": 64}
    with pytest.raises(StudyError, match="has no projection"):
        take_encoder(tmp_path / "encoder", **take)
