"""Which jobs a cluster runs together."""

from __future__ import annotations

import pytest
import yaml

from workflow_scripts.study.config import load_study
from workflow_scripts.study.job_groups import GROUPED_STAGES, GROUPS, job_group
from workflow_scripts.study.plan import StudyPlan

JOBS = {
    "fit_method": {"method": "logra_4"},
    "embed_by_method": {"embedding": "less-tests", "corpus": "tests", "part": ""},
    "embed_corpus": {"encoder": "trained", "corpus": "pool", "part": ""},
    "choose_pooling": {"method": "untrained"},
    "score_pairs": {"method": "airrep", "evaluation": "heldout"},
}


@pytest.fixture
def plan(request):
    def plan(**changes):
        with open(request.config.rootpath / "configs" / "methods_mini.yaml") as file:
            values = yaml.safe_load(file)
        for section, change in changes.items():
            values[section] = {**values[section], **change}
        return StudyPlan(load_study(values))

    return plan


def test_short_jobs_of_a_study_with_models_of_its_own_have_groups(plan):
    groups = {stage: job_group(plan(), stage, wildcards) for stage, wildcards in JOBS.items()}
    assert tuple(groups) == GROUPED_STAGES
    assert groups == {
        "fit_method": "fit_method",
        "embed_by_method": "embed_by_method",
        "embed_corpus": "embed_trained",
        "choose_pooling": "score_chosen",
        "score_pairs": "score_trained",
    }
    assert set(groups.values()) <= set(GROUPS)


@pytest.mark.parametrize("stage", ["finetune_shard", "train_encoder", "evaluate_lds"])
def test_long_jobs_have_none(plan, stage):
    assert job_group(plan(), stage, {}) is None


def test_what_a_pretrained_lm_computes_is_long(plan):
    pretrained = plan(language_model={"model": "Qwen/Qwen2.5-0.5B"})
    assert job_group(pretrained, "fit_method", JOBS["fit_method"]) is None
    assert job_group(pretrained, "embed_by_method", JOBS["embed_by_method"]) is None
    assert job_group(pretrained, "score_pairs", JOBS["score_pairs"]) == "score_trained"


def test_what_a_pretrained_encoder_embeds_is_long(plan):
    pretrained = plan(encoder={"model": "thenlper/gte-small", "tokenizer": "wordpiece"})
    assert job_group(pretrained, "embed_corpus", JOBS["embed_corpus"]) is None


def test_a_study_that_splits_its_corpora_has_no_short_jobs(plan):
    assert {job_group(plan(scoring={"parts": 2}), *job) for job in JOBS.items()} == {None}


def test_a_method_that_stores_no_embeddings_is_long(plan):
    for stage in ("choose_pooling", "score_pairs", "embed_by_method"):
        assert job_group(plan(), stage, {"method": "ekfac", "evaluation": "heldout"}) is None
    # It predicts targets for a pool, with the resources of what embeds.
    assert job_group(plan(), "embed_by_method", {"pool": "surrogate"}) is None


def test_what_an_encoder_is_trained_on_and_what_reads_it_are_never_in_one_group(plan):
    encoders = ("trained", "untrained", "trained@joint", "untrained@joint")
    embedded = {one: job_group(plan(), "embed_corpus", {"encoder": one}) for one in encoders}
    methods = ("airrep", "untrained", "airrep@joint", "untrained@joint", "tfidf")
    scored = {one: job_group(plan(), "score_pairs", {"method": one}) for one in methods}
    for groups in (embedded, scored):
        after = {name for name in groups if name.startswith(("trained", "airrep"))}
        assert not {groups[name] for name in after} & {groups[name] for name in groups.keys() - after}


def test_what_waits_for_no_fine_tuning_has_a_group_of_its_own(plan):
    assert job_group(plan(), "score_pairs", {"method": "random"}) == "score"
    assert job_group(plan(), "score_pairs", {"method": "tfidf"}) == "score_chosen"
