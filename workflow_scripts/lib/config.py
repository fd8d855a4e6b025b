"""The study's configuration: typed, unknown keys refused, every value with its meaning.

The field descriptions are the config reference: `docs/config.md` and `configs/schema.json` are made from them.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from workflow_scripts.lib.errors import StudyError
from workflow_scripts.lib.text import View
from workflow_scripts.methods import METHODS, Pooling, read_encoder_variant

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _check_name(name: str) -> str:
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a usable name: write letters, digits, '_' and '-' (at most 64), "
            "because it becomes a file name"
        )
    return name


Name = Annotated[str, AfterValidator(_check_name)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A block of the config: immutable, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnySection = TypeVar("AnySection", bound=Section)


class Corpus(Section):
    """Where rows come from, and which of them."""

    source: str = Field(
        description="`builtin:mini`, a local file or glob (JSONL, JSON, CSV, Parquet; plain, .gz, .zst), "
        "or a hub dataset id."
    )
    config_name: str | None = Field(None, description="Hub only: the dataset's config name.")
    split: str = Field("train", description="Hub only: the split.")
    revision: str | None = Field(None, description="Hub only: a commit or tag, to pin the data.")
    data_files: str | None = Field(
        None,
        description="Hub only: file or pattern inside the dataset; with `source: json`, `csv` or `parquet`, the "
        "`hf://` address of a file.",
    )
    columns: dict[Literal["prompt", "response", "messages", "label"], str] = Field(
        default_factory=dict,
        description="Column names, where the shape is not recognised by itself, e.g. `{label: task}`.",
    )
    response_turn: Literal["last", "first"] = Field(
        "last",
        description="Of a chat: which assistant turn is the response. The turns before it are the prompt, those "
        "after it are left out.",
    )
    part: tuple[Share, Share] = Field(
        (0.0, 1.0),
        description="Which share of the prompts, as [from, to). A prompt's place is a hash of its normalised "
        "text, so parts that don't overlap share no prompt, and appended rows move no other row.",
    )
    without: list[Name] = Field(
        default_factory=list,
        description="Other corpora; rows whose prompt, normalised, occurs in one of them are left out.",
    )
    limit: Positive | None = Field(None, description="Take at most so many rows, the first ones of the part.")
    max_rejected_share: Share = Field(0.05, description="Stop when more than this share of the rows is bad.")

    @model_validator(mode="after")
    def _snakemake_can_name_the_source(self) -> Corpus:
        if any(character in self.source for character in "{}\n"):
            raise ValueError(
                "source: Snakemake takes braces for wildcards, and can't do with a line break; rename the file, or "
                "link it under a plain name"
            )
        return self

    @model_validator(mode="after")
    def _part_is_an_interval(self) -> Corpus:
        if self.part[0] >= self.part[1]:
            raise ValueError(f"part: {list(self.part)} is empty; write [from, to] with from < to")
        return self


class Pretraining(Section):
    """How the builtin LM is made (`model: builtin:tiny` only)."""

    corpus: Name = Field("pretraining", description="Corpus whose text it reads; disjoint from all others.")
    vocabulary: Positive = Field(2048, description="Size of the BPE vocabulary trained on that corpus.")
    hidden: Positive = Field(96, multiple_of=32, description="Hidden size; a multiple of 32.")
    layers: Positive = Field(2, description="Number of layers.")
    architecture: Literal["qwen2", "gpt2"] = Field("qwen2", description="Which family of LMs it belongs to.")
    steps: Positive = Field(300, description="AdamW steps.")
    batch_tokens: Positive = Field(4096, description="Tokens a step.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate, cosine decay.")


class LanguageModel(Section):
    """The base LM that is fine-tuned on subsets."""

    model: str = Field(
        "builtin:tiny",
        description="`builtin:tiny`, a local folder, or a hub id of any causal LM.",
    )
    revision: str | None = Field(None, description="Hub only: a commit or tag, to pin the weights.")
    max_tokens: Positive = Field(512, description="Longest example in tokens; the end is cut, and counted.")
    chat_template: bool = Field(False, description="Render prompts with the tokenizer's chat template.")
    trust_remote_code: bool = Field(False, description="Run code that comes with the model. Off is safe.")
    pretraining: Pretraining = Field(default_factory=Pretraining, description="Of `builtin:tiny`.")


class Finetuning(Section):
    """How the LM is fine-tuned on one subset (paper, section 4.1)."""

    learning_rate: float = Field(2e-5, gt=0, description="AdamW's learning rate, constant.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    batch_examples: Positive = Field(32, description="Examples in one optimiser step.")
    epochs: Positive = Field(2, description="Passes over the subset.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the forward pass; weights and optimiser state stay float32."
    )
    step_tokens: Positive = Field(
        16384, description="Most tokens in one forward pass of training; a larger batch is accumulated."
    )
    evaluation_tokens: Positive = Field(16384, description="Most tokens in one forward pass of evaluation.")
    max_diverged_share: Share = Field(0.05, description="Stop when more runs than this share diverge.")
    engine: Literal["native", "deepspeed"] = Field(
        "native",
        description="`native`: the LM, and 16 more bytes for each of its parameters, fit one GPU. `deepspeed`: they "
        "are split over the job's GPUs; needs `pip install -r envs/requirements-deepspeed.lock`.",
    )
    zero_stage: Literal[1, 2, 3] = Field(
        3, description="`deepspeed` only: split the optimiser state (1), gradients too (2), weights too (3)."
    )
    offload: bool = Field(
        False, description="`deepspeed` only: keep the optimiser state, in stage 3 weights too, in the CPU's memory."
    )
    processes: Positive = Field(
        1,
        description="`deepspeed` only: processes that share a run, one for each GPU of the job. Results change by "
        "rounding only, so another number makes nothing anew. A Slurm job asks for as many GPUs; with `gres`, write "
        "the number in `slurm/config.yaml` too.",
    )

    @model_validator(mode="after")
    def _only_deepspeed_splits(self) -> Finetuning:
        for name in ("zero_stage", "offload", "processes"):
            if self.engine == "native" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has a meaning for DeepSpeed alone: add engine: deepspeed, or leave it out")
        return self


class Targets(Section):
    """Folds, subsets and validation sets that the encoder is trained on (paper, section 3.1)."""

    corpus: Name = Field("train", description="Corpus that folds are drawn from.")
    folds: Positive = Field(description="Cross-validation instances.")
    pool_examples: Positive = Field(description="N_t: examples in a fold's training pool.")
    validation_examples: Positive = Field(description="N_v: examples in a fold's validation set.")
    evaluated_examples: Positive = Field(description="Of the validation set, how many each subset is judged on.")
    subsets_per_fold: Positive = Field(description="M: subsets of a fold.")
    subset_examples: Positive = Field(description="n: examples in a subset.")
    seeds: Positive = Field(1, description="Fine-tuning runs per subset; labels use their mean loss.")
    folds_per_job: Positive = Field(1, description="A job covers a block of folds x subsets: its folds.")
    subsets_per_job: Positive = Field(100, description="A job covers a block of folds x subsets: its subsets.")

    @model_validator(mode="after")
    def _sizes_agree(self) -> Targets:
        if self.evaluated_examples > self.validation_examples:
            raise ValueError("evaluated_examples can't exceed validation_examples")
        if self.subset_examples > self.pool_examples:
            raise ValueError("subset_examples can't exceed pool_examples")
        return self


class Encoder(Section):
    """The attribution encoder before training (paper, section 3.2)."""

    model: str = Field(
        "builtin:small", description="`builtin:small`, a local folder, or a hub id of a BERT-type encoder."
    )
    revision: str | None = Field(None, description="Hub only: a commit or tag, to pin the weights.")
    view: View = Field(
        "joint",
        description="`joint`: prompt and response as one text, as in the paper. `split`: each is read and pooled "
        "by itself, and an embedding is both halves side by side.",
    )
    normalized: bool = Field(
        False,
        description="Scale the mean over a text's tokens to length 1 before the projection, so that long texts don't "
        "fade. The paper doesn't.",
    )
    projection: Literal["random", "principal"] = Field(
        "random",
        description="Where the projection starts: `random` as in the paper, or `principal`, the principal axes of the "
        "encoder's corpus, centred, large ones scaled down. An encoder that brings a projection keeps it.",
    )
    dimension: Positive = Field(384, description="Size of an embedding, after the projection.")
    max_tokens: Positive = Field(512, description="Longest text in tokens; the end is cut.")
    prompt_words: Positive = Field(256, description="Words of the prompt that are read.")
    hidden: Positive = Field(128, multiple_of=32, description="`builtin:small` only: hidden size; a multiple of 32.")
    layers: int = Field(2, ge=0, description="`builtin:small` only: number of BERT layers.")
    vocabulary: Positive = Field(4096, description="`builtin:small` only: WordPiece vocabulary.")
    trust_remote_code: bool = Field(False, description="Run code that comes with the model. Off is safe.")


class EncoderTraining(Section):
    """How the encoder learns to rank subsets (paper, sections 3.3 and 4.1)."""

    pooling: Literal["attention", "mean"] = Field("attention", description="How scores of a group are pooled.")
    steps: Positive = Field(2000, description="Optimiser steps.")
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's learning rate, constant after the warm-up.")
    warmup_steps: int = Field(10, ge=0, description="Steps of linear warm-up.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    subsets_per_step: Positive = Field(32, description="Subsets of the fold in one step.")
    examples_per_step: Positive = Field(1000, description="Validation examples of the fold in one step.")
    smallest_difference: float = Field(0.1, ge=0, description="T_min: pairs of closer labels are dropped.")
    largest_weight: float = Field(5.0, gt=0, description="T_max: cap of a pair's weight.")
    label_spread: Literal["fold", "pooled"] = Field(
        "fold",
        description="An example's labels have mean 0 and spread 1 over the subsets of a fold, or over those of all "
        "folds in which it is a validation example (the released code).",
    )
    label_clip: float | None = Field(None, gt=0, description="Cut labels off at plus and minus this.")
    truncation: Literal["first", "last"] = Field(
        "first",
        description="Which `encoder.max_tokens` tokens of a longer text are read in training; embedding always reads "
        "the first.",
    )
    learned_scale: bool = Field(
        False,
        description="Learn the scale of the scores, which is the pooling's temperature; it is folded into the "
        "projection when the encoder is saved.",
    )
    validation_folds: Positive = Field(2, description="Folds held back to choose the best checkpoint.")
    validate_every: Positive = Field(100, description="Steps between two validations and checkpoints.")
    patience: Positive | None = Field(None, description="Stop after so many validations without a better one.")
    chunk_tokens: Positive = Field(16384, description="Most tokens in one forward pass.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Of the forward pass.")
    processes: Positive = Field(
        1,
        description="Processes that share each step, also when embedding: one for each GPU of the job. Results change "
        "by rounding only, so another number makes nothing anew. A Slurm job asks for as many GPUs; with `gres`, write "
        "the number in `slurm/config.yaml` too.",
    )


class EncoderVariant(Section):
    """A further encoder, trained on the same targets: the keys in which it differs."""

    encoder: dict[str, Any] = Field(default_factory=dict, description="Keys of `encoder`.")
    encoder_training: dict[str, Any] = Field(default_factory=dict, description="Keys of `encoder_training`.")


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
        ge=0, description="Random subsets, each fine-tuned; 0 for scores alone, with neither LM nor LDS."
    )
    subset_examples: Positive | None = Field(None, description="Examples in a subset; needed where there are subsets.")
    seeds: int = Field(2, ge=2, description="Fine-tuning runs per subset; two or more give the noise ceiling.")
    subsets_per_job: Positive = Field(100, description="Subsets that one job fine-tunes.")

    @model_validator(mode="after")
    def _subsets_have_a_size(self) -> Evaluation:
        if self.subsets and self.subset_examples is None:
            raise ValueError("subset_examples is missing; add it, or write `subsets: 0` for scores alone")
        if 0 < self.subsets < 3:
            raise ValueError("subsets: of fewer than 3, any ranking is perfect or wrong; write 3 or more, or 0")
        return self


class Warmup(Section):
    """How the LM is warmed up that gradient methods read, and what they are fitted on (paper, section 4.1)."""

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
        description="How a method's scores of examples become scores of groups, each a row, where not as the method "
        "has it, e.g. `{tfidf: [mean, attention]}`.",
    )
    top: Positive = Field(50, description="Most helpful and most harmful examples kept per test.")
    tile_examples: Positive = Field(8192, description="Training examples scored at once.")
    parts: Positive = Field(
        1,
        description="Jobs that embed an evaluation's training corpus, and as many that score it for each method that "
        "embeds. Results change by rounding only, but another number embeds anew.",
    )
    embedding_precision: Literal["float16", "float32"] = Field("float16", description="Of embeddings on disk.")

    @model_validator(mode="after")
    def _methods_exist(self) -> Scoring:
        if taken := sorted(METHODS.keys() & self.sentence_encoders.keys()):
            raise ValueError(f"sentence_encoders: {taken[0]!r} is another method's name; take another one")
        known = [*METHODS, *self.sentence_encoders]
        for key, names in {"methods": self.methods, "poolings": self.poolings}.items():
            for name in names:
                method = name.partition("@")[0]
                if method != name and method in known and not (method in METHODS and METHODS[method].encoder):
                    raise ValueError(f"{key}: {method} reads no encoder of the study, so it has no variants")
                if method not in known:
                    raise ValueError(f"{key}: there is no method {name!r}; write one of {', '.join(known)}")
        for name, poolings in self.poolings.items():
            if {"attention", "signed"} <= set(poolings):
                raise ValueError(f"poolings.{name}: attention and signed can't be had in one pass; write one of them")
        if repeated := {name for name in self.methods if self.methods.count(name) > 1}:
            raise ValueError(f"methods: {min(repeated)!r} stands there twice; write it once")
        return self


class Judging(Section):
    """How the LDS is reported."""

    bootstrap: Positive = Field(1000, description="Bootstrap draws over tests and subsets.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Coverage of the intervals.")
    near_duplicate: Share = Field(
        0.9, description="Jaccard similarity of word 3-grams from which a test row is reported as seen."
    )


class Release(Section):
    """How the trained encoder is handed on, with its model card."""

    layout: Literal["sentence_transformers", "published"] = Field(
        "sentence_transformers",
        description="`published`: the layout of the paper's authors, for their code; rounded to bfloat16.",
    )
    hub: str | None = Field(
        None,
        description="Hub id to push it to, e.g. `me/my-encoder`; a new repository is a private one. Off if `null`.",
    )


class LeaveOut(Section):
    """Leave one out: fine-tune without some examples, and correlate what that does with their scores."""

    evaluation: Name = Field(description="The evaluation whose pool, tests and LM are used.")
    base_examples: Positive = Field(description="Examples of the base set, drawn from the pool.")
    sizes: list[Positive] = Field([1], description="How many examples are left out together.", min_length=1)
    groups: Annotated[int, Field(ge=3)] = Field(description="Groups left out, of each size.")
    seeds: int = Field(2, ge=2, description="Fine-tuning runs per group; two or more give the noise ceiling.")
    jobs: Positive = Field(1, description="Jobs that the runs are dealt to.")

    @model_validator(mode="after")
    def _something_stays(self) -> LeaveOut:
        if max(self.sizes) >= self.base_examples:
            raise ValueError("sizes: must be less than base_examples, or nothing would stay to fine-tune on")
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

    @model_validator(mode="after")
    def _something_stays(self) -> Removal:
        if max(self.sizes) >= self.base_examples:
            raise ValueError("sizes: must be less than base_examples, or nothing would stay to fine-tune on")
        return self


class Selection(Section):
    """Data selection: per task (label), fine-tune on the examples that a method ranks first, and let the LM answer."""

    evaluation: Name = Field(description="The evaluation whose pool, tests and LM are used; its tests need labels.")
    examples: Positive = Field(description="Examples selected for a task (paper: 1,000); at most `scoring.top`.")
    tasks: Positive | None = Field(None, description="So many tasks, those with most tests first; `null` for all.")
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


# Experiments that read what was fine-tuned for an evaluation, or fine-tune on its pool.
FINE_TUNED = ("leave_out", "removal", "selection", "transfer")


class Experiments(Section):
    """The paper's experiments beside the LDS; what is left out doesn't run."""

    leave_out: LeaveOut | None = None
    removal: Removal | None = None
    selection: Selection | None = None
    classification: Classification | None = None
    amortisation: Amortisation | None = None
    transfer: Transfer | None = None


class Report(Section):
    """What the report shows."""

    tests: Positive = Field(200, description="Test examples in the explorer.")
    examples: Positive = Field(10, description="Most helpful and most harmful examples shown for each.")
    characters: Positive = Field(600, description="Longest text shown; longer ones are cut with a mark.")


class Study(Section):
    """One study: everything that decides a number in `results/<run>`."""

    run: Name = Field(description="Name of the results folder.")
    seed: int = Field(0, ge=0, description="Every random choice derives from it.")
    corpora: dict[Name, Corpus] = Field(description="Corpora by name.", min_length=1)
    language_model: LanguageModel = Field(default_factory=LanguageModel)
    language_models: dict[Name, dict[str, Any]] = Field(
        default_factory=dict,
        description="Further LMs by name, for evaluations to judge a transfer: the keys of `language_model` in which "
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

    @property
    def fine_tunes(self) -> bool:
        """Whether any LM is fine-tuned: for the encoder's targets, or to judge methods."""
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
                raise ValueError("evaluations.train: 'train' names the encoder's targets; take another name")
            used[f"evaluations.{name}.train"] = evaluation.train
            used[f"evaluations.{name}.test"] = evaluation.test
        for name, corpus in self.corpora.items():
            used |= {f"corpora.{name}.without[{number}]": other for number, other in enumerate(corpus.without)}
        for key, corpus in used.items():
            if corpus not in self.corpora:
                raise ValueError(
                    f"{key}: there is no corpus {corpus!r}; write one of {', '.join(self.corpora)}, "
                    "or add it under corpora"
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
        for variant in [None, *self.encoder_variants] if self.targets else []:
            if self.encoder_of(variant)[1].validation_folds >= self.targets.folds:
                key = f"encoder_variants.{variant}.encoder_training" if variant else "encoder_training"
                raise ValueError(f"{key}.validation_folds must be less than targets.folds")
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
        if os.path.normpath(model) == os.path.join("results", self.run, "encoder"):
            raise ValueError(f"encoder.model: {model!r} is where this study writes; take another name for run")
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
                raise ValueError("experiments.amortisation: without targets no encoder's training is paid for")
            named = [values.get("evaluation"), values.get("home"), *(values.get("evaluations") or [])]
            if missing := [one for one in named if one and one not in self.evaluations]:
                raise ValueError(
                    f"experiments.{name}: there is no evaluation {missing[0]!r}; write one of "
                    f"{', '.join(self.evaluations)}"
                )
            if unjudged := [one for one in named if one and not self.evaluations[one].subsets and name in FINE_TUNED]:
                raise ValueError(
                    f"experiments.{name}: evaluation {unjudged[0]!r} has no LM that is fine-tuned; give it `subsets`"
                )
            if missing := [one for one in values.get("methods") or [] if one not in self.scoring.methods]:
                raise ValueError(f"experiments.{name}.methods: {missing[0]!r} doesn't score; add it to scoring.methods")
        selection, transfer = self.experiments.selection, self.experiments.transfer
        if selection and selection.examples > self.scoring.top:
            raise ValueError(
                f"experiments.selection.examples ({selection.examples}) can't exceed scoring.top ({self.scoring.top}): "
                "raise scoring.top"
            )
        if selection and self.finetuning.engine != "native":
            raise ValueError("experiments.selection lets the LM answer, which needs finetuning.engine: native")
        if transfer and not self.evaluations[transfer.evaluation].language_model:
            raise ValueError(f"experiments.transfer: evaluation {transfer.evaluation!r} names no other language_model")
        return self

    def language_model_named(self, name: str | None) -> LanguageModel:
        """Return the LM of `language_models`, or for None the one that the targets are made with."""
        if name is None:
            return self.language_model
        return _changed(self.language_model, self.language_models[name], f"language_models.{name}")

    def encoder_of(self, variant: str | None) -> tuple[Encoder, EncoderTraining]:
        """Return how an encoder of `encoder_variants` starts and is trained; for None, the study's own."""
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
        wrong = _explain(error.errors()[0], type(section)).strip()
        raise ValueError(f"{key}.{wrong}") from None


def load_study(values: Mapping[str, Any], origin: str = "config.yaml") -> Study:
    """Return the typed study of `values`, as Snakemake read them from `origin`.

    Raises
    ------
    StudyError: one line per wrong key, each with what to write instead.
    """
    try:
        return Study.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise StudyError(f"{origin} has {len(lines)} wrong key(s):\n" + "\n".join(lines)) from None


def _explain(detail: Mapping[str, Any], section: type[Section] = Study) -> str:
    key = ".".join(str(part) for part in detail["loc"] if part != "[key]") or "study"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"][:-1], section)
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"  {key}: no such key; {advice}"
    if detail["type"] == "missing":
        return f"  {key}: is missing; add it"
    message = detail["msg"].removeprefix("Value error, ")
    given = "" if isinstance(detail["input"], dict | BaseModel) else f" (you wrote {detail['input']!r})"
    return f"  {key}: {message}{given}"


def _known_keys(location: tuple[int | str, ...], section: type[Section]) -> list[str]:
    annotation: Any = section
    for part in location:
        model = _model_in(annotation)
        if model is not None and part in model.model_fields:
            annotation = model.model_fields[part].annotation
        # else: `part` is a key of a dict of sections, whose annotation already names the section
    model = _model_in(annotation)
    return sorted(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, (_model_in(argument) for argument in get_args(annotation))), None)
