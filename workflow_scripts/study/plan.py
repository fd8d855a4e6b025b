"""Which jobs a study has, and which corpora, LMs, encoders and methods they are for.

Imported while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

import glob
import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from workflow_scripts.study.choices import BASE_LM, SMALLEST_NUMBER_OF_SUBSETS, WARM_LM
from workflow_scripts.study.config import Study
from workflow_scripts.study.methods import (
    METHODS,
    OF_TESTS,
    EmbeddingSpec,
    Method,
    find_method,
    methods_of,
    sentence_encoder_method,
)
from workflow_scripts.study.sections import Encoder, EncoderTraining, LanguageModel, Surrogate, Targets
from workflow_scripts.study.sources import HubDataset, hub_dataset, is_hub_id, local_files, snapshot_name

TRAIN_POOL = "train"
# Folds whose targets a method predicts.
SURROGATE_POOL = "surrogate"
# The pool of the experiment `detection` once rows of it are damaged; no corpus of a config can have this name.
DAMAGED_POOL = "@damaged"
# Table of each experiment, under evaluation/.
EXPERIMENT_TABLES = {
    "leave_out": "loo",
    "removal": "removal",
    "selection": "selection",
    "classification": "classification",
    "amortisation": "amortisation",
    "transfer": "transfer",
    "curated_data": "curated_data",
    "detection": "detection",
}


@dataclass(frozen=True)
class HubModel:
    """A model of the hub that a study names.

    Parameters
    ----------
    model: its hub id.
    revision: a commit, tag or branch; None for the default branch.
    trust_remote_code: whether code that comes with the model is run.
    is_loaded: whether any job of the study loads the model.
    """

    model: str
    revision: str | None
    trust_remote_code: bool
    is_loaded: bool


class StudyPlan:
    """What a study runs: pools, blocks, methods, variants, parts, experiments, and the processes that share a job.

    The methods take and return names, as they occur in file names:

    - pool: `train`, or the name of an evaluation with an LDS
    - lm: "" for the study's own LM, `@<name>` for one of `language_models`
    - variant: "" for the study's own encoder, `@<name>` for one of `encoder_variants`
    - embedding: a folder of `embeddings/`, `trained` or `untrained`, of a variant `trained@<name>`, or a method's name

    Parameters
    ----------
    study: the validated config.

    Attributes
    ----------
    lds_evaluations: evaluations whose subsets are fine-tuned.
    averaged_evaluations: those of them with the study's own LM, where there are several: their mean LDS is reported.
    pools: all pools that LMs are fine-tuned on.
    drawn_pools: these, and all others that subsets or tests are drawn for.
    variants: all variants, the study's own encoder first.
    language_models: all LMs, the study's own first.
    has_builtin_lm: whether the study uses an LM of its own that the workflow pretrains.
    results: the results folder.
    """

    def __init__(self, study: Study):
        self.study = study
        self.lds_evaluations = [name for name, evaluation in study.evaluations.items() if evaluation.subsets]
        own = [name for name in self.lds_evaluations if study.evaluations[name].language_model is None]
        self.averaged_evaluations = own if len(own) > 1 else []
        self.pools = [TRAIN_POOL, *self.lds_evaluations] if study.targets else self.lds_evaluations
        self.drawn_pools = list(dict.fromkeys([*self.pools, *self.predicted_pools(), *study.evaluations]))
        self.variants = ["", *(f"@{name}" for name in study.encoder_variants)]
        self.language_models = ["", *(f"@{name}" for name in study.language_models)]
        self.has_builtin_lm = study.uses_lm and self.is_builtin("")
        self.results = Path("results") / study.run

    @property
    def targets(self) -> Targets:
        """The section `targets`; only for a study that has one."""
        assert self.study.targets is not None, "nothing is trained without targets"
        return self.study.targets

    @property
    def surrogate(self) -> Surrogate | None:
        """What predicts the targets of further folds; None if nothing does."""
        return self.study.targets.surrogate if self.study.targets else None

    def predicted_pools(self, *, stored: bool | None = None) -> list[str]:
        """Return the pools whose targets a method predicts; `stored` as in `methods_scored`."""
        if self.surrogate is None or stored == self.method(self.surrogate.method).is_unstored:
            return []
        return [SURROGATE_POOL]

    def learns_from_surrogate(self, variant: str) -> bool:
        """Return whether an encoder variant is trained on predicted targets, too."""
        return self.encoder_training(variant).surrogate_share > 0

    def draws_from_targets(self, pool: str) -> bool:
        """Return whether a pool's folds are the encoder's, measured or predicted."""
        return pool == TRAIN_POOL or (pool == SURROGATE_POOL and self.surrogate is not None)

    def corpora_of(self, pool: str) -> tuple[str, str]:
        """Return the two corpora that a pool's subsets and its evaluated examples are drawn from."""
        if self.draws_from_targets(pool):
            return self.targets.corpus, self.targets.corpus
        evaluation = self.study.evaluations[pool]
        return evaluation.train, evaluation.test

    def tokenized_corpora(self) -> list[str]:
        """Return the names of the corpora that the study's own LM reads, sorted."""
        pools = [pool for pool in self.pools if not self.language_model_of(pool)]
        corpora = {corpus for pool in pools for corpus in self.corpora_of(pool)}
        own = [method.own for method in map(self.method, self.study.scoring.methods) if method.own]
        if any(one.language_model for one in own):
            evaluations = self.study.evaluations.values()
            corpora |= {corpus for one in evaluations for corpus in (one.train, one.test)}
        if any(one.fitted for one in own) or self.detection_losses():
            corpora.add(self.warmup_corpus())
        return sorted(corpora)

    def language_model_of(self, pool: str) -> str:
        """Return the LM that is fine-tuned on a pool's subsets: "" or `@<name>`."""
        name = None if self.draws_from_targets(pool) else self.study.evaluations[pool].language_model
        return f"@{name}" if name else ""

    def language_model(self, lm: str) -> LanguageModel:
        """Return the settings of an LM."""
        return self.study.language_model_named(lm.removeprefix("@") or None)

    def is_builtin(self, lm: str) -> bool:
        """Return whether the workflow pretrains an LM itself."""
        return self.language_model(lm).model == "builtin:tiny"

    @cached_property
    def hub_models(self) -> dict[str, HubModel]:
        """The models that the study names by a hub id; keys are the names of their snapshot folders."""
        methods = [self.method(name) for name in self.study.scoring.methods]
        read_by_methods = any(method.own and method.own.language_model for method in methods)
        variants = {"", *(f"@{name}" for method in methods if (name := (method.encoder or "").partition("@")[2]))}
        lms = {self.language_model_of(pool) for pool in self.pools}
        reads_losses = bool(self.detection_losses() or self.reader_of_suspects())
        if read_by_methods or reads_losses or any(self.reads_tokens_of_lm(variant) for variant in variants):
            lms.add("")
        named: list[tuple[LanguageModel | Encoder, bool]] = [
            *((self.language_model(lm), lm in lms) for lm in self.language_models),
            *((self.encoder(variant), variant in variants) for variant in self.variants),
        ]
        found = [HubModel(one.model, one.revision, one.trust_remote_code, is_loaded) for one, is_loaded in named]
        found += [
            HubModel(model, None, False, name in self.study.scoring.methods)
            for name, model in self.study.scoring.sentence_encoders.items()
        ]
        models: dict[str, HubModel] = {}
        for one in found:
            if is_hub_id(one.model):
                name = snapshot_name(one.model, one.revision)
                known = models.get(name, one)
                models[name] = replace(
                    one,
                    trust_remote_code=one.trust_remote_code or known.trust_remote_code,
                    is_loaded=one.is_loaded or known.is_loaded,
                )
        return models

    def snapshot(self, model: str, revision: str | None = None) -> str | None:
        """Return the name of a model's snapshot folder; None for a model that isn't on the hub."""
        return snapshot_name(model, revision) if is_hub_id(model) else None

    def snapshot_of_lm(self, lm: str) -> str | None:
        """Return the name of an LM's snapshot folder; None for one that isn't on the hub."""
        settings = self.language_model(lm)
        return self.snapshot(settings.model, settings.revision)

    def snapshot_of_encoder(self, variant: str) -> str | None:
        """Return the name of the snapshot folder that an encoder starts from; None for one that isn't on the hub."""
        encoder = self.encoder(variant)
        return self.snapshot(encoder.model, encoder.revision)

    def snapshot_of_embeddings(self, embedding: str) -> str | None:
        """Return the name of the snapshot folder of a sentence encoder; None for other embeddings or a local model."""
        model = self.study.scoring.sentence_encoders.get(self.method_of(embedding))
        return self.snapshot(model) if model else None

    def source_files(self, corpus: str) -> list[str]:
        """Return the local files of a corpus, whose modification times decide whether it is read again."""
        source = self.study.corpora[corpus].source
        return [] if source.startswith("builtin:") else [str(path) for path in local_files(source)]

    def dataset(self, corpus: str) -> HubDataset | None:
        """Return the dataset of the hub that a corpus is read from; None for other corpora."""
        settings = self.study.corpora[corpus]
        return hub_dataset(settings.source, settings.revision, settings.data_files)

    @cached_property
    def hub_datasets(self) -> dict[str, HubDataset]:
        """The datasets of the hub that the study reads; keys are the names of the files with their commits."""
        found = [one for corpus in self.study.corpora if (one := self.dataset(corpus))]
        return {snapshot_name(one.name, one.revision): one for one in found}

    def encoder_files(self) -> list[str]:
        """Return the files of a local encoder, whose modification times decide whether it is copied again."""
        found = glob.glob(os.path.join(glob.escape(self.study.encoder.model), "**"), recursive=True)
        return sorted(path for path in found if os.path.isfile(path))

    def runs(self, pool: str) -> tuple[int, int, int]:
        """Return (folds, subsets per fold, seeds) of a pool; their product is its number of fine-tuning runs."""
        if pool == SURROGATE_POOL and self.surrogate:
            return self.surrogate.folds, self.surrogate.subsets_per_fold, 1
        if pool == TRAIN_POOL:
            return self.targets.folds, self.targets.subsets_per_fold, self.targets.seeds
        evaluation = self.study.evaluations[pool]
        return 1, evaluation.subsets, evaluation.seeds

    def measured_examples(self, pool: str) -> int | None:
        """Return how many examples each subset of a pool is evaluated on; None for the whole test corpus."""
        if self.draws_from_targets(pool):
            return self.targets.evaluated_examples
        return self.study.evaluations[pool].tests

    def blocks(self, pool: str) -> list[str]:
        """Return the names of a pool's fine-tuning jobs, blocks of folds x subsets: `f<number>_s<number>`.

        A block's borders don't depend on the number of folds or subsets, so more of them add blocks.
        """
        folds, subsets, _ = self.runs(pool)
        folds_per_job, subsets_per_job = self.job_size(pool)
        return [
            f"f{fold_block:04d}_s{subset_block:04d}"
            for fold_block in range(math.ceil(folds / folds_per_job))
            for subset_block in range(math.ceil(subsets / subsets_per_job))
        ]

    def method(self, name: str) -> Method:
        """Return the entry of a method of the study, sentence encoders included."""
        encoders = self.study.scoring.sentence_encoders
        return sentence_encoder_method(encoders[name]) if name in encoders else find_method(name)

    def poolings_of(self, method: str) -> list[str]:
        """Return the poolings by which a method's scores of examples become scores of groups.

        Without held-back folds that could choose, or groups to be scored, attention stands for the chosen one.
        """
        if method in self.study.scoring.poolings:
            return list(self.study.scoring.poolings[method])
        targets = self.study.targets
        can_choose = targets and targets.subsets_per_fold >= SMALLEST_NUMBER_OF_SUBSETS and self.lds_evaluations
        return ["attention" if one == "chosen" and not can_choose else one for one in self.method(method).poolings]

    def has_chosen_pooling(self, method: str) -> bool:
        """Return whether held-back folds choose how a method's scores of examples become scores of groups."""
        return "chosen" in self.poolings_of(method)

    def methods_with_chosen_pooling(self, *, stored: bool | None = None) -> list[str]:
        """Return the methods whose pooling is chosen on held-back folds; `stored` as in `methods_scored`."""
        methods = [method for method in self.study.scoring.methods if self.has_chosen_pooling(method)]
        return [name for name in methods if stored is None or self.method(name).is_unstored != stored]

    def methods_that_score_targets(self) -> list[str]:
        """Return the methods that score the corpus of the targets: to choose a pooling, or to predict targets."""
        predicting = [self.surrogate.method] if self.surrogate else []
        return list(dict.fromkeys([*self.methods_with_chosen_pooling(), *predicting, *self.blended_methods()]))

    def blended_methods(self, *, stored: bool | None = None) -> list[str]:
        """Return the methods whose group scores are part of a blend; `stored` as in `methods_scored`."""
        methods = dict.fromkeys(method for blend in self.study.scoring.blends for method in methods_of(blend))
        return [name for name in methods if stored is None or self.method(name).is_unstored != stored]

    def blended_pooling(self, method: str) -> str:
        """Return the pooling of a method's group scores in blends: what held-back folds choose, or else its first."""
        return "chosen" if self.has_chosen_pooling(method) else self.poolings_of(method)[0]

    def held_back_folds(self, method: str) -> int:
        """Return how many folds, the last ones, no encoder that a method reads is trained on."""
        kind, at, name = (self.method(method).encoder or "").partition("@")
        own = self.study.encoder_training.validation_folds
        return min(own, self.encoder_training(at + name).validation_folds) if kind == "trained" else own

    def trained_variants(self) -> list[str]:
        """Return the variants that are trained: the study's own encoder, and those that methods read."""
        return sorted(self._variants_read("trained") | {""}) if self.study.targets else []

    def initialized_variants(self) -> list[str]:
        """Return the variants that have an encoder of their own before training."""
        if not self.study.targets:
            return []
        starts = {variant if self.has_own_initialization(variant) else "" for variant in self.trained_variants()}
        return sorted(starts | self._variants_read("untrained"))

    def _variants_read(self, kind: str) -> set[str]:
        names = (self.method(method).encoder or "" for method in self.study.scoring.methods)
        return {at + variant for encoder, at, variant in (name.partition("@") for name in names) if encoder == kind}

    def main_method(self) -> str:
        """Return the method that the other rows of the LDS table are compared with: AirRep, if it is among them."""
        trained = self.trained_methods()
        return "airrep" if "airrep" in trained else (trained or self.study.scoring.methods)[0]

    def embedding_of(self, method: str, for_tests: bool = False) -> str | None:
        """Return the embeddings that a method reads, of tests or of training examples; None if it reads none."""
        known = self.method(method)
        if known.own is None:
            return known.encoder
        if not known.own.stored:
            return None
        return method + OF_TESTS if for_tests and known.own.by_role else method

    def own_embeddings(self) -> list[str]:
        """Return the embeddings that methods compute themselves, of all methods."""
        names = [*METHODS, *self.study.scoring.sentence_encoders]
        own = {name: spec for name in names if (spec := self.method(name).own) and spec.stored}
        return [*own, *(name + OF_TESTS for name, spec in own.items() if spec.by_role)]

    def method_of(self, embedding: str) -> str:
        """Return the name of the method that computes these embeddings."""
        return embedding.removesuffix(OF_TESTS)

    def embedding_spec(self, embedding: str) -> EmbeddingSpec:
        """Return how a method computes these embeddings, stored or not; only for one that computes its own."""
        own = self.method(self.method_of(embedding)).own
        assert own is not None, f"{embedding} is made by no method"
        return own

    def warmup_corpus(self) -> str:
        """Return the name of the corpus that the LM is warmed up on."""
        targets, evaluations = self.study.targets, self.study.evaluations.values()
        return self.study.warmup.corpus or (targets.corpus if targets else next(iter(evaluations)).train)

    def fitted_methods(self) -> list[str]:
        """Return the names of all methods that have a fitted file of their own."""
        return [name for name in METHODS if METHODS[name].has_own_fit]

    def fit_of(self, embedding: str) -> str | None:
        """Return the name of the method whose fitted file these embeddings need; None if they need none."""
        own = self.embedding_spec(embedding)
        return (own.fitted_as or self.method_of(embedding)) if own.fitted else None

    def stored_methods(self) -> list[str]:
        """Return the names of the study's methods that store their embeddings or score texts."""
        return [name for name in self.study.scoring.methods if not self.method(name).is_unstored]

    def unstored_methods(self) -> list[str]:
        """Return the names of the study's methods whose embeddings are computed by the jobs that score them."""
        return [name for name in self.study.scoring.methods if self.method(name).is_unstored]

    def has_own_initialization(self, variant: str) -> bool:
        """Return whether an encoder variant starts from another encoder than the study's own."""
        return self.encoder(variant) != self.encoder("")

    def reads_tokens_of_lm(self, variant: str) -> bool:
        """Return whether an encoder variant starts with the LM's tokenizer."""
        encoder = self.encoder(variant)
        return (encoder.model, encoder.tokenizer) == ("builtin:small", "language_model")

    def encoder(self, variant: str) -> Encoder:
        """Return how an encoder variant starts."""
        return self.study.encoder_of(variant.removeprefix("@") or None)[0]

    @property
    def has_layers(self) -> bool:
        """Whether an encoder of the study reads a token in its context: all do but builtin ones without layers."""
        encoders = [self.encoder(variant) for variant in self.variants]
        return any(encoder.model != "builtin:small" or encoder.layers > 0 for encoder in encoders)

    def encoder_training(self, variant: str) -> EncoderTraining:
        """Return how an encoder variant is trained."""
        return self.study.encoder_of(variant.removeprefix("@") or None)[1]

    def encoder_processes(self) -> int:
        """Return how many processes train the encoder or embed; a job asks for as many GPUs."""
        return self.study.encoder_training.processes

    def finetuning_processes(self) -> int:
        """Return how many processes fine-tune one LM; a job asks for as many GPUs."""
        return self.study.finetuning.processes

    def processes(self, stage: str) -> int:
        """Return how many processes share a job of `stage`, each with a GPU or core of its own."""
        if stage in ("finetune_shard", "finetune_runs"):
            return self.finetuning_processes()
        return self.encoder_processes() if stage in ("train_encoder", "embed_corpus") else 1

    def experiments(self) -> list[str]:
        """Return the names of the experiments that the study has."""
        return [name for name in EXPERIMENT_TABLES if self.experiment(name) is not None]

    def experiment(self, name: str) -> Any:
        """Return the settings of an experiment; None if the study doesn't have it."""
        return getattr(self.study.experiments, name)

    def experiment_methods(self, name: str) -> list[str]:
        """Return the names of the methods that an experiment evaluates."""
        chosen = getattr(self.experiment(name), "methods", None)
        return chosen or (self._detecting_methods() if name == "detection" else list(self.study.scoring.methods))

    def _detecting_methods(self) -> list[str]:
        """Return the methods whose scores of examples are read again; of those that read the same ones, the first."""
        found: dict[str, str] = {}
        for method in self.stored_methods():
            found.setdefault(self.embedding_of(method) or method, method)
        return list(found.values())

    def detection_losses(self) -> list[str]:
        """Return the names of the LMs by whose losses the experiment `detection` ranks rows too."""
        return [BASE_LM, WARM_LM] if self.experiment("detection") and self.study.uses_lm else []

    def corpora_trained_on(self) -> list[str]:
        """Return the names of the corpora that the study's encoder and LMs are trained on, sorted."""
        of_lm = [self.warmup_corpus()] if self.study.uses_lm else []
        of_lm += [self.study.language_model.pretraining.corpus] if self.has_builtin_lm else []
        return sorted({*of_lm, *([self.study.targets.corpus] if self.study.targets else [])})

    def corpora_of_lms(self) -> list[str]:
        """Return the names of the corpora, other than the encoder's, that LMs are pretrained on, sorted.

        Those of evaluations are not among them: their tests may come from the same corpus.
        """
        lms = ["", *self.study.language_models] if self.study.uses_lm else []
        read = {self.language_model(lm).pretraining.corpus for lm in lms if self.is_builtin(lm)}
        evaluated = {evaluation.train for evaluation in self.study.evaluations.values()}
        return sorted(read - evaluated - {self.targets.corpus})

    def classified(self) -> list[str]:
        """Return the names of the evaluations whose tests are classified."""
        if self.study.experiments.classification is None:
            return []
        return self.study.experiments.classification.evaluations or list(self.study.evaluations)

    def labelled(self) -> list[str]:
        """Return the names of the evaluations whose class labels an experiment reads."""
        selection = self.study.experiments.selection
        return list(dict.fromkeys([*self.classified(), *([selection.evaluation] if selection else [])]))

    def measured_selections(self) -> list[str]:
        """Return the selections that the experiment `curated_data` fine-tunes on."""
        settings = self.experiment("curated_data")
        return settings.selections or [
            name
            for name, choice in self.study.curation.items()
            if choice.evaluation == settings.evaluation and not choice.is_for_review
        ]

    def lists_for_review(self) -> list[str]:
        """Return the selections whose rows are listed for review."""
        return [name for name, choice in self.study.curation.items() if choice.is_for_review]

    def reader_of_suspects(self) -> str | None:
        """Return the LM whose losses are told beside suspicious rows: the warmed-up one, if the study has it anyway."""
        if not (self.study.uses_lm and self.lists_for_review()):
            return None
        own = [method.own for method in map(self.method, self.study.scoring.methods) if method.own]
        is_warm = bool(self.detection_losses()) or any(one.language_model == "warm" for one in own)
        return WARM_LM if is_warm else BASE_LM

    def curated_files(self, curation: str) -> list[str]:
        """Return the files of a selection: rows, summary, and where rows are dropped the corpus without them."""
        choice, folder = self.study.curation[curation], f"curation/{curation}"
        kept = [f"{folder}/kept.{choice.format}"] if choice.drop is not None else []
        return [f"{folder}/{choice.rows_file}", f"{folder}/summary.md", *kept]

    def parts_of(self, corpus: str) -> list[str]:
        """Return the parts that a corpus is embedded and scored in: [""], or `.1of4` and so on."""
        trained_on = {evaluation.train for evaluation in self.study.evaluations.values()}
        parts = self.study.scoring.parts if corpus in trained_on else 1
        return [f".{part}of{parts}" for part in range(1, parts + 1)] if parts > 1 else [""]

    def methods_scored(self, *, in_parts: bool, stored: bool | None = None) -> list[str]:
        """Return the methods whose scores are merged from parts of the training corpus, or the others.

        `stored` leaves only those in that store their embeddings or score texts, or those that store none.
        """
        split, unstored = self.study.scoring.parts > 1, self.unstored_methods()
        return [
            name
            for name in self.study.scoring.methods
            if (split and (bool(self.embedding_of(name)) or name in unstored)) == in_parts
            and stored in (None, name not in unstored)
        ]

    def job_size(self, pool: str) -> tuple[int, int]:
        """Return (folds, subsets of each fold) that one fine-tuning job of a pool covers."""
        if pool == TRAIN_POOL:
            return self.targets.folds_per_job, self.targets.subsets_per_job
        return 1, self.study.evaluations[pool].subsets_per_job

    def trained_methods(self) -> list[str]:
        """Return the names of the study's methods that read a trained encoder."""
        return [name for name in self.study.scoring.methods if (self.method(name).encoder or "").startswith("trained")]
