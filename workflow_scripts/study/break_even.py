"""Break-even points: of two methods, one dear at first and one dear per example, and of a study before it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from workflow_scripts.study.costs import (
    Concurrency,
    Pilot,
    finetuning_work,
    occupied_processors,
    sharing_processes,
    work,
    work_seconds,
)
from workflow_scripts.study.plan import StudyPlan


@dataclass(frozen=True)
class Cost:
    """Cost of a method in seconds: `fixed` once, whatever it scores, and `per_example` for each scored example."""

    fixed: float
    per_example: float


def crossover(ours: Cost, theirs: Cost) -> float:
    """Return the number of scored examples from which on `ours` is cheaper than `theirs`.

    fixed + examples * per_example are two straight lines, which meet at
    (ours.fixed - theirs.fixed) / (theirs.per_example - ours.per_example).

    Returns
    -------
    0 if `ours` is cheaper from the first example on, infinity if it never is.
    """
    dearer_at_first = ours.fixed - theirs.fixed
    saved = theirs.per_example - ours.per_example
    if dearer_at_first <= 0:
        return 0.0 if saved >= 0 else math.inf
    return dearer_at_first / saved if saved > 0 else math.inf


@dataclass(frozen=True)
class BreakEven:
    """From which corpus size on the trained encoder is cheaper than one gradient for each scored example.

    Parameters
    ----------
    processor: `GPU` or `core`, whose seconds are counted.
    setup_seconds: of labels and training, once.
    gradient_seconds: of one example's gradient.
    embedding_seconds: of one example's embedding.
    examples: the size, in examples; None if a gradient costs no more than an embedding.
    """

    processor: str
    setup_seconds: float
    gradient_seconds: float
    embedding_seconds: float
    examples: int | None


def break_even(plan: StudyPlan, pilot: Pilot, concurrency: Concurrency) -> BreakEven | None:
    """Return the corpus size from which on labels, training and embeddings cost less than a gradient per example.

    The gradient method's own preparation (a warmed-up LM, its projection) is not counted, so the size is an upper
    bound; neither is the start-up of jobs. None for a study that trains no encoder. Parameters as in `costs.estimate`.
    """
    if not plan.study.targets:
        return None
    jobs = work(plan, pilot)

    def processor_seconds(stage: str, seconds: float) -> float:
        occupied = occupied_processors(stage, plan, pilot, concurrency)
        return seconds * occupied / sharing_processes(stage, plan, pilot)

    # What several processes share costs as many processor seconds as in one.
    labels = sum(work_seconds(job, pilot) for job in finetuning_work(plan, pilot, "train"))
    training = processor_seconds("train_encoder", work_seconds(jobs["train_encoder"][0], pilot))
    setup = labels + work_seconds(jobs["init_encoder"][0], pilot) + training
    pools = [pilot.corpora[one.train] for one in plan.study.evaluations.values()]
    gradient = pilot.seconds["gradient_token"] * sum(pool.lm_tokens for pool in pools) / len(pools)
    token = processor_seconds("embed_corpus", pilot.seconds["embedded_token"])
    embedding = token * sum(pool.encoder_tokens for pool in pools) / len(pools)
    examples = crossover(Cost(setup, embedding), Cost(0.0, gradient))
    return BreakEven(
        processor="GPU" if pilot.on_gpu else "core",
        setup_seconds=setup,
        gradient_seconds=gradient,
        embedding_seconds=embedding,
        examples=math.ceil(examples) if math.isfinite(examples) else None,
    )
