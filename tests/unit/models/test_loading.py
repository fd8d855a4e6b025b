"""Folders of models that aren't what they should be: a message in every stage that loads them, and no traceback."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_study import encoder_values
from transformers import AutoTokenizer

from workflow_scripts.attribute import Query, attribute
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table
from workflow_scripts.encoder.init_encoder import init_encoder
from workflow_scripts.encoder.loading import load_encoder, load_trained_encoder
from workflow_scripts.encoder.take_encoder import take_encoder
from workflow_scripts.language_model.losses import load_language_model
from workflow_scripts.language_model.tokenize_corpus import tokenize_corpus
from workflow_scripts.methods.sentence_encoder import open_embedder
from workflow_scripts.models.loading import load_tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 123\n"
WEIGHTS = "model.safetensors"


@pytest.fixture
def lm(tiny, tmp_path):
    return shutil.copytree(tiny.language_model, tmp_path / "lm")


@pytest.fixture
def encoder(tiny, tmp_path):
    return shutil.copytree(tiny.untrained, tmp_path / "encoder")


def broken(file, how):
    data = file.read_bytes()
    file.write_bytes({"pointer": POINTER, "cut": data[:-100], "head": data[:5], "empty": b"", "page": b"<html>"}[how])


HOW = {
    "pointer": r"model\.safetensors is a pointer of git-lfs, not the file itself. Run `git lfs pull`",
    **dict.fromkeys(("cut", "head", "empty", "page"), r"model\.safetensors can't be read as safetensors: .*cut off"),
}


@pytest.mark.parametrize("how", HOW)
def test_an_lm_without_its_weights_is_named(lm, how):
    broken(lm / WEIGHTS, how)
    with pytest.raises(StudyError, match=HOW[how]):
        load_language_model(lm)


def test_a_shard_that_is_cut_off_is_named(lm):
    weights = load_file(lm / WEIGHTS)
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, chosen in shards.items():
        save_file({name: weights[name] for name in chosen}, lm / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, chosen in shards.items() for name in chosen}}
    (lm / "model.safetensors.index.json").write_text(json.dumps(index))
    (lm / WEIGHTS).unlink()
    load_language_model(lm)
    broken(lm / "model-00002-of-00002.safetensors", "cut")
    with pytest.raises(StudyError, match=r"model-00002-of-00002\.safetensors can't be read as safetensors"):
        load_language_model(lm)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("part", ["", "2_Dense"])
def test_an_encoder_without_its_weights_is_named_by_every_stage(tiny, encoder, tmp_path, how, part):
    broken(encoder / part / WEIGHTS, how)
    loads = {
        "load_encoder": lambda: load_encoder(encoder, 64),
        "load_trained_encoder": lambda: load_trained_encoder(encoder),
        "init_encoder": lambda: init_encoder(tiny.corpus, tmp_path / "new", **encoder_values(model=str(encoder))),
        "take_encoder": lambda: take_encoder(
            tmp_path / "taken", model=str(encoder), revision=None, trust_remote_code=False, max_tokens=64
        ),
        "open_embedder": lambda: open_embedder(None, {}, False, model=str(encoder)),
        "attribute": lambda: attribute(
            str(encoder), tiny.corpus, [Query("a", "b")], embeddings=None, top=1, sign="helpful"
        ),
    }
    for load in loads.values():
        with pytest.raises(StudyError, match=HOW[how]):
            load()


def test_a_tokenizer_that_is_a_pointer_is_named(lm):
    (lm / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(StudyError, match=r"tokenizer\.json is a pointer of git-lfs"):
        load_tokenizer(lm)


def test_weights_of_other_programs_need_not_be_whole(lm):
    (lm / "consolidated.safetensors").write_bytes(POINTER)
    load_language_model(lm)


def add_adapter(folder, **config):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    save_file({}, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def test_an_adapter_is_no_lm(lm, tmp_path):
    adapter = add_adapter(tmp_path / "adapter", base_model_name_or_path="owner/base")
    for load in (load_language_model, load_tokenizer):
        with pytest.raises(StudyError, match=r"is an adapter .*not a whole model: merge it into its base 'owner/base'"):
            load(adapter)


def test_an_adapter_beside_whole_weights_is_a_choice(lm):
    add_adapter(lm)
    for load in (load_language_model, load_tokenizer):
        with pytest.raises(StudyError, match=r"lies beside whole weights, and only one .* Move adapter_\* elsewhere"):
            load(lm)
    for file in lm.glob("adapter_*"):
        file.unlink()
    load_language_model(lm)


def tokenized(tiny, lm, folder, chat_template=False):
    files = folder / "tokens.parquet", folder / "rejected.parquet"
    source = {"model": str(lm), "revision": None, "trust_remote_code": False}
    tokenize_corpus(tiny.corpus, *files, max_tokens=512, chat_template=chat_template, **source)
    return [read_table(file) for file in files]


def with_tokens(lm, *tokens, **special):
    tokenizer = AutoTokenizer.from_pretrained(lm)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(lm)
    return len(tokenizer)


def test_rows_with_a_token_that_the_lm_has_no_embedding_for_are_rejected(tiny, lm, tmp_path):
    """The others go on: Gemma's tokenizer has a token for images that its LM of texts has no embedding for."""
    corpus = read_table(tiny.corpus)
    word = max({word for row in corpus["response"].to_pylist() for word in row.split()}, key=len)
    count = with_tokens(lm, word)
    tokens, rejected = tokenized(tiny, lm, tmp_path)
    holding = [row["example_id"] for row in corpus.to_pylist() if word in row["prompt"] or word in row["response"]]
    assert 0 < len(holding) < len(corpus)
    assert rejected["example_id"].to_pylist() == holding
    assert set(rejected["reason"].to_pylist()) == {f"no embedding in the LM: the token {word!r} (id {count - 1})"}
    assert len(tokens) + len(rejected) == len(corpus)
    assert max(number for row in tokens["input_ids"].to_pylist() for number in row) < count - 1


def test_an_end_of_text_without_embedding_is_refused(tiny, lm, tmp_path):
    with_tokens(lm, eos_token="<|new end|>")
    with pytest.raises(StudyError, match=r"end-of-text token '<\|new end\|>' was added .*no embedding .*resize"):
        tokenized(tiny, lm, tmp_path)


def test_turns_without_embedding_are_refused(tiny, lm, tmp_path):
    with_tokens(lm, "<|turn|>")
    tokenizer = AutoTokenizer.from_pretrained(lm)
    tokenizer.chat_template = "{% for message in messages %}<|turn|>{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(lm)
    with pytest.raises(StudyError, match=r"every example of train .*'<\|turn\|>'.*resize"):
        tokenized(tiny, lm, tmp_path, chat_template=True)


def test_a_tokenizer_of_another_lm_is_refused(tiny, lm, encoder, tmp_path):
    weights = load_file(lm / WEIGHTS)
    config = json.loads((lm / "config.json").read_text())
    ids = range(config["vocab_size"])
    fewer = len(ids) - 40
    small = {
        name: tensor[:fewer] if len(tensor) == config["vocab_size"] else tensor for name, tensor in weights.items()
    }
    save_file({name: tensor.contiguous() for name, tensor in small.items()}, lm / WEIGHTS, {"format": "pt"})
    (lm / "config.json").write_text(json.dumps(config | {"vocab_size": fewer}))
    load_language_model(lm)
    with pytest.raises(StudyError, match=rf"has the id {fewer}, and the model has embeddings for {fewer} ids"):
        tokenized(tiny, lm, tmp_path)


def test_an_encoder_with_a_token_too_many_is_refused(encoder):
    with_tokens(encoder, "<new>")
    with pytest.raises(StudyError, match=r"'<new>'.* were added to its tokenizer, and it has no embeddings"):
        load_encoder(encoder, 64)
