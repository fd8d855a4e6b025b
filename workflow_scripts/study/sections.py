"""The sections of a study's configuration: every key with its type, its default and its meaning.

The field descriptions are the config reference: `docs/config.md` and `configs/schema.json` are made from them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from workflow_scripts.study.choices import View

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
    """A section of the config: immutable, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    # Keys that change no result beyond rounding, or none of the stage that has this section.
    NOT_IN_SPEC: ClassVar[frozenset[str]] = frozenset()
    # Keys whose default does what was done before there was such a key: only another value makes another spec.
    NOT_IN_SPEC_AT_DEFAULT: ClassVar[frozenset[str]] = frozenset()

    def spec(self) -> dict[str, Any]:
        """Return the values that decide a stage's result; the section that they make equals this one in all of them."""
        fields = type(self).model_fields
        at_default = {name for name in self.NOT_IN_SPEC_AT_DEFAULT if getattr(self, name) == fields[name].default}
        return self.model_dump(exclude={*self.NOT_IN_SPEC, *at_default})


ColumnMeaning = Literal["prompt", "response", "messages", "label"]


def _check_columns(names: object) -> object:
    listed = names if isinstance(names, list) else [names]
    if not listed or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{names!r} is no column: write its name, or for a prompt of several columns a list of names")
    return names


ColumnNames = Annotated[str | list[str], BeforeValidator(_check_columns)]
COLUMN_MEANINGS: tuple[str, ...] = get_args(ColumnMeaning)


class Corpus(Section):
    """Where rows come from, and which of them."""

    source: str = Field(
        description="`builtin:mini`, a local file or glob (JSONL, JSON, CSV, Parquet; plain, .gz, .zst), "
        "or a hub dataset id."
    )
    config_name: str | None = Field(None, description="Hub only: the dataset's config name.")
    split: str = Field("train", description="Hub only: the split.")
    revision: str | None = Field(
        None,
        description="Hub only: a commit, tag or branch; without one, `main`. A study keeps the commit that it read "
        "first.",
    )
    data_files: str | None = Field(
        None,
        description="Hub only: file or pattern inside the dataset, in place of `config_name` and `split`; with "
        "`source: json`, `csv` or `parquet`, the `hf://` address of a file.",
    )
    columns: dict[ColumnMeaning, ColumnNames] = Field(
        default_factory=dict,
        description="Column names, where the shape is not recognised by itself, e.g. `{label: task}`. The prompt may "
        "be several columns, joined by blank lines in the order given: `{prompt: [context, question]}`. A prompt that "
        "is named is these columns alone. The log names the columns that aren't read.",
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
    limit: Positive | None = Field(None, description="Most rows, the first ones of the part.")
    max_rejected_share: Share = Field(0.05, description="Stop when more than this share of the rows is bad.")

    @model_validator(mode="after")
    def _snakemake_can_name_the_source(self) -> Corpus:
        if any(character in self.source for character in "{}\n"):
            raise ValueError(
                "source: Snakemake takes braces for wildcards, and doesn't accept a line break; rename the file, or "
                "link it under a plain name"
            )
        return self

    @model_validator(mode="after")
    def _only_the_prompt_is_several_columns(self) -> Corpus:
        for meaning, names in self.columns.items():
            if isinstance(names, list) and meaning != "prompt":
                raise ValueError(f"columns.{meaning}: {names} is a list; write the name of one column")
        return self

    @model_validator(mode="after")
    def _part_is_an_interval(self) -> Corpus:
        if self.part[0] >= self.part[1]:
            raise ValueError(f"part: {list(self.part)} is empty; write [from, to] with from < to")
        return self


class Pretraining(Section):
    """How the builtin LM is pretrained (`model: builtin:tiny` only)."""

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
        description="`builtin:tiny`, a local folder, or a hub id of any causal LM. A model of the hub is fetched once, "
        "to `results/<run>/models/`; all jobs read that folder and ask nothing of the network, and `provenance.json` "
        "names its commit.",
    )
    revision: str | None = Field(
        None,
        description="Hub only: a commit, tag or branch. A study keeps what it fetched first; a commit gives another "
        "study the same weights.",
    )
    max_tokens: Positive = Field(512, description="Longest example in tokens; the end is cut, and counted.")
    chat_template: bool = Field(False, description="Render prompts with the tokenizer's chat template.")
    trust_remote_code: bool = Field(False, description="Run code that comes with the model. Off is safe.")
    pretraining: Pretraining = Field(default_factory=Pretraining, description="Of `builtin:tiny`.")


class Finetuning(Section):
    """How the LM is fine-tuned on one subset (paper, section 4.1)."""

    NOT_IN_SPEC = frozenset({"max_diverged_share", "processes"})
    NOT_IN_SPEC_AT_DEFAULT = frozenset({"compile", "engine", "zero_stage", "offload"})

    learning_rate: float = Field(2e-5, gt=0, description="AdamW's learning rate, constant.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    batch_examples: Positive = Field(32, description="Examples in one optimiser step.")
    epochs: Positive = Field(2, description="Passes over the subset.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of forward and backward passes; the weights that the optimiser changes, and its state, stay "
        "float32.",
    )
    step_tokens: Positive = Field(
        16384, description="Most tokens in one forward pass of training; a larger batch is accumulated."
    )
    evaluation_tokens: Positive = Field(16384, description="Most tokens in one forward pass of evaluation.")
    compile: bool = Field(
        False,
        description="`native` only: `torch.compile` the LM's layers and the loss. On a GPU it pays off in jobs of more "
        "than about twenty subsets of the paper's size (docs/results/gpu.md). Results change by rounding only.",
    )
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
        "rounding only, so another number recomputes nothing. A Slurm job asks for as many GPUs; with `gres`, write "
        "the number in `slurm/config.yaml` too.",
    )

    @model_validator(mode="after")
    def _only_deepspeed_splits(self) -> Finetuning:
        for name in ("zero_stage", "offload", "processes"):
            if self.engine == "native" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} applies to DeepSpeed only: add engine: deepspeed, or leave it out")
        if self.compile and self.engine != "native":
            raise ValueError("compile applies to the native engine only: leave it out, or write engine: native")
        return self


class Surrogate(Section):
    """More folds, whose labels a method predicts instead of measuring them by fine-tuning."""

    method: Name = Field(
        description="One of `scoring.methods` that reads no trained encoder. A label is its group score of a subset by "
        "the first of its `scoring.poolings`, standardised."
    )
    folds: Positive = Field(description="Folds, of the same sizes as the measured ones.")
    subsets_per_fold: int = Field(ge=2, description="Subsets of a fold; they cost next to nothing.")


class Targets(Section):
    """Folds, subsets and validation sets that the encoder is trained on (paper, section 3.1)."""

    NOT_IN_SPEC_AT_DEFAULT = frozenset({"surrogate"})

    corpus: Name = Field("train", description="Corpus that folds are drawn from.")
    folds: Positive = Field(description="Cross-validation instances.")
    pool_examples: Positive = Field(description="N_t: examples in a fold's training pool.")
    validation_examples: Positive = Field(description="N_v: examples in a fold's validation set.")
    evaluated_examples: Positive = Field(description="Of the validation set, how many each subset is evaluated on.")
    subsets_per_fold: int = Field(ge=2, description="M: subsets of a fold; of one alone there is nothing to rank.")
    subset_examples: Positive = Field(description="n: examples in a subset.")
    seeds: Positive = Field(1, description="Fine-tuning runs per subset; labels use their mean loss.")
    folds_per_job: Positive = Field(1, description="A job covers a block of folds x subsets: its folds.")
    subsets_per_job: Positive = Field(100, description="A job covers a block of folds x subsets: its subsets.")
    surrogate: Surrogate | None = Field(
        None,
        description="More folds, whose labels a method predicts; `encoder_training.surrogate_share` says how much the "
        "encoder learns from them. The folds that choose its best checkpoint are always measured.",
    )

    @model_validator(mode="after")
    def _sizes_agree(self) -> Targets:
        if self.evaluated_examples > self.validation_examples:
            raise ValueError("evaluated_examples can't exceed validation_examples")
        if self.subset_examples >= self.pool_examples:
            raise ValueError("subset_examples must be less than pool_examples, or all subsets are the same")
        return self


class Encoder(Section):
    """The attribution encoder before training (paper, section 3.2)."""

    model: str = Field(
        "builtin:small", description="`builtin:small`, a local folder, or a hub id of a BERT-type encoder."
    )
    revision: str | None = Field(
        None,
        description="Hub only: a commit, tag or branch. A study keeps what it fetched first; a commit gives another "
        "study the same weights.",
    )
    view: View = Field(
        "joint",
        description="`joint`: prompt and response as one text, as in the paper. `split`: each is read and pooled "
        "separately, and an embedding is both halves concatenated.",
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
    prompt_scale: float | None = Field(
        None,
        gt=0,
        description="`split` with `principal` only: how long the prompts' half of an embedding is at the start, in "
        "lengths of the responses' half (root mean square); `null`: unchanged.",
    )
    dimension: Positive = Field(384, description="Size of an embedding, after the projection.")
    max_tokens: Positive = Field(512, description="Longest text in tokens; the end is cut.")
    prompt_words: Positive = Field(256, description="Words of the prompt that are read.")
    hidden: Positive = Field(128, multiple_of=32, description="`builtin:small` only: hidden size; a multiple of 32.")
    layers: int = Field(2, ge=0, description="`builtin:small` only: number of BERT layers.")
    tokenizer: Literal["wordpiece", "language_model"] = Field(
        "wordpiece",
        description="`builtin:small` only: `wordpiece`, lower-case pieces of the words of the encoder's corpus; or "
        "`language_model`, the LM's own tokens, which tell apart what the LM does (capitals, spaces, digits).",
    )
    vocabulary: Positive = Field(4096, description="`builtin:small` with `wordpiece` only: how many pieces.")
    word_embeddings: Literal["random", "principal"] = Field(
        "random",
        description="`builtin:small` only: where word embeddings start: `random`; or `principal`, the principal axes "
        "of the words in texts of the encoder's corpus (latent semantic analysis), positions at zero.",
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with the model. Off is safe.")


class EncoderTraining(Section):
    """How the encoder learns to rank subsets (paper, sections 3.3 and 4.1)."""

    NOT_IN_SPEC = frozenset({"processes"})
    NOT_IN_SPEC_AT_DEFAULT = frozenset({"compile", "surrogate_share"})

    pooling: Literal["attention", "mean"] = Field("attention", description="How scores of a group are pooled.")
    steps: Positive = Field(2000, description="Optimiser steps.")
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's learning rate, constant after the warm-up.")
    warmup_steps: int = Field(10, ge=0, description="Steps of linear warm-up.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    subsets_per_step: Positive = Field(32, description="Subsets of the fold in one step.")
    examples_per_step: Positive = Field(1000, description="Validation examples of the fold in one step.")
    min_label_gap: float = Field(0.1, ge=0, description="T_min: pairs of closer labels are dropped.")
    max_pair_weight: float = Field(5.0, gt=0, description="T_max: cap of a pair's weight.")
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
    surrogate_share: Share = Field(
        0.0,
        description="Share of the steps that learn from the labels of `targets.surrogate`, instead of those that were "
        "measured by fine-tuning.",
    )
    validation_folds: Positive = Field(2, description="Folds held out to choose the best checkpoint.")
    validate_every: Positive = Field(100, description="Steps between two validations and checkpoints.")
    patience: Positive | None = Field(None, description="Stop after so many validations without a better one.")
    chunk_tokens: Positive | None = Field(
        None, description="Most tokens in one forward pass; `null`: 65,536 on a GPU, 16,384 elsewhere."
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Of the forward pass.")
    compile: bool = Field(
        False,
        description="`torch.compile` the encoder's layers for training, which takes a minute or more at the start. "
        "Results change by rounding only.",
    )
    processes: Positive = Field(
        1,
        description="Processes that share each step, also when embedding: one for each GPU of the job. Results change "
        "by rounding only, so another number recomputes nothing. A Slurm job asks for as many GPUs; with `gres`, write "
        "the number in `slurm/config.yaml` too.",
    )


class EncoderVariant(Section):
    """A further encoder, trained on the same targets: the keys in which it differs."""

    encoder: dict[str, Any] = Field(default_factory=dict, description="Keys of `encoder`.")
    encoder_training: dict[str, Any] = Field(
        default_factory=dict, description="Keys of `encoder_training`, but for `processes`, which is one for all."
    )

    @model_validator(mode="after")
    def _processes_are_the_studys(self) -> EncoderVariant:
        if "processes" in self.encoder_training:
            raise ValueError("encoder_training.processes is one for all encoders; write it under encoder_training")
        return self
