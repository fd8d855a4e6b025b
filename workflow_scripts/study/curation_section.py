"""The sections of a study's configuration under `curation`; `study.sections` has the others."""

from __future__ import annotations

import math
import re
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from workflow_scripts.study.sections import Name, Section


def _check_size(size: object) -> object:
    # On the command line, Snakemake leaves whatever is nested as text.
    if isinstance(size, str) and re.fullmatch(r"\d+(\.\d+)?", size):
        size = float(size) if "." in size else int(size)
    if isinstance(size, bool) or not isinstance(size, int | float) or not math.isfinite(size):
        raise ValueError("write a number of rows, e.g. 500, or a share of them, e.g. 0.1")
    if isinstance(size, float) and not 0 < size <= 1:
        raise ValueError("a share is above 0 and at most 1; a number of rows has no decimal point")
    if isinstance(size, int) and size < 1:
        raise ValueError("write at least 1 row")
    return size


def _check_optional_size(size: object) -> object:
    return None if size is None else _check_size(size)


Size = Annotated[int | float, BeforeValidator(_check_size)]


class Curation(Section):
    """One selection of training rows by their scores for the tests of an evaluation (docs/curate.md)."""

    NOT_IN_SPEC: ClassVar[frozenset[str]] = frozenset({"format", "prefix", "drop"})
    NOT_IN_SPEC_AT_DEFAULT: ClassVar[frozenset[str]] = frozenset({"tests"})

    evaluation: Name = Field(description="The evaluation whose training corpus is selected from, by its tests.")
    method: str = Field("airrep", description="Scoring method, one of `scoring.methods`.")
    rule: Literal["min_rank", "mean_score", "helpful_only", "most_harmful"] = Field(
        "min_rank",
        description="`min_rank`: by the best rank that a row reaches for any test, as in the paper. `mean_score`: by "
        "the mean score over all tests. `helpful_only`: as that, and only scores above 0. `most_harmful`: the lowest "
        "mean scores, listed for review.",
    )
    tests: Literal["all", "same_label"] = Field(
        "all",
        description="The tests that a mean score is over: `all`, or `same_label`, those with the row's label; rows "
        "whose label no test has are left out. An answer that belongs to another question harms the tests of its own "
        "label, and in the mean over all tests nothing is seen of it (docs/results/detection.md).",
    )
    size: Annotated[int | float | None, BeforeValidator(_check_optional_size)] = Field(
        None,
        description="How many rows (`500`), or which share of the corpus (`0.1`): `1` is one row, `1.0` all. "
        "`helpful_only` takes at most so many, and all with a score above 0 without it; the other rules need it, and "
        "stop if there are fewer.",
    )
    quota_by: Literal["label", "source_file"] = Field("label", description="What `quotas` are for.")
    quotas: dict[str, Size] = Field(
        default_factory=dict,
        description="Most rows of a label or source file, as a number or as a share of `size`, e.g. `{math: 100, "
        '"*": 0.2}`; `"*"` stands for each that isn\'t named. Rows without a label have the label `""`.',
    )
    near_duplicates: Literal["keep", "once"] = Field(
        "keep",
        description="`once`: of rows that are near duplicates (`judging.near_duplicate`), only the best-ranked one.",
    )
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="File format of `chosen`, `review` and `kept`.")
    prefix: str = Field(
        "curation_",
        min_length=1,
        description="Prefix of the added columns; change it if your file has columns of these names.",
    )
    drop: str | None = Field(
        None,
        description="`most_harmful` only: your reviewed copy of `review.jsonl`, with the rows to drop. "
        "`kept.jsonl` is then the corpus without them.",
    )

    @model_validator(mode="after")
    def _keys_fit_the_rule(self) -> Curation:
        if self.size is None and self.rule != "helpful_only":
            raise ValueError(f"size: rule {self.rule} needs it; write a number of rows, e.g. 500, or a share, e.g. 0.1")
        if self.reads_top_lists and self.tests != "all":
            raise ValueError("tests: rule min_rank has no mean score; write tests: all, or another rule")
        if self.drop is not None and not self.is_for_review:
            raise ValueError("drop applies to rule: most_harmful only, whose list is reviewed; leave it out")
        if self.is_for_review and self.near_duplicates == "once":
            raise ValueError(
                "near_duplicates: of rows that are listed for review each copy counts, or dropping one would keep the "
                "others; write keep"
            )
        if self.size is None and any(isinstance(quota, float) for quota in self.quotas.values()):
            raise ValueError("quotas: a share is of `size`, and there is none; write numbers of rows, or add size")
        return self

    @property
    def rows_file(self) -> str:
        """Name of the file with the selected rows."""
        return f"{'review' if self.is_for_review else 'chosen'}.{self.format}"

    @property
    def is_for_review(self) -> bool:
        """Whether the rows are listed for review, and not written as a training file."""
        return self.rule == "most_harmful"

    @property
    def reads_top_lists(self) -> bool:
        """Whether the top lists of `scores/` suffice; otherwise every row is scored."""
        return self.rule == "min_rank"
