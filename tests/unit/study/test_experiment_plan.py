"""Studies with experiments, encoder variants and further LMs: what fits together, and which jobs follow."""

from pathlib import Path

import pytest
import yaml

from workflow_scripts.core.errors import StudyError
from workflow_scripts.study.config import load_study
from workflow_scripts.study.method_costs import fitting_jobs, fixed_costs, warmup_jobs
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.specs import StageSpecs

ROOT = Path(__file__).parents[3]
VALUES = yaml.safe_load((ROOT / "tests" / "configs" / "experiments.yaml").read_text(encoding="utf-8"))


def changed(key, value):
    """The study with one key (path with dots) set."""
    study = yaml.safe_load(yaml.safe_dump(VALUES))
    *sections, last = key.split(".")
    section = study
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return study


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "scoring.methods",
            ["airrep", "tfidf", "airrep@wide"],
            "'airrep@wide' needs encoder_variants.wide; add it there",
        ),
        ("scoring.methods", ["tfidf@mean"], "tfidf reads no encoder of the study, so it has no variants"),
        (
            "scoring.poolings",
            {"airrep": ["attention", "signed"]},
            "one pass computes only one of attention, chosen, signed",
        ),
        ("scoring.poolings", {"tfidf": ["attention", "chosen"]}, "one pass computes only one of"),
        (
            "encoder_variants.mean",
            {"encoder_training": {"poling": "mean"}},
            "encoder_variants.mean.encoder_training.poling: no such key; did you mean 'pooling'?",
        ),
        (
            "encoder_variants.mean",
            {"encoder_training": {"validation_folds": 3}},
            "encoder_variants.mean.encoder_training.validation_folds must be less than targets.folds",
        ),
        ("language_models.other", {"max_tokens": 0}, "language_models.other.max_tokens: Input should be greater"),
        (
            "language_models.other",
            {"pretraining": {"corpus": "x"}},
            "language_models.other.pretraining.corpus: there is no corpus 'x'",
        ),
        ("evaluations.away.language_model", "none", "evaluations.away.language_model: there is no 'none'"),
        ("experiments.leave_out.evaluation", "x", "experiments.leave_out: there is no evaluation 'x'; write one of"),
        ("experiments.leave_out.sizes", [24], "sizes: must be less than base_examples"),
        (
            "experiments.removal.methods",
            ["bm25"],
            "experiments.removal.methods: 'bm25' is not in scoring.methods; add it",
        ),
        ("experiments.selection.examples", 9, "experiments.selection.examples (9) can't exceed scoring.top (8)"),
        ("experiments.transfer.evaluation", "heldout", "evaluation 'heldout' names no other language_model"),
        ("experiments.removal.test", 3, "experiments.removal.test: no such key; did you mean 'tests'?"),
        ("finetuning", {"engine": "deepspeed"}, "experiments.selection has the LM generate answers, which needs"),
    ],
)
def test_what_does_not_fit_is_told(key, value, expected):
    with pytest.raises(StudyError) as error:
        load_study(changed(key, value))
    assert expected in str(error.value)


@pytest.mark.parametrize("name", ["methods_mini", "choices_mini", "released_flan"])
def test_the_studies_load(name):
    load_study(yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")))


def test_a_variant_differs_in_its_keys_alone():
    plan = StudyPlan(load_study(VALUES))
    own, variant = (StageSpecs(plan).spec("train_encoder", {"variant": name})["training"] for name in ("", "@mean"))
    assert {key for key in own if own[key] != variant[key]} == {"pooling", "label_spread", "label_clip", "truncation"}
    assert not plan.has_own_initialization("@mean")
    wide = StudyPlan(load_study(changed("encoder_variants.mean", {"encoder": {"dimension": 8}})))
    assert wide.has_own_initialization("@mean")
    assert StageSpecs(wide).spec("init_encoder", {"variant": "@mean"})["settings"]["dimension"] == 8


def test_another_lm_differs_in_its_keys_alone():
    plan = StudyPlan(load_study(VALUES))
    own, other = (StageSpecs(plan).spec("pretrain_base_lm", {"lm": name}) for name in ("", "@other"))
    assert {key for key in own if own[key] != other[key]} == {"architecture"}
    assert (plan.language_model_of("heldout"), plan.language_model_of("away")) == ("", "@other")
    assert plan.tokenized_corpora() == ["pool", "tests", "train"]


def test_the_fixed_cost_of_an_encoder_is_its_targets_and_its_training():
    plan = StudyPlan(load_study(VALUES))
    assert fixed_costs(plan, "tfidf") == []
    tuned = [job for job in fixed_costs(plan, "airrep") if job.startswith("finetune_shard/")]
    assert tuned == [f"finetune_shard/train/{block}.tsv" for block in plan.blocks("train")]  # none of earlier sizes
    assert fixed_costs(plan, "airrep_mean@mean")[-2:] == ["init_encoder/study.tsv", "train_encoder/study@mean.tsv"]
    assert fixed_costs(plan, "logra_8") == ["warmup_lm/*.tsv", "fit_method/logra_8.tsv"]
    assert fixed_costs(plan, "less") == ["fit_method/less.tsv"]


def test_a_pooling_that_is_chosen_costs_the_embeddings_that_choose_it():
    scoring = {"methods": ["logra_8", "tfidf"], "poolings": {"logra_8": ["mean", "chosen"], "tfidf": ["chosen"]}}
    study = changed("scoring", scoring)
    del study["curation"], study["experiments"]
    plan = StudyPlan(load_study(study))
    assert fitting_jobs(plan, "logra_8")[1:] == ["embed_by_method/logra_8/train.tsv", "choose_pooling/logra_8.tsv"]
    assert fitting_jobs(plan, "tfidf") == ["choose_pooling/tfidf.tsv"]


def scored_by(*methods):
    """The study with these methods, and transfer as its only experiment."""
    study = changed("scoring", {"methods": list(methods)})
    del study["curation"]
    study["experiments"] = {"transfer": study["experiments"]["transfer"]}
    return StudyPlan(load_study(study))


def test_a_blend_costs_what_either_method_needs_once_and_its_weight():
    plan = scored_by("airrep", "ekfac", "logra_4")
    weighing = ["predict_held_back/airrep.tsv", "predict_held_back/ekfac.tsv", "weigh_blend/airrep+ekfac.tsv"]
    embedding = ["embed_corpus/trained/train.tsv"]
    jobs = [*fitting_jobs(plan, "airrep"), *embedding, *fitting_jobs(plan, "ekfac"), *weighing]
    assert fitting_jobs(plan, "airrep+ekfac") == jobs
    assert warmup_jobs(plan, "ekfac+logra_4") == ["warmup_lm/*.tsv"]


def test_a_choice_is_made_on_folds_that_no_encoder_of_its_methods_is_trained_on():
    values = changed("encoder_training.validation_folds", 2)
    values["encoder_variants"]["mean"]["encoder_training"]["validation_folds"] = 1
    values["scoring"]["blends"] = ["airrep+tfidf", "airrep_mean@mean+tfidf"]
    specs = StageSpecs(StudyPlan(load_study(values)))
    folds = {
        method: specs.spec("predict_targets", {"method": method})["folds"] for method in values["scoring"]["methods"]
    }
    assert folds == {"airrep": 2, "airrep_mean@mean": 1, "tfidf": 2}
    assert [specs.spec("weigh_blend", {"blend": blend})["folds"] for blend in values["scoring"]["blends"]] == [2, 1]
    assert specs.spec("choose_pooling", {"method": "airrep_mean@mean"})["folds"] == 1


@pytest.mark.parametrize(
    ("methods", "main"),
    [(["tfidf", "airrep"], "airrep"), (["tfidf", "airrep_mean"], "airrep_mean"), (["bm25", "tfidf"], "bm25")],
)
def test_every_other_row_is_compared_with_the_one_that_the_advice_is_about(methods, main):
    specs = StageSpecs(scored_by(*methods))
    assert specs.spec("evaluate_lds", {}).get("main", "airrep") == main
    assert specs.spec("evaluate_transfer", {})["method"] == main


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("paper_flan", (32, 2000, 0.1, 5.0, "fold", None, "first", "airrep")),
        ("released_flan", (16, 5000, 0.0, 10.0, "pooled", 10.0, "last", "airrep_signed")),
    ],
)
def test_the_presets_part_in_six_points(preset, values):
    study = load_study(yaml.safe_load((ROOT / "configs" / f"{preset}.yaml").read_text(encoding="utf-8")))
    training = study.encoder_training
    assert (
        study.finetuning.batch_examples,
        training.steps,
        training.min_label_gap,
        training.max_pair_weight,
        training.label_spread,
        training.label_clip,
        training.truncation,
        study.scoring.methods[0],
    ) == values
