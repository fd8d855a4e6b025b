"""Sections of the config: what is evaluated, which methods score, and what is reported and shared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from workflow_scripts.study.choices import NO_METHODS, WEIGHING, Pooling
from workflow_scripts.study.methods import METHODS, OF_TESTS, methods_of
from workflow_scripts.study.sections import Name, Positive, Section


class Evaluation(Section):
    """A test set and the pool of training examples whose influence on it is measured."""

    language_model: Name | None = Field(
        None, description="One of `language_models`, if the subsets are fine-tuned with another LM than the targets."
    )
    train: Name = Field(description="Corpus that subsets are drawn from.")
    test: Name = Field(description="Corpus of the test examples.")
    tests: Positive | None = Field(
        description="Test examples, drawn from the test corpus; `null` for all that have a response token left."
    )
    subsets: int = Field(
        ge=0, description="Random subsets, each fine-tuned; 0 for scores only, with neither LM nor LDS."
    )
    subset_examples: Positive | None = Field(None, description="Examples in a subset; needed where there are subsets.")
    seeds: int = Field(2, ge=2, description="Fine-tuning runs per subset; two or more give the noise ceiling.")
    subsets_per_job: Positive = Field(100, description="Subsets that one job fine-tunes.")

    @model_validator(mode="after")
    def _subsets_have_a_size(self) -> Evaluation:
        if self.subsets and self.subset_examples is None:
            raise ValueError("subset_examples is missing; add it, or write `subsets: 0` for scores only")
        if 0 < self.subsets < 3:
            raise ValueError("subsets: of fewer than 3, any ranking is perfect or wrong; write 3 or more, or 0")
        return self


class Warmup(Section):
    """How the LM of gradient methods is warmed up, and what these methods are fitted on (paper, section 4.1)."""

    corpus: Name | None = Field(
        None, description="Corpus whose examples are drawn; `null` for that of `targets`, or of an evaluation."
    )
    examples: Positive = Field(100_000, description="Examples, drawn at random; all, if the corpus has fewer.")
    epochs: Positive = Field(2, description="Passes over them.")
    learning_rate: float | None = Field(
        None, gt=0, description="AdamW's learning rate, constant; `null` for that of `finetuning`, as all else."
    )
    measured_examples: Positive = Field(
        10_000, description="Of them, how many the methods' second moments (PCA, KFAC, Fisher) are measured on."
    )


class Scoring(Section):
    """Which methods score, and what is kept."""

    methods: list[str] = Field(
        ["airrep", "airrep_mean", "untrained", "tfidf", "bm25", "length", "random"],
        description=f"Rows of the LDS table: {', '.join(f'`{name}`' for name in METHODS)}, or a name of "
        "`sentence_encoders`; of those that read the encoder, `<method>@<variant>` reads one of `encoder_variants`. "
        "docs/methods.md says what each is.",
        min_length=1,
    )
    sentence_encoders: dict[Name, str] = Field(
        default_factory=dict,
        description="More methods by name: sentence-transformers models, each a folder or hub id, e.g. "
        "`{gte: thenlper/gte-small}`.",
    )
    poolings: dict[Name, list[Pooling]] = Field(
        default_factory=dict,
        description="How a method's scores of examples become scores of groups, each a row, instead of the method's "
        "own poolings, e.g. `{tfidf: [mean, chosen]}`. `chosen` is the mean or attention with the scale, whichever has "
        "the highest LDS on the folds that are held back from the encoder.",
    )
    blends: list[str] = Field(
        default_factory=list,
        description="More rows of the LDS table, e.g. `[airrep+ekfac]`: group scores of two of `methods`, added with "
        "the weight that has the highest LDS on the folds that are held back from the encoder. Where both methods "
        "store embeddings or score texts, a blend has top lists too.",
    )
    top: Positive = Field(50, description="Most helpful and most harmful examples kept per test.")
    tile_examples: Positive = Field(8192, description="Most training examples scored at once.")
    parts: Positive = Field(
        1,
        description="Jobs that embed an evaluation's training corpus, and as many that score it for each method that "
        "embeds. Results change by rounding only, but another number embeds again.",
    )
    embedding_precision: Literal["float16", "float32"] = Field(
        "float16", description="Of embeddings on disk, but for those of one bit per number."
    )

    @model_validator(mode="after")
    def _methods_exist(self) -> Scoring:
        if taken := sorted(METHODS.keys() & self.sentence_encoders.keys()):
            raise ValueError(f"sentence_encoders: {taken[0]!r} is another method's name; choose another one")
        # Their embeddings lie in folders of these names.
        folders = (name for name in self.sentence_encoders if name == "trained" or name.endswith(OF_TESTS))
        if taken := [*(NO_METHODS & self.sentence_encoders.keys()), *folders]:
            raise ValueError(f"sentence_encoders: results of other kinds are called {taken[0]!r}; choose another name")
        known = [*METHODS, *self.sentence_encoders]
        for key, names in {"methods": self.methods, "poolings": self.poolings}.items():
            for name in names:
                method = name.partition("@")[0]
                if method != name and method in known and not (method in METHODS and METHODS[method].encoder):
                    raise ValueError(f"{key}: {method} reads no encoder of the study, so it has no variants")
                if method not in known:
                    raise ValueError(f"{key}: there is no method {name!r}; write one of {', '.join(known)}")
        for name, poolings in self.poolings.items():
            if not poolings or len(set(poolings)) < len(poolings):
                raise ValueError(f"poolings.{name}: write each pooling once, and at least one, e.g. [mean]")
            if len(WEIGHING & set(poolings)) > 1:
                raise ValueError(
                    f"poolings.{name}: one pass computes only one of {', '.join(sorted(WEIGHING))}; write one of them"
                )
        if repeated := {name for name in self.methods if self.methods.count(name) > 1}:
            raise ValueError(f"methods: {min(repeated)!r} is listed twice; write it once")
        return self

    @model_validator(mode="after")
    def _blends_are_of_two_methods(self) -> Scoring:
        for blend in self.blends:
            blended = methods_of(blend)
            if len(blended) != 2 or len(set(blended)) != 2:
                raise ValueError(f"blends: {blend!r} is not two methods; write two of them, as in airrep+tfidf")
            if unknown := [name for name in blended if name not in self.methods]:
                raise ValueError(f"blends: {unknown[0]!r} of {blend!r} is not in methods; add it there")
        blends = [frozenset(methods_of(blend)) for blend in self.blends]
        if repeated := [blend for blend in self.blends if blends.count(frozenset(methods_of(blend))) > 1]:
            raise ValueError(f"blends: the methods of {repeated[0]!r} are blended twice; write it once")
        return self


class Judging(Section):
    """How the LDS is reported."""

    bootstrap: Positive = Field(1000, description="Bootstrap draws over tests and subsets.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Coverage of the intervals.")
    near_duplicate: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Jaccard similarity of word 3-grams from which a test row is reported as seen.",
    )


class Release(Section):
    """How the trained encoder is shared, with its model card."""

    layout: Literal["sentence_transformers", "published"] = Field(
        "sentence_transformers",
        description="`published`: the layout of the paper's authors, for their code; rounded to bfloat16.",
    )
    hub: str | None = Field(
        None,
        description="Hub id to push it to, e.g. `me/my-encoder`; a new repository is a private one. An "
        "earlier encoder that lies there is replaced, other files are kept. Off if `null`.",
    )


class Report(Section):
    """What the report shows."""

    tests: Positive = Field(200, description="Test examples in the explorer.")
    examples: Positive = Field(10, description="Most helpful and most harmful examples shown for each.")
    characters: Positive = Field(600, description="Longest text shown; longer ones are cut with a mark.")
