"""The release: the encoder as it is, beside a card whose numbers, hashes and code are true."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from report_run import METHOD_LDS, make_run

from workflow_scripts.core.files import folder_hash
from workflow_scripts.core.parquet import read_table
from workflow_scripts.corpora.templates import encoder_text, encoder_texts
from workflow_scripts.encoder.init_encoder import small_encoder, wordpiece_tokenizer
from workflow_scripts.encoder.loading import load_encoder, load_trained_encoder
from workflow_scripts.release.model_card import model_card
from workflow_scripts.release.package_encoder import package_encoder
from workflow_scripts.study.config import load_study

# The two training examples and the answer of the card's code.
TEXTS = [
    ("Why is the sky blue?", "Because air scatters blue light most."),
    ("What colour is the sky?", "Blue."),
    ("What is the sum of 3 and 4?", "7."),
]


@pytest.fixture
def packaged(tmp_path):
    def package(encoder, layout="sentence_transformers", has_lds=True):
        run = make_run(tmp_path / "run", tests=5, train=20, examples=2)
        release = tmp_path / "release"
        lds = run["lds"] if has_lds else None
        package_encoder(encoder, run["config"], run["provenance"], lds, release, layout=layout)
        return release, (release / "README.md").read_text(encoding="utf-8")

    return package


def test_the_release_is_the_encoder_and_its_card(tiny, packaged):
    release, card = packaged(tiny.untrained)
    assert folder_hash(release) == folder_hash(tiny.untrained)
    assert {path.name for path in release.iterdir()} == {path.name for path in tiny.untrained.iterdir()} | {"README.md"}

    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "sentence-transformers"
    assert "base_model" not in header  # `builtin:small` is no model of the hub
    for lds in METHOD_LDS.values():
        assert f"| {lds:.3f} | {lds - 0.03:.3f} to {lds + 0.03:.3f} | 0.910 | 30 | 100 |" in text
    assert "| train | train.jsonl | `aaaa` | training of the encoder |" in text
    assert "0123456789abcdef" in text
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])["run"] == "example"


@pytest.mark.parametrize("view", ["joint", "split"])
def test_the_code_of_the_card_gives_the_scores_of_the_workflow(tiny, packaged, tmp_path, view):
    texts = encoder_texts(read_table(tiny.corpus), 256, view)
    small_encoder(wordpiece_tokenizer(texts, 300), view, 16, 64, 32, 1, seed=1).save(tmp_path / "encoder")
    release, card = packaged(tmp_path / "encoder")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("path/of/this/folder", str(release))
    names = {}
    exec(compile(code, "card", "exec"), names)
    model = load_encoder(release, 64)
    vectors = model.encode(model.tokenize([encoder_text(*text, 256, view) for text in TEXTS]), 1024)
    np.testing.assert_allclose(names["scores"], vectors[:1] @ vectors[1:].T, rtol=1e-4)
    for prompt in ("One line\n\nand  another", "Lines\n\n" + "and words " * 200):
        read = names["beginning"](prompt) if view == "split" else names["text"](prompt, "Yes.")
        assert read == encoder_text(prompt, "Yes.", 256, view)[0]


def test_an_encoder_that_was_not_judged_claims_nothing(tiny, packaged):
    _, card = packaged(tiny.untrained, has_lds=False)
    assert "This was not measured." in card
    assert "| LDS |" not in card


def test_the_published_layout_is_read_again(tiny, packaged, tmp_path):
    texts = encoder_texts(read_table(tiny.corpus), 256, "joint")
    small_encoder(wordpiece_tokenizer(texts, 300), "joint", 32, 64, 32, 1, seed=1).save(tmp_path / "square")
    release, card = packaged(tmp_path / "square", layout="published")
    before, after = load_encoder(tmp_path / "square", 64), load_trained_encoder(release)
    one, other = (model.encode(model.tokenize(texts[:20]), 1024) for model in (before, after))
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosine.min() > 1 - 1e-4  # bfloat16
    assert "library_name: transformers" in card


def test_an_encoder_from_elsewhere_claims_no_language_model(tiny, packaged):
    run = yaml.safe_load(Path(packaged(tiny.untrained)[0].parent / "run" / "config.resolved.yaml").read_text())
    taken = {"run": "taken", "corpora": run["corpora"], "evaluations": {}}
    taken["evaluations"]["all"] = {"train": "train", "test": "test", "tests": None, "subsets": 0}
    study = load_study({**taken, "encoder": {"model": "owner/encoder"}, "scoring": {"methods": ["airrep"]}})
    provenance = {"data": {"pool": "0123"}, "versions": {}, "created": "", "git_commit": None}
    card = model_card(study, "", provenance, [], "joint", "sentence-transformers")
    assert "the encoder is that of `owner/encoder`, and this study only scored with it." in card
    assert "builtin:tiny" not in card
    assert "0123" not in card


def test_a_hub_model_is_named_as_the_base(tiny, packaged):
    run = yaml.safe_load(Path(packaged(tiny.untrained)[0].parent / "run" / "config.resolved.yaml").read_text())
    study = load_study({**run, "encoder": {"model": "thenlper/gte-small"}})
    provenance = {"data": {}, "versions": {}, "created": "", "git_commit": None}
    card = model_card(study, "", provenance, [], "joint", "sentence_transformers")
    assert "base_model: thenlper/gte-small" in card
