"""The configuration of a study as a pydantic model, with the checks that involve several sections."""

from __future__ import annotations

import os
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.tracking import TrackerName
from workflow_scripts.study.choices import NO_METHODS, SMALLEST_NUMBER_OF_SUBSETS
from workflow_scripts.study.curation_section import Curation
from workflow_scripts.study.evaluation_sections import Evaluation, Judging, Release, Report, Scoring, Warmup
from workflow_scripts.study.experiment_sections import CuratedData, Experiments
from workflow_scripts.study.messages import explain
from workflow_scripts.study.methods import METHODS, methods_of, read_encoder_variant
from workflow_scripts.study.sections import (
    Corpus,
    Encoder,
    EncoderTraining,
    EncoderVariant,
    Finetuning,
    LanguageModel,
    Name,
    Section,
    Targets,
)
from workflow_scripts.study.sources import local_files

# Experiments that read what was fine-tuned for an evaluation, or fine-tune on its pool.
FINE_TUNED = ("leave_out", "removal", "selection", "transfer")
AnySection = TypeVar("AnySection", bound=Section)


class Study(Section):
    """One study: everything that decides a number in `results/<run>`."""

    run: Name = Field(description="Name of the results folder.")
    seed: int = Field(0, ge=0, description="Every random choice derives from it.")
    deterministic: bool = Field(
        False,
        description="On a GPU: use deterministic algorithms only, which are slower, so that a job that runs again "
        "gives the same bits. On a CPU it always does. See docs/reproducibility.md.",
    )
    track: TrackerName | None = Field(
        None,
        description="Where the encoder's training curves go as its steps happen: `tensorboard` (event files beside the "
        "logs), `trackio`, `wandb` or `mlflow`, each after `pip install` of the package of that name. It changes no "
        "result, so nothing runs again. See docs/walkthrough.md.",
    )
    corpora: dict[Name, Corpus] = Field(description="Corpora by name.", min_length=1)
    language_model: LanguageModel = Field(default_factory=LanguageModel)
    language_models: dict[Name, dict[str, Any]] = Field(
        default_factory=dict,
        description="Further LMs by name, for evaluations of a transfer: the keys of `language_model` in which "
        "each differs.",
    )
    finetuning: Finetuning = Field(default_factory=Finetuning)
    targets: Targets | None = Field(
        None,
        description="Folds, subsets and validation sets that the encoder is trained on. Without them nothing is "
        "trained: `encoder.model` names a trained encoder.",
    )
    encoder: Encoder = Field(default_factory=Encoder)
    encoder_training: EncoderTraining = Field(default_factory=EncoderTraining)
    encoder_variants: dict[Name, EncoderVariant] = Field(
        default_factory=dict, description="Further encoders by name, trained on the same targets."
    )
    evaluations: dict[Name, Evaluation] = Field(description="Evaluation sets by name.", min_length=1)
    warmup: Warmup = Field(default_factory=Warmup)
    scoring: Scoring = Field(default_factory=Scoring)
    judging: Judging = Field(default_factory=Judging)
    release: Release = Field(default_factory=Release)
    experiments: Experiments = Field(default_factory=Experiments)
    report: Report = Field(default_factory=Report)
    curation: dict[Name, Curation] = Field(
        default_factory=dict,
        description="Selections of training rows by name: training files, and lists of harmful rows for review.",
    )

    @property
    def fine_tunes(self) -> bool:
        """Whether any LM is fine-tuned: for the encoder's targets, or to evaluate methods."""
        return self.targets is not None or any(evaluation.subsets for evaluation in self.evaluations.values())

    @property
    def uses_lm(self) -> bool:
        """Whether any LM is used: fine-tuned, or read by a method."""
        methods = (METHODS.get(name) for name in self.scoring.methods)
        return self.fine_tunes or any(method and method.own and method.own.language_model for method in methods)

    @model_validator(mode="after")
    def _names_exist(self) -> Study:
        used = {"targets.corpus": self.targets.corpus} if self.targets else {}
        for name in [None, *self.language_models] if self.uses_lm else []:
            lm = self.language_model_named(name)
            key = f"language_models.{name}" if name else "language_model"
            if lm.model == "builtin:tiny":
                used[f"{key}.pretraining.corpus"] = lm.pretraining.corpus
        if self.warmup.corpus:
            used["warmup.corpus"] = self.warmup.corpus
        for name, evaluation in self.evaluations.items():
            if name == "train":
                raise ValueError("evaluations.train: 'train' names the encoder's targets; choose another name")
            used[f"evaluations.{name}.train"] = evaluation.train
            used[f"evaluations.{name}.test"] = evaluation.test
        for name, corpus in self.corpora.items():
            used |= {f"corpora.{name}.without[{number}]": other for number, other in enumerate(corpus.without)}
        for key, named in used.items():
            if named not in self.corpora:
                raise ValueError(
                    f"{key}: there is no corpus {named!r}; write one of {', '.join(self.corpora)}, "
                    "or add it under corpora"
                )
        return self

    @model_validator(mode="after")
    def _no_input_is_a_result(self) -> Study:
        """Refuse inputs in the folder that the study writes: jobs delete and replace what lies there."""
        named: dict[str, Any] = {f"corpora.{name}.source": corpus.source for name, corpus in self.corpora.items()}
        named |= {"language_model.model": self.language_model.model, "encoder.model": self.encoder.model}
        named |= {f"language_models.{name}.model": one.get("model") for name, one in self.language_models.items()}
        variants = {name: one.encoder.get("model") for name, one in self.encoder_variants.items()}
        named |= {f"encoder_variants.{name}.encoder.model": model for name, model in variants.items()}
        named |= {f"scoring.sentence_encoders.{name}": model for name, model in self.scoring.sentence_encoders.items()}
        named |= {f"curation.{name}.drop": choice.drop for name, choice in self.curation.items()}
        results = os.path.realpath(os.path.join("results", self.run))
        for key, path in named.items():
            # A path of another kind is told where its section is read.
            files = [os.path.expanduser(path), *map(str, local_files(path))] if isinstance(path, str) else []
            # Of many files in one folder, one look at the folder does.
            places = {file if os.path.islink(file) or os.path.isdir(file) else os.path.dirname(file) for file in files}
            if any(os.path.commonpath([results, os.path.realpath(place)]) == results for place in places):
                raise ValueError(
                    f"{key}: {path!r} lies in results/{self.run}, where this study writes; choose another name for "
                    "run, or copy it elsewhere and name the copy"
                )
        return self

    @model_validator(mode="after")
    def _corpora_can_be_left_out(self) -> Study:
        try:
            TopologicalSorter({name: corpus.without for name, corpus in self.corpora.items()}).prepare()
        except CycleError as error:
            raise ValueError(
                f"corpora: {' and '.join(error.args[1][1:])} leave each other out; drop one of their `without`"
            ) from None
        return self

    @model_validator(mode="after")
    def _folds_suffice(self) -> Study:
        if not self.targets:
            return self
        for variant in [None, *self.encoder_variants]:
            training = self.encoder_of(variant)[1]
            key = f"encoder_variants.{variant}.encoder_training" if variant else "encoder_training"
            if training.surrogate_share == 1 and training.validation_folds > self.targets.folds:
                raise ValueError(f"{key}.validation_folds can't exceed targets.folds")
            if training.surrogate_share < 1 and training.validation_folds >= self.targets.folds:
                raise ValueError(f"{key}.validation_folds must be less than targets.folds")
        return self

    @model_validator(mode="after")
    def _surrogate_fits(self) -> Study:
        surrogate = self.targets.surrogate if self.targets else None
        shares = {
            f"encoder_variants.{name}.encoder_training" if name else "encoder_training": training.surrogate_share
            for name in [None, *self.encoder_variants]
            for training in [self.encoder_of(name)[1]]
        }
        if surrogate is None:
            if used := [key for key, share in shares.items() if share > 0]:
                raise ValueError(
                    f"{used[0]}.surrogate_share: nothing predicts labels; add targets.surrogate, or write 0"
                )
            return self
        if not any(shares.values()):
            raise ValueError(
                "targets.surrogate: no encoder learns from it; set encoder_training.surrogate_share, e.g. to 0.5"
            )
        if surrogate.method not in self.scoring.methods:
            raise ValueError(
                f"targets.surrogate.method: {surrogate.method!r} is not in scoring.methods; write one of "
                f"{', '.join(self.scoring.methods)}, or add it there"
            )
        known = METHODS.get(surrogate.method)
        if known and known.encoder == "trained":
            raise ValueError(
                f"targets.surrogate.method: {surrogate.method} reads the encoder that is to be trained; write a method "
                "that doesn't, e.g. ekfac_16384"
            )
        if "surrogate" in self.evaluations:
            raise ValueError(
                "evaluations.surrogate: 'surrogate' names the folds of targets.surrogate; choose another name"
            )
        return self

    @model_validator(mode="after")
    def _poolings_can_be_chosen(self) -> Study:
        for name, poolings in self.scoring.poolings.items():
            if "chosen" in poolings and not self.targets:
                raise ValueError(
                    f"scoring.poolings.{name}: without targets there are no held-back folds to choose a pooling on; "
                    "write mean or attention instead of chosen"
                )
            if "chosen" in poolings and self.targets and self.targets.subsets_per_fold < SMALLEST_NUMBER_OF_SUBSETS:
                raise ValueError(
                    f"scoring.poolings.{name}: chosen needs a targets.subsets_per_fold of at least "
                    f"{SMALLEST_NUMBER_OF_SUBSETS}; raise it, or write mean or attention"
                )
        return self

    @model_validator(mode="after")
    def _blends_can_be_weighed(self) -> Study:
        if self.scoring.blends and not self.targets:
            raise ValueError(
                "scoring.blends: without targets there are no held-back folds to weigh methods on; remove the blends"
            )
        if self.scoring.blends and not any(one.subsets for one in self.evaluations.values()):
            raise ValueError("scoring.blends: no evaluation has subsets, so there is no LDS table; remove the blends")
        if self.scoring.blends and self.targets and self.targets.subsets_per_fold < SMALLEST_NUMBER_OF_SUBSETS:
            raise ValueError(
                f"scoring.blends: weights need a targets.subsets_per_fold of at least {SMALLEST_NUMBER_OF_SUBSETS}; "
                "raise it, or remove the blends"
            )
        return self

    @model_validator(mode="after")
    def _what_is_not_trained_is_trained_already(self) -> Study:
        if self.targets:
            return self
        model = self.encoder.model
        if model.startswith("builtin:"):
            raise ValueError(
                f"encoder.model: without targets nothing trains {model!r}; add targets, or write the folder or hub id "
                "of a trained encoder"
            )
        if self.release.hub:
            raise ValueError("release.hub: without targets there is no encoder of this study's to push; leave it out")
        if self.encoder_variants:
            raise ValueError("encoder_variants: without targets none can be trained; add targets, or leave them out")
        if "untrained" in self.scoring.methods:
            others = [method for method in self.scoring.methods if method != "untrained"]
            raise ValueError(
                "scoring.methods: 'untrained' is the encoder before training, and without targets none is trained; "
                f"write [{', '.join(others or ['airrep'])}]"
            )
        return self

    @model_validator(mode="after")
    def _variants_exist(self) -> Study:
        for method in self.scoring.methods:
            variant = read_encoder_variant(method)
            if variant and variant not in self.encoder_variants:
                raise ValueError(f"scoring.methods: {method!r} needs encoder_variants.{variant}; add it there")
        for name, evaluation in self.evaluations.items():
            if evaluation.language_model and evaluation.language_model not in self.language_models:
                raise ValueError(
                    f"evaluations.{name}.language_model: there is no {evaluation.language_model!r}; add it under "
                    "language_models, or leave the key out"
                )
        return self

    @model_validator(mode="after")
    def _experiments_fit(self) -> Study:
        for name in type(self.experiments).model_fields:
            experiment = getattr(self.experiments, name)
            if experiment is None:
                continue
            values = experiment.model_dump()
            if name == "amortisation" and not self.targets:
                raise ValueError("experiments.amortisation: without targets no encoder is trained")
            named = [values.get("evaluation"), values.get("home"), *(values.get("evaluations") or [])]
            if missing := [one for one in named if one and one not in self.evaluations]:
                raise ValueError(
                    f"experiments.{name}: there is no evaluation {missing[0]!r}; write one of "
                    f"{', '.join(self.evaluations)}"
                )
            if no_lds := [one for one in named if one and not self.evaluations[one].subsets and name in FINE_TUNED]:
                raise ValueError(
                    f"experiments.{name}: evaluation {no_lds[0]!r} has no LM that is fine-tuned; give it `subsets`"
                )
            known = [*self.scoring.methods, *(self.listed_blends if name == "selection" else [])]
            if missing := [one for one in values.get("methods") or [] if one not in known]:
                raise ValueError(f"experiments.{name}.methods: {missing[0]!r} is not in scoring.methods; add it there")
        if detection := self.experiments.detection:
            methods = detection.methods or self.scoring.methods
            unstored = [name for name in methods if name in METHODS and METHODS[name].is_unstored]
            if unstored and (detection.methods or len(unstored) == len(methods)):
                raise ValueError(
                    f"experiments.detection.methods: {unstored[0]} stores no embeddings, which are read here; write "
                    f"{unstored[0]}_16384, and add it to scoring.methods"
                )
        selection, transfer = self.experiments.selection, self.experiments.transfer
        if selection and selection.examples > self.scoring.top:
            raise ValueError(
                f"experiments.selection.examples ({selection.examples}) can't exceed scoring.top ({self.scoring.top}): "
                "raise scoring.top"
            )
        if selection and self.finetuning.engine != "native":
            raise ValueError("experiments.selection has the LM generate answers, which needs finetuning.engine: native")
        if transfer and not self.evaluations[transfer.evaluation].language_model:
            raise ValueError(f"experiments.transfer: evaluation {transfer.evaluation!r} names no other language_model")
        return self

    @property
    def listed_blends(self) -> list[str]:
        """The blends that have top lists: their methods store embeddings, each corpus in one file, or score texts."""
        if self.scoring.parts > 1:
            return []
        unstored = {name for name, method in METHODS.items() if method.is_unstored}
        return [blend for blend in self.scoring.blends if not unstored & set(methods_of(blend))]

    @model_validator(mode="after")
    def _curation_fits(self) -> Study:
        for name, choice in self.curation.items():
            if name in NO_METHODS:
                raise ValueError(f"curation.{name}: tables call other rows so; choose another name")
            if choice.evaluation not in self.evaluations:
                raise ValueError(
                    f"curation.{name}: there is no evaluation {choice.evaluation!r}; write one of "
                    f"{', '.join(self.evaluations)}"
                )
            known = [*self.scoring.methods, *self.listed_blends]
            if choice.method not in [*known, *self.scoring.blends]:
                raise ValueError(
                    f"curation.{name}.method: {choice.method!r} is not in scoring.methods; write one of "
                    f"{', '.join(known)}, or add it there"
                )
            if choice.method not in known:
                raise ValueError(
                    f"curation.{name}.method: {choice.method} has no top lists; they need methods that store their "
                    "embeddings or score texts, and scoring.parts: 1"
                )
            if choice.method in self.scoring.blends and not choice.reads_top_lists:
                raise ValueError(
                    f"curation.{name}: rule {choice.rule} scores all rows, and the blend {choice.method} has top lists "
                    "alone; write rule: min_rank, or one of its methods"
                )
            method = METHODS.get(choice.method)
            if method and method.is_unstored and not choice.reads_top_lists:
                raise ValueError(
                    f"curation.{name}: rule {choice.rule} reads stored embeddings, and {choice.method} stores none; "
                    f"write rule: min_rank, or method: {choice.method}_16384"
                )
        measured = self.experiments.curated_data
        if measured and (fault := self._not_measurable(measured)):
            raise ValueError(f"experiments.curated_data.{fault}")
        return self

    def _not_measurable(self, measured: CuratedData) -> str | None:
        """Return what keeps the experiment on curated data from running; None if nothing does."""
        kept = {
            name: choice
            for name, choice in self.curation.items()
            if choice.evaluation == measured.evaluation and not choice.is_for_review
        }
        if wrong := [name for name in measured.selections or [] if name not in kept]:
            return (
                f"selections: {wrong[0]!r} is no selection of `curation` to train on by {measured.evaluation}; write "
                f"some of: {', '.join(kept) or 'none is there'}"
            )
        if not kept:
            return f"evaluation: `curation` has no selection to train on by {measured.evaluation!r}; add one"
        if not self.fine_tunes:
            return "evaluation: without targets no LM is fine-tuned; add targets, or leave the experiment out"
        if self.evaluations[measured.evaluation].tests is None:
            return f"evaluation: all tests of {measured.evaluation!r} choose rows, and none is left; set its `tests`"
        return None

    def language_model_named(self, name: str | None) -> LanguageModel:
        """Return the settings of an LM of `language_models`, or for None those of the LM that the targets come from.

        Raises
        ------
        ValueError: the changes in `language_models` don't make a valid section.
        """
        if name is None:
            return self.language_model
        return _changed(self.language_model, self.language_models[name], f"language_models.{name}")

    def encoder_of(self, variant: str | None) -> tuple[Encoder, EncoderTraining]:
        """Return how an encoder of `encoder_variants` starts and is trained; for None, the study's own.

        Raises
        ------
        ValueError: the changes in `encoder_variants` don't make valid sections.
        """
        if variant is None:
            return self.encoder, self.encoder_training
        changes, key = self.encoder_variants[variant], f"encoder_variants.{variant}"
        return (
            _changed(self.encoder, changes.encoder, f"{key}.encoder"),
            _changed(self.encoder_training, changes.encoder_training, f"{key}.encoder_training"),
        )


def _changed(section: AnySection, changes: Mapping[str, Any], key: str) -> AnySection:
    values = section.model_dump()
    for name, value in changes.items():
        inner = isinstance(value, Mapping) and isinstance(values.get(name), Mapping)
        values[name] = {**values[name], **value} if inner else value
    try:
        return type(section).model_validate(values)
    except ValidationError as error:
        wrong = explain(error.errors()[0], type(section)).strip()
        raise ValueError(f"{key}.{wrong}") from None


def load_study(values: Mapping[str, Any], origin: str = "config.yaml") -> Study:
    """Return the validated study.

    Parameters
    ----------
    values: keys and values of the config, as Snakemake or YAML reads them.
    origin: name of the config file, for the message.

    Raises
    ------
    StudyError: a key is missing, unknown or has a wrong value, or sections don't fit together; one line per key, each
        with what to write instead.
    """
    try:
        return Study.model_validate(dict(values))
    except ValidationError as error:
        lines = [explain(detail, Study) for detail in error.errors()]
        raise StudyError(f"{origin} has {len(lines)} wrong key(s):\n" + "\n".join(lines)) from None
