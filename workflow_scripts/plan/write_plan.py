"""Compute a plan from a pilot: the cost of each stage, cheaper settings, and when the encoder pays for itself."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.parquet import spec_hash
from workflow_scripts.core.stage import run_stage
from workflow_scripts.study.break_even import break_even
from workflow_scripts.study.choices import SMALLEST_NUMBER_OF_SUBSETS
from workflow_scripts.study.config import Study, load_study
from workflow_scripts.study.costs import (
    Concurrency,
    Pilot,
    StageEstimate,
    counted_alike,
    estimate,
    good_job_sizes,
    not_planned,
)
from workflow_scripts.study.plan import StudyPlan

# LDS on held-out folds with a share of the training folds, as a share of the LDS with all of them: measured by
# benchmarks/fewer_folds.py on the embedded study.
LDS_LEFT = {0.5: 0.99, 0.25: 0.98}


def write_plan(pilot: Path, plan: Path, *, study: dict[str, Any], cores: int, jobs: int | None) -> None:
    """Write the expected cost of a study.

    Parameters
    ----------
    pilot: `pilot.json` of the study.
    plan: JSON file to write.
    study: values of the config.
    cores: CPU cores of this machine, or of each job on a cluster.
    jobs: number of jobs that run at a time on a cluster; None for one machine.
    """
    found = Pilot.from_json(json.loads(pilot.read_text(encoding="utf-8"))["found"])
    whole = load_study(study)
    planned = StudyPlan(whole)
    concurrency = Concurrency(cores, jobs)
    stages = estimate(planned, found, concurrency)
    even = break_even(planned, found, concurrency)
    values = {
        "run": whole.run,
        "study": spec_hash(study),
        "hardware": found.hardware,
        "concurrency": {**asdict(concurrency), "gpus": found.gpus},
        "stages": [asdict(stage) for stage in stages],
        "total": totals(stages),
        "break_even": asdict(even) if even else None,
        "cheaper": list(_cheaper(whole, found, concurrency)),
        "good_job_sizes": good_job_sizes(planned, found, concurrency),
        "assumptions": [*found.assumptions, *counted_alike(planned)],
        "not_planned": not_planned(planned),
    }
    with atomic_path(plan) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def totals(stages: list[StageEstimate]) -> dict[str, float]:
    """Return the sums over all stages, which are assumed to run one after the other."""
    return {
        "jobs": sum(stage.jobs for stage in stages),
        "gpu_hours": sum(stage.hours for stage in stages if stage.processor == "GPU"),
        "core_hours": sum(stage.hours for stage in stages if stage.processor == "core"),
        "wall_seconds": sum(stage.wall_seconds for stage in stages),
        "disk_bytes": sum(stage.disk_bytes for stage in stages),
    }


def _cheaper(study: Study, pilot: Pilot, concurrency: Concurrency) -> Iterator[dict[str, Any]]:
    """Yield cheaper settings, their cost, and the LDS to expect with them."""
    targets = study.targets
    for share, left in LDS_LEFT.items():
        if not targets:
            break
        held_out = study.encoder_training.validation_folds
        folds = held_out + round((targets.folds - held_out) * share)
        if held_out < folds < targets.folds:
            changed = study.model_copy(update={"targets": targets.model_copy(update={"folds": folds})})
            yield {
                "setting": f"targets.folds: {folds}",
                **totals(estimate(StudyPlan(changed), pilot, concurrency)),
                "expected": f"about {100 * left:.0f} % of the LDS",
                "because": f"what {100 * share:.0f} % of the training folds left on the embedded study "
                "(docs/planning.md); another corpus may lose more or less",
            }
    if not StudyPlan(study).lds_evaluations:
        return
    least = SMALLEST_NUMBER_OF_SUBSETS
    halved = {
        name: one.model_copy(update={"subsets": min(one.subsets, max(math.ceil(one.subsets / 2), least))})
        for name, one in study.evaluations.items()
    }
    if halved == study.evaluations:
        return
    changed = study.model_copy(update={"evaluations": halved})
    yield {
        "setting": "evaluations: half of the subsets",
        **totals(estimate(StudyPlan(changed), pilot, concurrency)),
        "expected": "the same LDS",
        "because": "only its interval becomes wider, by up to 1.4 times: the subsets are half as many",
    }


if __name__ == "__main__":
    run_stage(write_plan)
