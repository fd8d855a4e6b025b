"""Which jobs are so short that a cluster runs several of them as one, and in which group.

Imported while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping

from workflow_scripts.study.plan import StudyPlan

SCORING_STAGES = ("choose_pooling", "score_pairs")
GROUPED_STAGES = ("fit_method", "embed_by_method", "embed_corpus", *SCORING_STAGES)
# Every group that there is, as `group-components` in slurm/config.yaml has them.
GROUPS = (
    "fit_method",
    "embed_by_method",
    "embed_untrained",
    "embed_trained",
    "score",
    "score_chosen",
    "score_trained",
)


def job_group(plan: StudyPlan, stage: str, wildcards: Mapping[str, str]) -> str | None:
    """Return the group of a job; a cluster runs several jobs of one group, one after the other, as one of its own.

    Jobs are short if they read stored embeddings or texts, or a model that the workflow makes itself. A study that
    splits its corpora has large ones, and no short jobs. Scores that wait for no fine-tuning, those that wait for the
    targets that choose their pooling, and those that wait for a trained encoder are in different groups. One with the
    last two could even wait for itself: what a method scores may be what the encoder is trained on
    (`targets.surrogate`).

    Parameters
    ----------
    plan: what the study runs.
    stage: name of the stage.
    wildcards: those of the job.

    Returns
    -------
    One of `GROUPS`; None for a job that may take long.
    """
    if plan.study.scoring.parts > 1:
        return None
    if stage in ("fit_method", "embed_by_method"):
        name = wildcards.get("method") or wildcards.get("embedding")
        own = plan.embedding_spec(name) if name else None
        return stage if own and own.stored and own.language_model and plan.has_builtin_lm else None
    if stage == "embed_corpus":
        kind, at, variant = wildcards["encoder"].partition("@")
        return f"embed_{kind}" if plan.encoder(at + variant).model == "builtin:small" else None
    if stage in SCORING_STAGES:
        name = wildcards["method"]
        if plan.method(name).is_unstored:
            return None
        if (plan.method(name).encoder or "").startswith("trained"):
            return "score_trained"
        return "score_chosen" if plan.has_chosen_pooling(name) else "score"
    return None
