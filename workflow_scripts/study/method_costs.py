"""Which jobs a method needs before it scores, by their benchmark files.

Imported while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

from workflow_scripts.study.methods import methods_of
from workflow_scripts.study.plan import SURROGATE_POOL, TRAIN_POOL, StudyPlan


def fixed_costs(plan: StudyPlan, method: str) -> list[str]:
    """Return globs of the benchmark files of the jobs that a method needs once, whatever it scores."""
    return [*warmup_jobs(plan, method), *(fitting_jobs(plan, method) or [])]


def warmup_jobs(plan: StudyPlan, method: str) -> list[str]:
    """Return globs of the benchmark files of the warm-up of a method's LM; none if it doesn't read the warm LM.

    For a blend, those of both methods.
    """
    if len(blended := methods_of(method)) > 1:
        return list(dict.fromkeys(job for one in blended for job in warmup_jobs(plan, one)))
    own = plan.method(method).own
    return ["warmup_lm/*.tsv"] if own and own.language_model == "warm" else []


def fitting_jobs(plan: StudyPlan, method: str) -> list[str] | None:
    """Return globs of the benchmark files of the jobs that fit a method, beside the LM's warm-up.

    For a trained encoder, they are those of its targets and of its training; None if it was trained elsewhere. For a
    blend, those of both methods and what its weight was chosen by; None if they are unknown for one.
    """
    if len(methods_of(method)) > 1:
        return _blending_jobs(plan, method)
    known = plan.method(method)
    chosen = plan.has_chosen_pooling(method)
    choice = [*_embedding_of_targets(plan, method), f"choose_pooling/{method}.tsv"] if chosen else []
    if known.own:
        fit = plan.fit_of(method)
        return [f"fit_method/{fit}.tsv", *choice] if fit else choice
    encoder = known.encoder
    if not encoder:
        return choice
    if plan.study.targets is None:
        return None
    kind, at, name = encoder.partition("@")
    start = f"init_encoder/study{at + name if plan.has_own_initialization(at + name) else ''}.tsv"
    if kind == "untrained":
        return [start, *choice]
    targets = [f"{stage}/{TRAIN_POOL}.tsv" for stage in ("sample_subsets", "collect_targets")]
    targets += _surrogate_jobs(plan) if plan.learns_from_surrogate(at + name) else []
    # Files of other blocks stay where jobs once had other sizes.
    targets += [f"finetune_shard/{TRAIN_POOL}/{block}.tsv" for block in plan.blocks(TRAIN_POOL)]
    return [*targets, start, f"train_encoder/study{at}{name}.tsv", *choice]


def _surrogate_jobs(plan: StudyPlan) -> list[str]:
    """Return globs of the benchmark files of the jobs that predicted targets need."""
    assert plan.surrogate is not None, "config checks it"
    method = plan.surrogate.method
    stages = [f"sample_subsets/{SURROGATE_POOL}.tsv", f"predict_targets/{SURROGATE_POOL}.tsv"]
    return [*fixed_costs(plan, method), *_embedding_of_targets(plan, method), *stages]


def _embedding_of_targets(plan: StudyPlan, method: str) -> list[str]:
    """Return globs of the benchmark files of the jobs that embed the targets' corpus; none if nothing is stored."""
    stage, corpus = "embed_by_method" if plan.method(method).own else "embed_corpus", plan.targets.corpus
    embeddings = dict.fromkeys(plan.embedding_of(method, for_tests) for for_tests in (False, True))
    return [
        f"{stage}/{embedding}/{corpus}{part}.tsv"
        for embedding in embeddings
        if embedding
        for part in plan.parts_of(corpus)
    ]


def _blending_jobs(plan: StudyPlan, blend: str) -> list[str] | None:
    found: list[str] = []
    weighing = []
    for method in methods_of(blend):
        jobs = fitting_jobs(plan, method)
        if jobs is None:
            return None
        found += [*jobs, *_embedding_of_targets(plan, method)]
        weighing.append(f"predict_held_back/{method}.tsv")
    return [*dict.fromkeys(found), *weighing, f"weigh_blend/{blend}.tsv"]
