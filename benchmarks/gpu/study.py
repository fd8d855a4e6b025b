"""The stages of the study that `benchmarks/gpu_study.py` runs: the workflow's own, called as plain functions."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from workflow_scripts.core.progress import say
from workflow_scripts.corpora.prepare_corpus import prepare_corpus
from workflow_scripts.embeddings.embed_corpus import embed_corpus
from workflow_scripts.encoder.init_encoder import init_encoder
from workflow_scripts.encoder.train_encoder import train_encoder
from workflow_scripts.language_model.tokenize_corpus import tokenize_corpus
from workflow_scripts.methods.embed_by_method import embed_by_method
from workflow_scripts.methods.fit_method import fit_method
from workflow_scripts.methods.warmup_lm import warmup_lm
from workflow_scripts.scoring.score_pairs import score_pairs
from workflow_scripts.study.methods import METHODS
from workflow_scripts.study.sections import Encoder, EncoderTraining, Finetuning
from workflow_scripts.targets.collect_targets import collect_targets
from workflow_scripts.targets.finetune_shard import finetune_shard
from workflow_scripts.targets.sample_subsets import sample_subsets

SEED = 1
EVALUATION = "heldout"
# Parts of one file, by the hash of the prompt: none of a corpus's prompts stands in another.
PARTS = {"train": (0.0, 0.65), "pool": (0.65, 0.94), "tests": (0.94, 1.0)}
VIEWS = ("joint", "split")


@dataclass(frozen=True)
class Sizes:
    """How large the study is; the values given here are the whole one."""

    folds: int = 40
    subsets_per_fold: int = 24
    subset_examples: int = 100
    pool_examples: int = 1000
    measured_examples: int = 400
    evaluation_subsets: int = 100
    tests: int = 400
    max_tokens: int = 256
    steps: int = 400
    validation_folds: int = 4
    validate_every: int = 25
    warmup_examples: int = 300
    moment_examples: int = 1000
    bootstrap: int = 1000


TINY = Sizes(
    folds=3,
    subsets_per_fold=4,
    subset_examples=6,
    pool_examples=20,
    measured_examples=8,
    evaluation_subsets=4,
    tests=8,
    max_tokens=64,
    steps=4,
    validation_folds=1,
    validate_every=2,
    warmup_examples=8,
    moment_examples=8,
    bootstrap=50,
)


@dataclass(frozen=True)
class Study:
    """Where everything lies, and how the stages are called."""

    language_model: Path
    encoder: Path
    corpus: Path
    results: Path
    sizes: Sizes
    learning_rate: float
    precision: str

    @property
    def lm(self) -> dict[str, Any]:
        return {"language_model": self.language_model, **self.lm_source}

    @property
    def lm_source(self) -> dict[str, Any]:
        return {"model": self.language_model.name, "revision": None, "trust_remote_code": False}

    @property
    def finetuning(self) -> Finetuning:
        return Finetuning(learning_rate=self.learning_rate, precision=self.precision, evaluation_tokens=32_768)

    @property
    def warmup(self) -> dict[str, Any]:
        finetuning = self.finetuning.model_copy(update={"epochs": 1})
        return {**self.lm_source, "examples": self.sizes.warmup_examples, "finetuning": finetuning, "seed": SEED}

    def at(self, name: str) -> Path:
        """Return a path in the results folder."""
        return self.results / name

    def table(self, folder: str, name: str) -> Path:
        """Return the path of a Parquet file in the results folder."""
        return self.results / folder / f"{name}.parquet"

    def sampling(self, pool: str) -> dict[str, Any]:
        """Return the values of `targets.sampling.Sampling` for `train` or the evaluation."""
        sizes, training = self.sizes, pool == "train"
        return {
            "seed": SEED,
            "pool": pool,
            "pool_examples": sizes.pool_examples if training else None,
            "validation_examples": sizes.measured_examples if training else sizes.tests,
            "evaluated_examples": sizes.measured_examples if training else sizes.tests,
            "subset_examples": sizes.subset_examples,
        }

    def runs(self, pool: str) -> tuple[int, int, int]:
        """Return (folds, subsets of a fold, seeds)."""
        sizes = self.sizes
        return (sizes.folds, sizes.subsets_per_fold, 1) if pool == "train" else (1, sizes.evaluation_subsets, 2)


Stage = tuple[str, Path, Callable[[], object]]  # name, what it makes, how it is called


def prepared_stages(study: Study) -> list[Stage]:
    """Return the stages that no GPU makes faster."""
    found = [
        *(_corpus_stage(study, corpus) for corpus in PARTS),
        *(_token_stage(study, corpus) for corpus in PARTS),
        *(_subset_stage(study, pool) for pool in ("train", EVALUATION)),
    ]
    for method in ("tfidf", "bm25"):
        if method == "bm25" and importlib.util.find_spec("bm25s") is None:
            say("bm25s is not installed, so BM25 is left out; where it is, the same command adds it")
            continue
        found.append(_score_stage(study, method, method, METHODS[method].poolings, None))
    return found


def stages(study: Study) -> list[Stage]:
    """Return all stages, each after those that it reads: after the prepared ones what is soonest had."""
    found = [*prepared_stages(study), *_target_stages(study, EVALUATION), *_gradient_stages(study)]
    for view in VIEWS:
        found += [_start_stage(study, view), *_encoder_score_stages(study, f"untrained_{view}")]
    found += _target_stages(study, "train")
    for view in VIEWS:
        found += [_training_stage(study, view), *_encoder_score_stages(study, f"airrep_{view}")]
    return found


def _corpus_stage(study: Study, corpus: str) -> Stage:
    path = study.table("corpora", corpus)
    call = partial(
        prepare_corpus,
        path,
        path.with_suffix(".rejected.parquet"),
        source=str(study.corpus),
        config_name=None,
        split="train",
        revision=None,
        data_files=None,
        columns={},
        response_turn="last",
        part=PARTS[corpus],
        limit=None,
        max_rejected_share=0.05,
    )
    return f"corpus {corpus}", path, call


def _token_stage(study: Study, corpus: str) -> Stage:
    path = study.table("tokens", corpus)
    call = partial(
        tokenize_corpus,
        study.table("corpora", corpus),
        path,
        path.with_suffix(".rejected.parquet"),
        **study.lm,
        max_tokens=study.sizes.max_tokens,
        chat_template=False,
    )
    return f"tokens {corpus}", path, call


def _tokens_of(study: Study, pool: str) -> tuple[Path, Path]:
    """Return the tokens that are trained on, and those whose losses are measured."""
    train, test = ("train", "train") if pool == "train" else ("pool", "tests")
    return study.table("tokens", train), study.table("tokens", test)


def _subset_stage(study: Study, pool: str) -> Stage:
    folds, subsets, _ = study.runs(pool)
    path = study.table("subsets", f"{pool}.validation")
    call = partial(
        sample_subsets,
        *_tokens_of(study, pool),
        study.table("subsets", pool),
        path,
        sampling=study.sampling(pool),
        folds=folds,
        subsets_per_fold=subsets,
    )
    return f"subsets {pool}", path, call


def _target_stages(study: Study, pool: str) -> list[Stage]:
    folds, subsets, seeds = study.runs(pool)
    losses, targets = study.table("losses", pool), study.table("targets", pool)
    finetune = partial(
        finetune_shard,
        *_tokens_of(study, pool),
        losses,
        **study.lm,
        sampling=study.sampling(pool),
        folds=[0, folds],
        indexes=[0, subsets],
        seeds=seeds,
        finetuning=study.finetuning,
    )
    collect = partial(
        collect_targets,
        [losses],
        targets,
        folds=folds,
        subsets_per_fold=subsets,
        seeds=seeds,
        max_diverged_share=0.05,
    )
    return [(f"losses {pool}", losses, finetune), (f"targets {pool}", targets, collect)]


def _gradient_stages(study: Study) -> list[Stage]:
    """LoGra of rank 16 on an LM that was warmed up on the pool."""
    own, warm, fitted = METHODS["logra_16"].own, study.at("warm"), study.at("fitted/logra_16.safetensors")
    lm = {"language_model": warm}
    tokens = study.table("tokens", "pool")
    found: list[Stage] = [
        ("warm-up", warm, partial(warmup_lm, tokens, warm, language_model=study.language_model, **study.warmup)),
        (
            "fit logra_16",
            fitted,
            partial(
                fit_method,
                tokens,
                fitted,
                **lm,
                **study.warmup,
                module=own.module,
                settings=dict(own.settings),
                measured_examples=study.sizes.moment_examples,
            ),
        ),
    ]
    for corpus in ("pool", "tests"):
        path = study.table("embeddings/logra_16", corpus)
        call = partial(
            embed_by_method,
            study.table("tokens", corpus),
            path,
            fitted=fitted,
            **lm,
            lm_source=study.lm_source,
            module=own.module,
            settings=dict(own.settings),
            for_tests=False,
            prompt_words=256,
            batch_tokens=study.finetuning.step_tokens,
            precision=study.precision,
            embedding_precision="float16",
        )
        found.append((f"embeddings logra_16 {corpus}", path, call))
    return [*found, _score_stage(study, "logra_16", "logra_16", METHODS["logra_16"].poolings, "logra_16")]


def _encoder_text(study: Study) -> dict[str, Any]:
    return {"prompt_words": 256, "max_tokens": study.sizes.max_tokens}


def _start_stage(study: Study, view: str) -> Stage:
    path = study.at(f"encoders/untrained_{view}")
    call = partial(
        init_encoder,
        study.table("corpora", "train"),
        path,
        settings=Encoder(model=str(study.encoder), view=view, projection="principal", **_encoder_text(study)),
        seed=SEED,
    )
    return f"encoder untrained_{view}", path, call


def _training_stage(study: Study, view: str) -> Stage:
    sizes, path = study.sizes, study.at(f"encoders/airrep_{view}")
    call = partial(
        train_encoder,
        study.table("corpora", "train"),
        study.at(f"encoders/untrained_{view}"),
        study.table("subsets", "train"),
        study.table("targets", "train"),
        path,
        study.table("encoders", f"airrep_{view}.log"),
        training=EncoderTraining(
            steps=sizes.steps,
            subsets_per_step=sizes.subsets_per_fold,
            examples_per_step=200,
            learned_scale=True,
            validation_folds=sizes.validation_folds,
            validate_every=sizes.validate_every,
            patience=6,
            chunk_tokens=65_536,
            precision=study.precision,
        ),
        **_encoder_text(study),
        seed=SEED,
    )
    return f"train airrep_{view}", path, call


def _encoder_score_stages(study: Study, encoder: str) -> list[Stage]:
    found: list[Stage] = []
    for corpus in ("pool", "tests"):
        path = study.table(f"embeddings/{encoder}", corpus)
        call = partial(
            embed_corpus,
            study.table("corpora", corpus),
            study.at(f"encoders/{encoder}"),
            path,
            **_encoder_text(study),
            embedding_precision="float16",
            chunk_tokens=65_536,
            precision=study.precision,
        )
        found.append((f"embeddings {encoder} {corpus}", path, call))
    return [*found, _score_stage(study, encoder, encoder, ("attention", "mean"), encoder)]


def _score_stage(study: Study, name: str, method: str, poolings: tuple[str, ...], embeddings: str | None) -> Stage:
    path = study.table(f"groups/{name}", EVALUATION)
    read = [study.table(f"embeddings/{embeddings}", corpus) for corpus in ("pool", "tests")] if embeddings else [[], []]
    call = partial(
        score_pairs,
        study.table("corpora", "pool"),
        study.table("corpora", "tests"),
        study.table("subsets", EVALUATION),
        study.table("subsets", f"{EVALUATION}.validation"),
        *read,
        study.table(f"scores/{name}", EVALUATION),
        path,
        method=method,
        poolings=poolings,
        evaluation=EVALUATION,
        seed=SEED,
        top=10,
        tile_examples=8192,
    )
    return f"scores {name}", path, call
