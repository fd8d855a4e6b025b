"""Models of the hub: fetched once a study at one commit, read offline, and named in the provenance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import hub_presets
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from model_hub import Fault
from safetensors.torch import load_file, save_file
from tiny_study import ENCODER, encoder_values
from transformers import AutoTokenizer, BertConfig, GPT2Config, Qwen2Config, T5Config

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import folder_hash
from workflow_scripts.encoder.init_encoder import init_encoder
from workflow_scripts.encoder.loading import load_encoder
from workflow_scripts.language_model.losses import load_language_model
from workflow_scripts.language_model.tokenize_corpus import tokenize_corpus
from workflow_scripts.methods.sentence_encoder import open_embedder
from workflow_scripts.models.fetch_model import fetch_model
from workflow_scripts.models.loading import load_config, load_tokenizer
from workflow_scripts.provenance.resolve_config import resolve_config
from workflow_scripts.study.config import load_study
from workflow_scripts.study.plan import StudyPlan

MODEL = "owner/lm"
CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.fixture
def lm(tiny, tmp_path):
    """A copy of the tiny LM, to change."""
    return shutil.copytree(tiny.language_model, tmp_path / "lm")


def fetch(snapshot, model=MODEL, revision="main"):
    fetch_model(snapshot, model=model, revision=revision, trust_remote_code=False)
    return snapshot


def commit_of(snapshot):
    return json.loads((snapshot / "snapshot.json").read_text())["commit"]


def move_main(hub, lm):
    weights = load_file(lm / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, lm / "model.safetensors", {"format": "pt"})
    return hub.commit(MODEL, lm)


def test_a_snapshot_is_read_without_any_request(hub, lm, tiny, tmp_path):
    (lm / "chat_template.jinja").write_text("{{ messages }}")
    commit = hub.commit(MODEL, lm)
    snapshot = fetch(tmp_path / "models" / "owner--lm@main")
    assert json.loads((snapshot / "snapshot.json").read_text()) == {
        "model": MODEL,
        "revision": "main",
        "commit": commit,
    }
    for file in lm.iterdir():
        assert (snapshot / file.name).read_bytes() == file.read_bytes(), file.name
    hub.requests.clear()
    # The cache may go: the folder is whole by itself.
    shutil.rmtree(tmp_path / "cache")
    source = {"model": MODEL, "revision": "main", "trust_remote_code": False}
    settings = {"max_tokens": 64, "chat_template": False}
    files = tmp_path / "tokens.parquet", tmp_path / "rejected.parquet"
    tokenize_corpus(tiny.corpus, *files, language_model=snapshot, **source, **settings)
    assert pq.read_table(files[0]) == pq.read_table(tiny.tokens)
    load_language_model(snapshot, "main", False)
    assert hub.requests == []


def test_an_encoder_and_a_sentence_encoder_start_from_their_snapshot(hub, tiny, tmp_path):
    hub.commit("owner/encoder", tiny.untrained)
    snapshot = fetch(tmp_path / "snapshot", "owner/encoder")
    hub.requests.clear()
    shutil.rmtree(tmp_path / "cache")
    values = encoder_values(model="owner/encoder", revision="main", projection="random")
    init_encoder(tiny.corpus, tmp_path / "encoder", snapshot=snapshot, **values)
    made, source = (load_file(folder / "model.safetensors") for folder in (tmp_path / "encoder", tiny.untrained))
    assert made.keys() == source.keys()
    assert all(torch.equal(made[name], source[name]) for name in made)
    assert open_embedder(None, {}, False, model=str(snapshot)).embed(["some words"]).shape == (1, ENCODER.dimension)
    assert hub.requests == []


def test_a_moved_main_does_not_change_a_snapshot(hub, lm, tmp_path):
    before = hub.commit(MODEL, lm)
    snapshot = fetch(tmp_path / "snapshot")
    content = (snapshot / "model.safetensors").read_bytes(), folder_hash(snapshot)
    after = move_main(hub, lm)
    assert ((snapshot / "model.safetensors").read_bytes(), folder_hash(snapshot)) == content
    # Another study that starts now gets the new weights, and its runs have another key; by the commit's id it
    # gets the old ones.
    later, pinned = fetch(tmp_path / "later"), fetch(tmp_path / "pinned", revision=before)
    assert [commit_of(one) for one in (snapshot, later, pinned)] == [before, after, before]
    assert folder_hash(later) != folder_hash(snapshot)
    assert (pinned / "model.safetensors").read_bytes() == content[0]


def test_presets_fetch_their_models_at_the_commits_that_they_name(hub, tiny, tmp_path):
    named = {}
    for path in CONFIGS:
        named |= StudyPlan(load_study(yaml.safe_load(path.read_text(encoding="utf-8")), path.name)).hub_models
    lms = {model for model in hub_presets.COMMITS if model.startswith("Qwen/")}
    for model in {one.model for one in named.values()}:
        hub.commit(model, tiny.language_model if model in lms else tiny.untrained, hub_presets.COMMITS.get(model))
    for model in hub_presets.COMMITS.keys() & hub.commits.keys():
        hub.commit_files(model, {"README.md": b"A commit without weights."})
    for name, one in named.items():
        fetch_model(tmp_path / name, model=one.model, revision=one.revision, trust_remote_code=one.trust_remote_code)
    found = {name.partition("@")[0].replace("--", "/"): commit_of(tmp_path / name) for name in named}
    assert found.keys() == {*lms, "thenlper/gte-small", "sunweiwei/AirRep-Flan-Small"}
    assert hub_presets.COMMITS.items() >= {(model, found[model]) for model in found.keys() & hub_presets.COMMITS}


def test_the_provenance_names_the_commit(hub, lm, tiny, tmp_path):
    commit = hub.commit(MODEL, lm)
    snapshot = fetch(tmp_path / "snapshot", revision=None)
    for name, snapshots in (("with", [snapshot]), ("without", [])):
        resolve_config(
            [tiny.corpus], tmp_path / "c.yaml", tmp_path / f"{name}.json", snapshots=snapshots, study={}, stages={}
        )
    found = json.loads((tmp_path / "with.json").read_text())["models"]
    assert found == [{"model": MODEL, "revision": None, "commit": commit}]
    assert "models" not in json.loads((tmp_path / "without.json").read_text())


def test_a_hub_that_is_down_leaves_what_was_fetched_before(hub, lm, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.is_down = True
    with pytest.raises(StudyError, match=f"the model '{MODEL}' can't be loaded"):
        fetch(tmp_path / "snapshot")
    assert not (tmp_path / "snapshot").exists()
    hub.is_down = False
    commit = hub.commit(MODEL, lm)
    fetch(tmp_path / "snapshot")
    hub.is_down = True
    assert commit_of(fetch(tmp_path / "again")) == commit


@pytest.fixture
def waited(monkeypatch):
    """The seconds that were slept."""
    seconds = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("path", ["/revision/", "/tree/", r"/resolve/.*config\.json", r"/resolve/.*\.safetensors"])
def test_a_hub_that_is_busy_is_waited_for(hub, lm, tmp_path, waited, status, path):
    hub.commit(MODEL, lm)
    hub.faults.append(Fault(path, status, {"Retry-After": "3"}, times=2))
    snapshot = fetch(tmp_path / "snapshot")
    assert (snapshot / "model.safetensors").read_bytes() == (lm / "model.safetensors").read_bytes()
    # The client adds a second where it waits by itself.
    assert waited
    assert set(waited) <= {3, 4}


def test_a_transfer_that_is_cut_goes_on(hub, lm, tmp_path, waited):
    hub.commit(MODEL, lm)
    hub.faults.append(Fault(r"\.safetensors", sent=1000, times=2))
    snapshot = fetch(tmp_path / "snapshot")
    assert (snapshot / "model.safetensors").read_bytes() == (lm / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("/revision/", 429), r"busy \(429 Too Many Requests\)"),
        (Fault("/revision/", 500), r"busy \(500 Internal Server Error\)"),
        (Fault(r"\.safetensors", 500), r"busy \(500 Internal Server Error\)"),
        (Fault(r"\.safetensors", sent=10), r"can't be reached: RemoteProtocolError"),
        (Fault("/tree/", 403), r"forbids it .*HF_TOKEN"),
    ],
)
def test_a_hub_that_goes_on_failing_is_named(hub, lm, tmp_path, waited, fault, message):
    hub.commit(MODEL, lm)
    hub.faults.append(fault)
    for load in (
        fetch,
        lambda folder: load_encoder(MODEL, 64),
        lambda folder: open_embedder(None, {}, False, model=MODEL),
    ):
        with pytest.raises(StudyError, match=f"the model '{MODEL}' can't be loaded: .*{message}"):
            load(tmp_path / "snapshot")


def test_a_tokenizer_alone_asks_for_no_weights(hub, lm, waited):
    hub.commit(MODEL, lm)
    hub.faults.append(Fault(r"tokenizer\.json", 429, times=1))
    assert len(load_tokenizer(MODEL)) > 200
    assert load_config(MODEL, None, False).vocab_size > 200
    assert not [path for path in hub.requests if path.endswith(".safetensors")]
    hub.faults.append(Fault("/revision/", 500))
    for load in (load_tokenizer, load_config):
        with pytest.raises(StudyError, match="busy"):
            load("owner/other", "main", False)


@pytest.mark.parametrize("token", ["hf_thegoodtoken\n", "hf_aforeigntoken", None])
@pytest.mark.parametrize("is_saved", [False, True], ids=["HF_TOKEN", "login"])
def test_a_gated_model_needs_a_token_and_its_licence(hub, lm, tmp_path, monkeypatch, token, is_saved):
    hub.commit(MODEL, lm)
    hub.gated[MODEL] = "hf_thegoodtoken"
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    if token and is_saved:
        (tmp_path / "token").write_text(token)
    elif token:
        monkeypatch.setenv("HF_TOKEN", token)
    if token == "hf_thegoodtoken\n":
        fetch(tmp_path / "snapshot")
        return
    with pytest.raises(StudyError) as told:
        fetch(tmp_path / "snapshot")
    source = "`hf auth login`" if is_saved else "HF_TOKEN"
    gated = "gated, and you aren't logged in. Accept its licence on https://huggingface.co/owner/lm"
    assert (f"rejects the token of {source}" if token else gated) in str(told.value)
    assert "`hf auth login`, or set HF_TOKEN" in str(told.value)
    assert "foreigntoken" not in str(told.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "special tokens only and can't tell words apart"),
        (["model.safetensors"], f"{MODEL}: .*safetensors is missing"),
    ],
    ids=["tokenizer", "weights"],
)
def test_a_part_of_a_model_is_no_snapshot(hub, lm, tmp_path, missing, message):
    for name in missing:
        (lm / name).unlink()
    hub.commit(MODEL, lm)
    with pytest.raises(StudyError, match=message):
        fetch(tmp_path / "snapshot")
    assert not (tmp_path / "snapshot").exists()


def test_a_shard_that_is_missing_is_named(hub, lm, tmp_path):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (lm / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.commit(MODEL, lm)
    with pytest.raises(StudyError, match=r"model-00002-of-00002\.safetensors is missing"):
        fetch(tmp_path / "snapshot")


@pytest.mark.parametrize("config", [Qwen2Config, GPT2Config, BertConfig, T5Config])
def test_a_tokenizer_without_words_is_refused(tmp_path, config):
    config().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path)  # transformers finds nothing wrong
    with pytest.raises(StudyError, match="can't tell words apart"):
        load_tokenizer(tmp_path)


def test_an_encoder_without_words_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny.untrained, tmp_path / "encoder")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    for load in (
        lambda: init_encoder(tiny.corpus, tmp_path / "new", **encoder_values(model=str(folder))),
        lambda: open_embedder(None, {}, False, model=str(folder)),
    ):
        with pytest.raises(StudyError, match="can't tell words apart"):
            load()


def test_nobody_is_asked_to_convert_weights_that_are_no_safetensors(hub, lm, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("transformers.modeling_utils.auto_conversion", lambda *given, **_: asked.append(given))
    torch.save(load_file(lm / "model.safetensors"), lm / "pytorch_model.bin")
    (lm / "model.safetensors").unlink()
    hub.commit(MODEL, lm)
    with pytest.raises(StudyError):
        load_language_model(MODEL, "main")
    assert not asked
    with pytest.raises(StudyError, match="save_pretrained"):
        fetch(tmp_path / "snapshot")
    with pytest.raises(StudyError, match=r"no weights in safetensors, but pytorch_model.bin.*save_pretrained"):
        load_language_model(lm)


def test_a_sentence_encoder_without_safetensors_is_told(tiny, tmp_path):
    folder = shutil.copytree(tiny.untrained, tmp_path / "encoder")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(StudyError, match=r"no weights in safetensors, but pytorch_model.bin"):
        open_embedder(None, {}, False, model=str(folder))
