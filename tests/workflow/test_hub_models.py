"""A study that names its LM and its encoder by hub ids: one snapshot each, which all jobs read."""

from __future__ import annotations

import json

from model_hub import Fault
from safetensors.torch import load_file, save_file
from tiny_study import make_tiny_study
from workspace import TOKEN

LM, ENCODER = "owner/lm", "owner/encoder"
CHANGES = {
    "language_model__model": LM,
    "encoder__model": ENCODER,
    "encoder__dimension": 16,
    "scoring__methods": ["airrep", "untrained"],
}
SNAPSHOTS = ["results/smoke/models/owner--lm", "results/smoke/models/owner--encoder"]
READERS = ["results/smoke/tokens/train.parquet", "results/smoke/encoder_untrained", "results/smoke/provenance.json"]


def test_jobs_read_one_snapshot_whatever_becomes_of_main(fresh, hub, tmp_path):
    tiny = make_tiny_study(tmp_path)
    lm = tiny.language_model
    hub.gated = {LM: TOKEN}
    commits = [hub.commit(LM, lm), hub.commit(ENCODER, tiny.untrained)]
    planned = fresh.planned(**CHANGES)
    assert planned["fetch_model"] == 2
    assert not planned["pretrain_base_lm"]
    done = fresh.smoke(*SNAPSHOTS, **CHANGES)
    assert done.returncode == 0, done.stdout
    # From here on nothing is asked, and a new commit is no news.
    hub.requests.clear()
    weights = {name: tensor + 1 for name, tensor in load_file(lm / "model.safetensors").items()}
    save_file(weights, lm / "model.safetensors", {"format": "pt"})
    assert hub.commit(LM, lm) not in commits
    done = fresh.smoke(*READERS, **CHANGES)
    assert done.returncode == 0, done.stdout
    assert hub.requests == []
    models = json.loads((fresh.results / "provenance.json").read_text())["models"]
    assert models == [
        {"model": model, "revision": None, "commit": commit}
        for model, commit in zip([LM, ENCODER], commits, strict=True)
    ]
    left = fresh.planned(**CHANGES)
    assert not {"fetch_model", "init_encoder", "resolve_config"} & left.keys()
    # The hub was told the token, and no file is: nor where the hub refuses it and repeats what it was told.
    hub.faults = [Fault("/api/models/", 401, {"X-Error-Message": f"Invalid token {TOKEN}, {TOKEN!r}"})]
    refused = fresh.smoke("results/smoke/models/owner--other", **{**CHANGES, "language_model__model": "owner/other"})
    assert refused.returncode == 1
    assert not fresh.files_with_the_token()


def test_a_study_of_a_local_lm_fetches_nothing(unrun, tmp_path):
    planned = unrun.planned(language_model__model=str(tmp_path))
    assert not {"fetch_model", "pretrain_base_lm"} & planned.keys()
