"""A wrong key or value is named, with what to write instead."""

from pathlib import Path

import pytest
import yaml

from workflow_scripts.core.errors import StudyError
from workflow_scripts.study.config import load_study

SMOKE = yaml.safe_load((Path(__file__).parents[3] / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
GONE = object()
SURROGATE = {"method": "bm25", "folds": 2, "subsets_per_fold": 8}


def changed(key: str, value: object) -> dict:
    """The smoke study with one key (path with dots) set or taken away."""
    study = yaml.safe_load(yaml.safe_dump(SMOKE))
    *sections, last = key.split(".")
    section = study
    for name in sections:
        section = section.setdefault(name, {})
    if value is GONE:
        del section[last]
    else:
        section[last] = value
    return study


def with_surrogate(share: float, **surrogate: object) -> dict:
    """The smoke study with predicted targets, on which `share` of the steps are."""
    study = changed("targets.surrogate", SURROGATE | surrogate)
    study["encoder_training"]["surrogate_share"] = share
    return study


def message(key: str, value: object) -> str:
    with pytest.raises(StudyError) as error:
        load_study(changed(key, value), origin="my.yaml")
    return str(error.value)


def test_a_good_study_loads_with_its_defaults():
    study = load_study(SMOKE)
    assert study.targets.folds == 4
    assert study.finetuning.step_tokens == 16384


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("finetunning", {}, "finetunning: no such key; did you mean 'finetuning'?"),
        ("targets.fold", 3, "targets.fold: no such key; did you mean 'folds'?"),
        ("corpora.train.sorce", "x", "corpora.train.sorce: no such key; did you mean 'source'?"),
        ("evaluations.heldout.seds", 2, "evaluations.heldout.seds: no such key; did you mean 'seeds'?"),
        ("encoder_training.largest_weight", 5, "was renamed to 'max_pair_weight'; write max_pair_weight"),
        ("judging.zzz", 1, "judging.zzz: no such key; known keys: bootstrap, confidence"),
        ("corpora.train.columns", {"prompt": 3}, "corpora.train.columns.prompt: 3 is no column: write its name"),
        ("corpora.train.columns", {"prompt": []}, "corpora.train.columns.prompt: [] is no column: write its name"),
        ("corpora.train.columns", {"label": ["a"]}, "columns.label: ['a'] is a list; write the name of one column"),
        ("targets.folds", GONE, "targets.folds: is missing; add it"),
        ("run", GONE, "run: is missing; add it"),
        ("targets.folds", 0, "targets.folds: Input should be greater than or equal to 1 (you wrote 0)"),
        ("targets.folds", "many", "targets.folds: Input should be a valid integer"),
        ("run", "a/b", "run: 'a/b' is not a usable name: write letters, digits"),
        ("corpora.bad name", {"source": "x"}, "'bad name' is not a usable name"),
        ("finetuning.precision", "half", "'float32' or 'bfloat16' (you wrote 'half')"),
        ("scoring.methods", ["airrep", "magic"], "scoring: methods: there is no method 'magic'; write one of airrep, "),
        ("scoring.methods", ["bm25", "bm25"], "scoring: methods: 'bm25' is listed twice; write it once"),
        ("scoring.sentence_encoders", {"rds": "x"}, "sentence_encoders: 'rds' is another method's name"),
        ("scoring.poolings", {"gte": ["mean"]}, "poolings: there is no method 'gte'; write one of airrep, "),
        ("scoring.poolings", {"bm25": []}, "poolings.bm25: write each pooling once, and at least one, e.g. [mean]"),
        ("scoring.poolings", {"bm25": ["mean", "mean"]}, "poolings.bm25: write each pooling once, and at least one"),
        ("scoring.sentence_encoders", {"trained": "x"}, "results of other kinds are called 'trained'; choose another"),
        ("scoring.sentence_encoders", {"gte-tests": "x"}, "results of other kinds are called 'gte-tests'"),
        ("scoring.sentence_encoders", {"full_data": "x"}, "results of other kinds are called 'full_data'"),
        (
            "encoder_variants",
            {"long": {"encoder_training": {"processes": 4}}},
            "encoder_training.processes is one for all encoders",
        ),
        ("corpora.train.source", "results/smoke/corpora/../mine.jsonl", "lies in results/smoke, where this study"),
        (
            "encoder_variants",
            {"long": {"encoder": {"model": 5}}},
            "encoder_variants.long.encoder.model: Input should be a",
        ),
        ("judging.near_duplicate", 0, "judging.near_duplicate: Input should be greater than 0"),
        ("scoring.poolings", {"bm25": ["max"]}, "'attention', 'signed', 'mean', 'sum' or 'chosen' (you wrote 'max')"),
        ("warmup", {"corpus": "trian"}, "warmup.corpus: there is no corpus 'trian'; write one of pool, pretraining"),
        ("scoring.methods", [], "scoring.methods: List should have at least 1 item"),
        ("corpora.train.part", [0.5, 0.5], "corpora.train: part: [0.5, 0.5] is empty; write [from, to] with from < to"),
        ("corpora.train.part", [0.5, 2], "less than or equal to 1"),
        ("evaluations.heldout.seeds", 1, "evaluations.heldout.seeds: Input should be greater than or equal to 2"),
    ],
)
def test_a_wrong_key_is_named_with_advice(key, value, expected):
    text = message(key, value)
    assert text.startswith("my.yaml has 1 wrong key(s):\n  ")
    assert expected in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("targets.evaluated_examples", 21, "evaluated_examples can't exceed validation_examples"),
        ("targets.subset_examples", 100, "subset_examples must be less than pool_examples"),
        ("encoder_training.validation_folds", 4, "validation_folds must be less than targets.folds"),
        ("targets.corpus", "trian", "targets.corpus: there is no corpus 'trian'; write one of"),
        ("evaluations.heldout.test", "x", "evaluations.heldout.test: there is no corpus 'x'"),
        ("language_model.pretraining.corpus", "x", "language_model.pretraining.corpus: there is no corpus 'x'"),
        ("corpora.train.without", ["x"], "corpora.train.without[0]: there is no corpus 'x'"),
        ("corpora.train.without", ["train"], "drop one of their `without`"),
        ("evaluations.train", SMOKE["evaluations"]["heldout"], "'train' names the encoder's targets"),
        ("encoder_training.surrogate_share", 0.5, "nothing predicts labels; add targets.surrogate"),
        ("targets.surrogate", SURROGATE, "targets.surrogate: no encoder learns from it"),
        ("scoring.blends", ["airrep"], "blends: 'airrep' is not two methods; write two of them, as in airrep+tfidf"),
        ("scoring.blends", ["airrep+airrep"], "blends: 'airrep+airrep' is not two methods"),
        ("scoring.blends", ["airrep+ekfac"], "blends: 'ekfac' of 'airrep+ekfac' is not in methods; add it there"),
        (
            "scoring.blends",
            ["airrep+bm25", "bm25+airrep"],
            "the methods of 'airrep+bm25' are blended twice",
        ),
    ],
)
def test_keys_that_do_not_fit_each_other_are_told(key, value, expected):
    assert expected in message(key, value)


def test_a_blend_without_an_lds_table_is_told():
    study = changed("scoring.blends", ["airrep+bm25"])
    study["evaluations"]["heldout"]["subsets"] = 0
    with pytest.raises(StudyError, match=r"scoring.blends: no evaluation has subsets"):
        load_study(study)


@pytest.mark.parametrize("choice", [{"blends": ["airrep+bm25"]}, {"poolings": {"bm25": ["chosen"]}}])
def test_too_few_subsets_to_choose_on_are_told(choice):
    study = changed("targets.subsets_per_fold", 2)
    study["scoring"] |= choice
    with pytest.raises(StudyError, match=r"targets.subsets_per_fold of at least 3"):
        load_study(study)


@pytest.mark.parametrize(
    ("surrogate", "changes", "expected"),
    [
        ({"method": "bm52"}, {}, "targets.surrogate.method: 'bm52' is not in scoring.methods; write one of"),
        ({"method": "airrep_mean"}, {}, "airrep_mean reads the encoder that is to be trained"),
        ({}, {"share": 0.5, "validation_folds": 4}, "validation_folds must be less than targets.folds"),
        ({}, {"share": 1.0, "validation_folds": 5}, "validation_folds can't exceed targets.folds"),
        ({}, {"evaluation": "surrogate"}, "evaluations.surrogate: 'surrogate' names the folds of targets.surrogate"),
    ],
)
def test_a_surrogate_that_does_not_fit_is_told(surrogate, changes, expected):
    study = with_surrogate(changes.get("share", 0.5), **surrogate)
    study["encoder_training"]["validation_folds"] = changes.get("validation_folds", 1)
    if "evaluation" in changes:
        study["evaluations"][changes["evaluation"]] = study["evaluations"]["heldout"]
    with pytest.raises(StudyError) as error:
        load_study(study)
    assert expected in str(error.value)


def test_with_predicted_targets_alone_all_measured_folds_may_be_held_back():
    study = with_surrogate(1.0)
    study["encoder_training"]["validation_folds"] = study["targets"]["folds"]
    assert load_study(study).encoder_training.validation_folds == 4


def test_every_wrong_key_is_told_at_once():
    study = changed("targets.folds", 0) | {"sed": 1}
    with pytest.raises(StudyError) as error:
        load_study(study)
    assert "has 2 wrong key(s)" in str(error.value)
    assert "did you mean 'seed'?" in str(error.value)


def test_a_hub_model_needs_no_pretraining_corpus():
    study = changed("language_model", {"model": "Qwen/Qwen2.5-0.5B"})
    del study["corpora"]["pretraining"]
    assert load_study(study).language_model.max_tokens == 512


SCORES_ALONE = {
    "run": "mine",
    "corpora": {"examples": {"source": "a.jsonl"}, "questions": {"source": "b.jsonl"}},
    "encoder": {"model": "somebody/AirRep"},
    "evaluations": {"asked": {"train": "examples", "test": "questions", "tests": None, "subsets": 0}},
    "scoring": {"methods": ["airrep"]},
}


def test_scores_alone_need_no_targets_and_no_lm():
    study = load_study(SCORES_ALONE)
    assert study.targets is None
    assert not study.fine_tunes


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"encoder": {}}, "encoder.model: without targets nothing trains 'builtin:small'; add targets, or write"),
        ({"encoder": {"model": "results/mine/encoder"}}, "encoder.model: 'results/mine/encoder' lies in results/mine"),
        ({"scoring": {"methods": ["untrained", "bm25"]}}, "without targets none is trained; write [bm25]"),
        (
            {"scoring": {"methods": ["airrep", "bm25"], "blends": ["airrep+bm25"]}},
            "scoring.blends: without targets there are no held-back folds to weigh methods on; remove the blends",
        ),
        ({"release": {"hub": "me/mine"}}, "release.hub: without targets there is no encoder of this study's to push"),
        (
            {"evaluations": {"asked": {**SCORES_ALONE["evaluations"]["asked"], "subsets": 5}}},
            "evaluations.asked: subset_examples is missing; add it, or write `subsets: 0` for scores only",
        ),
    ],
)
def test_what_scores_alone_cannot_have_is_told(change, expected):
    with pytest.raises(StudyError) as error:
        load_study(SCORES_ALONE | change)
    assert expected in str(error.value)


def test_a_study_does_not_change():
    study = load_study(SMOKE)
    with pytest.raises(ValueError, match="frozen"):
        study.seed = 2
