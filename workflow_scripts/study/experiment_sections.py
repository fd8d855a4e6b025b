"""The sections of a study's configuration under `experiments`; `study.sections` has the others."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from workflow_scripts.study.damages import Damage
from workflow_scripts.study.sections import Name, Positive, Section


def _something_stays(section: LeaveOut | Removal) -> LeaveOut | Removal:
    if len(set(section.sizes)) < len(section.sizes):
        raise ValueError("sizes: a size is listed twice; write each once")
    if max(section.sizes) >= section.base_examples:
        raise ValueError("sizes: must be less than base_examples, or nothing would be left to fine-tune on")
    return section


class LeaveOut(Section):
    """Leave one out: fine-tune without some examples, and correlate what that does with their scores."""

    evaluation: Name = Field(description="The evaluation whose pool, tests and LM are used.")
    base_examples: Positive = Field(description="Examples of the base set, drawn from the pool.")
    sizes: list[Positive] = Field([1], description="How many examples are left out together.", min_length=1)
    groups: Annotated[int, Field(ge=3)] = Field(description="Groups left out, of each size.")
    seeds: int = Field(2, ge=2, description="Fine-tuning runs per group; two or more give the noise ceiling.")
    jobs: Positive = Field(1, description="Jobs that the runs are dealt to.")

    _stays = model_validator(mode="after")(_something_stays)

    @model_validator(mode="after")
    def _groups_differ(self) -> LeaveOut:
        for size in self.sizes:
            if self.groups > (most := math.comb(self.base_examples, size)):
                raise ValueError(
                    f"groups: there are only {most:,} groups of {size:,} among {self.base_examples:,} base_examples; "
                    "write no more than these"
                )
        return self


class Removal(Section):
    """Removal curve: fine-tune without a test's most helpful examples, against random ones."""

    evaluation: Name = Field(description="The evaluation whose pool, tests and LM are used.")
    base_examples: Positive = Field(description="Examples of the base set, drawn from the pool.")
    sizes: list[Positive] = Field(description="How many examples are removed: the points of the curve.", min_length=1)
    tests: Positive = Field(description="Test examples, each with removals of its own.")
    methods: list[str] | None = Field(None, description="Which methods choose; `null` for all that score.")
    random_draws: Positive = Field(3, description="Random removals of each size.")
    seeds: Positive = Field(1, description="Fine-tuning runs per removal.")
    jobs: Positive = Field(1, description="Jobs that the runs are dealt to.")

    _stays = model_validator(mode="after")(_something_stays)


class Selection(Section):
    """Data selection: per task (label), fine-tune on the examples that a method ranks first, and let the LM answer."""

    evaluation: Name = Field(description="The evaluation whose pool, tests and LM are used; its tests need labels.")
    examples: Positive = Field(description="Examples selected for a task (paper: 1,000); at most `scoring.top`.")
    tasks: Positive | None = Field(None, description="Number of tasks, those with most tests first; `null` for all.")
    methods: list[str] | None = Field(None, description="Which methods select; `null` for all that score.")
    full_data: bool = Field(True, description="Also fine-tune once on the whole pool.")
    new_tokens: Positive = Field(64, description="Longest answer in tokens.")
    seeds: Positive = Field(1, description="Fine-tuning runs per selection.")
    jobs: Positive = Field(1, description="Jobs that the runs are dealt to.")


class Classification(Section):
    """Data classification: does the top-ranked training example carry the test's label."""

    evaluations: list[Name] | None = Field(None, description="Evaluation sets with labels; `null` for all.")


class Amortisation(Section):
    """From which corpus size on training an encoder has paid for itself."""

    evaluation: Name = Field(description="The evaluation whose measured seconds are used.")


class Transfer(Section):
    """What an encoder trained on one LM's targets is worth for another LM."""

    evaluation: Name = Field(description="The evaluation that names another `language_model`.")
    home: Name = Field(description="The evaluation with the LM of the targets that it is compared with.")


class CuratedData(Section):
    """Curated data: fine-tune on selections of `curation` and on random rows, and measure tests that chose nothing."""

    evaluation: Name = Field(description="The evaluation that the selections are for; some tests must be left over.")
    selections: list[Name] | None = Field(
        None, description="Which selections of `curation`; `null` for all of this evaluation that aren't for review."
    )
    random_draws: Annotated[int, Field(ge=2)] = Field(
        5, description="Random subsets of the same size, each fine-tuned on."
    )
    seeds: Annotated[int, Field(ge=2)] = Field(3, description="Fine-tuning runs per list of rows.")
    jobs: Positive = Field(1, description="Jobs that the runs are dealt to.")


class Detection(Section):
    """Detection: damage rows of the pool on purpose, and see which methods find them by their harm to trusted tests."""

    evaluation: Name = Field(description="The evaluation whose pool is damaged, and whose tests are trusted.")
    share: Annotated[float, Field(gt=0, lt=0.3)] = Field(
        0.03, description="Share of the pool's rows that each kind damages."
    )
    damages: list[Damage] = Field(
        ["within_label", "across_labels", "trigger"],
        description="Kinds of damage: the answers of two rows are swapped, which have the same label or two labels; or "
        "`trigger` is added to the prompt, and all such rows get the same answer, that of a row of the pool.",
        min_length=1,
    )
    trigger: str = Field(
        "according to the quiet ledger", min_length=1, description="The phrase at the end of a prompt with a trigger."
    )
    methods: list[str] | None = Field(
        None,
        description="Which methods rank; `null` for all that score, but those that store no embeddings, and of several "
        "with the same embeddings the first.",
    )

    @model_validator(mode="after")
    def _kinds_differ(self) -> Detection:
        if len(set(self.damages)) < len(self.damages):
            raise ValueError("damages: a kind is listed twice; write each once")
        return self


class Experiments(Section):
    """The paper's experiments beside the LDS; what is left out doesn't run."""

    leave_out: LeaveOut | None = None
    removal: Removal | None = None
    selection: Selection | None = None
    classification: Classification | None = None
    amortisation: Amortisation | None = None
    transfer: Transfer | None = None
    curated_data: CuratedData | None = None
    detection: Detection | None = None
