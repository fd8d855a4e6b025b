"""From a study to its jobs: which there are, what each computes with, and what it asks of the machine.

Read while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from workflow_scripts.lib.config import Encoder, EncoderTraining, Evaluation, LanguageModel, Study
from workflow_scripts.lib.costs import Concurrency, Pilot, estimate, parameters_in_name
from workflow_scripts.lib.sources import local_files
from workflow_scripts.methods import METHODS, Method, OwnEmbeddings, find_method, sentence_encoder

# Raised by hand whenever a stage's code starts to mean something else, so that its results are made anew.
# tests/unit/test_specs.py pins each stage's source to its version.
STAGE_VERSIONS = {
    "resolve_config": 1,
    "prepare_corpus": 1,
    "pretrain_base_lm": 1,
    "tokenize_corpus": 1,
    "sample_subsets": 1,
    "finetune_shard": 1,
    "collect_targets": 2,
    "init_encoder": 1,
    "take_encoder": 1,
    "train_encoder": 1,
    "embed_corpus": 1,
    "warmup_lm": 1,
    "fit_method": 1,
    "embed_by_method": 1,
    "score_pairs": 1,
    "score_part": 1,
    "merge_scores": 1,
    "check_leaks": 1,
    "evaluate_lds": 1,
    "package_encoder": 1,
    "push_encoder": 1,
    "draw_base": 1,
    "draw_leave_out": 1,
    "draw_removal": 1,
    "draw_selection": 1,
    "finetune_runs": 1,
    "evaluate_leave_out": 1,
    "evaluate_removal": 1,
    "evaluate_selection": 1,
    "evaluate_classification": 1,
    "evaluate_amortisation": 1,
    "evaluate_transfer": 1,
    "write_report": 2,
    "run_pilot": 1,
    "write_plan": 1,
}
TRAIN_POOL = "train"
# Ends the name of the folder of a method's embeddings of tests, where they are made otherwise.
OF_TESTS = "-tests"
# Table of each experiment, under evaluation/.
EXPERIMENT_TABLES = {
    "leave_out": "loo",
    "removal": "removal",
    "selection": "selection",
    "classification": "classification",
    "amortisation": "amortisation",
    "transfer": "transfer",
}
FILE_NAME = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|pq)(\.gz|\.zst)?$", re.IGNORECASE)
# Of a job's expected seconds to its time limit, and the shortest limit worth asking for.
RUNTIME_MARGIN = 2.0
SHORTEST_RUNTIME_MINUTES = 15


class StudyPlan:
    """The jobs of a study, their specs and their sizes."""

    def __init__(self, study: Study):
        self.study = study
        # Evaluation sets with a LDS, and the pools that LMs are fine-tuned on.
        self.judged = [name for name, evaluation in study.evaluations.items() if evaluation.subsets]
        self.pools = [TRAIN_POOL, *self.judged] if study.targets else self.judged
        # Of the artifacts that several encoders or LMs have, a name begins with @; the study's own have none.
        self.variants = ["", *(f"@{name}" for name in study.encoder_variants)]
        self.language_models = ["", *(f"@{name}" for name in study.language_models)]
        self.has_builtin_lm = study.uses_lm and self.is_builtin("")
        self.results = Path("results") / study.run

    def spec(self, stage: str, wildcards: Mapping[str, str]) -> dict[str, Any]:
        """Return the values that `stage` is called with, and its version, sorted by name.

        They are all that decides its result besides its inputs, so a changed value reruns this stage alone
        and what stands below it.
        """
        values = getattr(self, f"_{stage}")(**wildcards)
        return dict(sorted({"version": STAGE_VERSIONS[stage], **values}.items()))

    def base_spec(self, wildcards: Mapping[str, str]) -> dict[str, Any]:
        """Return the values that `score_pairs` scores the base set of an experiment with."""
        return self.spec("score_pairs", {name: wildcards[name] for name in ("method", "evaluation")})

    def corpora_of(self, pool: str) -> tuple[str, str]:
        """Return the names of the corpora that a pool's subsets and its judged examples are drawn from."""
        if pool == TRAIN_POOL:
            return self.study.targets.corpus, self.study.targets.corpus
        evaluation = self.study.evaluations[pool]
        return evaluation.train, evaluation.test

    def tokenized_corpora(self) -> list[str]:
        """Return the corpora that the study's own LM reads."""
        pools = [pool for pool in self.pools if not self.language_model_of(pool)]
        corpora = {corpus for pool in pools for corpus in self.corpora_of(pool)}
        own = [method.own for method in map(self.method, self.study.scoring.methods) if method.own]
        if any(one.language_model for one in own):
            evaluations = self.study.evaluations.values()
            corpora |= {corpus for one in evaluations for corpus in (one.train, one.test)}
        if any(one.fitted for one in own):
            corpora.add(self.warmup_corpus())
        return sorted(corpora)

    def language_model_of(self, pool: str) -> str:
        """Return which LM is fine-tuned on a pool's subsets, as it stands in file names: "" or @<name>."""
        name = None if pool == TRAIN_POOL else self.study.evaluations[pool].language_model
        return f"@{name}" if name else ""

    def language_model(self, lm: str) -> LanguageModel:
        """Return the settings of a LM of `language_models`."""
        return self.study.language_model_named(lm.removeprefix("@") or None)

    def is_builtin(self, lm: str) -> bool:
        """Return whether the workflow makes a LM itself."""
        return self.language_model(lm).model == "builtin:tiny"

    def source_files(self, corpus: str) -> list[str]:
        """Return the local files of a corpus: their age decides whether it is read again."""
        source = self.study.corpora[corpus].source
        return [] if source.startswith("builtin:") else [str(path) for path in local_files(source)]

    def encoder_files(self) -> list[str]:
        """Return the files of an encoder that lies in a local folder: their age decides whether it is taken again."""
        found = glob.glob(os.path.join(glob.escape(self.study.encoder.model), "**"), recursive=True)
        return sorted(path for path in found if os.path.isfile(path))

    def runs(self, pool: str) -> tuple[int, int, int]:
        """Return (folds, subsets per fold, seeds) of a pool: its fine-tuning runs."""
        if pool == TRAIN_POOL:
            targets = self.study.targets
            return targets.folds, targets.subsets_per_fold, targets.seeds
        evaluation = self.study.evaluations[pool]
        return 1, evaluation.subsets, evaluation.seeds

    def judged_examples(self, pool: str) -> int | None:
        """Return how many examples each subset of a pool is judged on; None for the whole test corpus."""
        if pool == TRAIN_POOL:
            return self.study.targets.evaluated_examples
        return self.study.evaluations[pool].tests

    def blocks(self, pool: str) -> list[str]:
        """Return the names of a pool's fine-tuning jobs: blocks of folds x subsets.

        A block's borders don't depend on the number of folds or subsets, so more of them add blocks.
        """
        folds, subsets, _ = self.runs(pool)
        folds_per_job, subsets_per_job = self._job_size(pool)
        return [
            f"f{fold_block:04d}_s{subset_block:04d}"
            for fold_block in range(math.ceil(folds / folds_per_job))
            for subset_block in range(math.ceil(subsets / subsets_per_job))
        ]

    def method(self, name: str) -> Method:
        """Return what is known of a method of the study."""
        encoders = self.study.scoring.sentence_encoders
        return sentence_encoder(encoders[name]) if name in encoders else find_method(name)

    def poolings_of(self, method: str) -> list[str]:
        """Return how a method's scores of examples become scores of groups."""
        return list(self.study.scoring.poolings.get(method, self.method(method).poolings))

    def embedding_of(self, method: str, for_tests: bool = False) -> str | None:
        """Return the name of the folder of a method's embeddings, if it reads any."""
        known = self.method(method)
        if known.own is None:
            return known.encoder
        return method + OF_TESTS if for_tests and known.own.by_role else method

    def own_embeddings(self) -> list[str]:
        """Return the names of the folders of embeddings that methods make of their own."""
        names = [*METHODS, *self.study.scoring.sentence_encoders]
        own = [name for name in names if self.method(name).own]
        return [*own, *(name + OF_TESTS for name in own if self.method(name).own.by_role)]

    def method_of(self, embedding: str) -> str:
        """Return the method that makes the embeddings of a folder."""
        return embedding.removesuffix(OF_TESTS)

    def own_of(self, embedding: str) -> OwnEmbeddings:
        """Return how the embeddings of a folder are made."""
        return self.method(self.method_of(embedding)).own

    def warmup_corpus(self) -> str:
        """Return the corpus that the LM is warmed up on."""
        targets, evaluations = self.study.targets, self.study.evaluations.values()
        return self.study.warmup.corpus or (targets.corpus if targets else next(iter(evaluations)).train)

    def fitted_methods(self) -> list[str]:
        """Return the methods that are fitted before they embed."""
        return [name for name in METHODS if METHODS[name].is_fitted]

    def starts_anew(self, variant: str) -> bool:
        """Return whether an encoder variant starts from another encoder than the study's own does."""
        return self._encoder(variant) != self._encoder("")

    def _encoder(self, variant: str) -> Encoder:
        return self.study.encoder_of(variant.removeprefix("@") or None)[0]

    def _encoder_training(self, variant: str) -> EncoderTraining:
        return self.study.encoder_of(variant.removeprefix("@") or None)[1]

    def experiments(self) -> list[str]:
        """Return the experiments that the study has."""
        return [name for name in EXPERIMENT_TABLES if self.experiment(name) is not None]

    def experiment(self, name: str) -> Any:
        """Return the settings of an experiment; None if the study doesn't have it."""
        return getattr(self.study.experiments, name)

    def experiment_methods(self, name: str) -> list[str]:
        """Return the methods that an experiment judges."""
        return getattr(self.experiment(name), "methods", None) or list(self.study.scoring.methods)

    def classified(self) -> list[str]:
        """Return the evaluation sets whose tests are classified."""
        return self.study.experiments.classification.evaluations or list(self.study.evaluations)

    def parts_of(self, corpus: str) -> list[str]:
        """Return the parts that a corpus is embedded and scored in, as they stand in file names; [""] for one."""
        trained_on = {evaluation.train for evaluation in self.study.evaluations.values()}
        parts = self.study.scoring.parts if corpus in trained_on else 1
        return [f".{part}of{parts}" for part in range(1, parts + 1)] if parts > 1 else [""]

    def methods_scored(self, *, in_parts: bool) -> list[str]:
        """Return the methods whose scores are put together from parts of the training corpus, or the others."""
        split = self.study.scoring.parts > 1
        return [name for name in self.study.scoring.methods if (split and bool(self.embedding_of(name))) == in_parts]

    def corpora_at_hand(self) -> list[str]:
        """Return the corpora that a pilot reads: local ones, and those of the hub that were prepared before."""
        return [name for name in self.study.corpora if self._is_at_hand(name)]

    def _is_at_hand(self, corpus: str) -> bool:
        if (self.results / "corpora" / f"{corpus}.parquet").exists():
            return True
        source = self.study.corpora[corpus].source
        # A file that is missing counts too: reading it says so.
        is_local = source.startswith("builtin:") or FILE_NAME.search(source) or self.source_files(corpus)
        return bool(is_local) and all(self._is_at_hand(other) for other in self.study.corpora[corpus].without)

    def memory_mb(self, stage: str) -> int:
        """Return the memory in MiB that a job of `stage` asks for, from the size in the LM's name."""
        names = [self.language_model(lm).model for lm in self.language_models]
        parameters = max(parameters_in_name(name) or 5e6 for name in names)
        # Weights, their copy for the reset, gradients and AdamW's two moments, 4 bytes each; and each process of
        # DeepSpeed loads all weights before it keeps its part of them.
        lm = (20 + 4 * (self.finetuning_processes() - 1)) * parameters / 2**20
        encoder = self.encoder_processes()
        return {
            "finetune_shard": 4000 + int(lm),
            "warmup_lm": 4000 + int(lm),
            "fit_method": 8000 + int(lm),
            "embed_by_method": 8000 + int(lm),
            "finetune_runs": 4000 + int(lm),
            "train_encoder": 16000 * encoder,
            "embed_corpus": 4000 * encoder,
            "collect_targets": 8000,
        }.get(stage, 4000)

    def encoder_processes(self) -> int:
        """Return how many processes train the encoder or embed: as many GPUs does a job ask for."""
        return self.study.encoder_training.processes

    def finetuning_processes(self) -> int:
        """Return how many processes fine-tune one LM: as many GPUs does a job ask for."""
        return self.study.finetuning.processes

    def processes(self, stage: str) -> int:
        """Return how many processes, and so GPUs or cores, share a job of `stage`."""
        if stage == "finetune_shard":
            return self.finetuning_processes()
        return self.encoder_processes() if stage in ("train_encoder", "embed_corpus") else 1

    def runtime_minutes(self, stage: str) -> int:
        """Return the minutes that a job of `stage` asks for: twice what the pilot expects of the longest one.

        Without a pilot, or where it could only assume, a limit that suits the paper's study.
        """
        if stage in self._expected_seconds:
            minutes = math.ceil(RUNTIME_MARGIN * self._expected_seconds[stage] / 60)
            return max(minutes, SHORTEST_RUNTIME_MINUTES)
        minutes = {"finetune_shard": 120, "finetune_runs": 120, "train_encoder": 720, "embed_corpus": 120}
        minutes |= {"warmup_lm": 720, "fit_method": 720, "embed_by_method": 720}
        return minutes.get(stage, 60)

    @cached_property
    def pilot(self) -> Pilot | None:
        """What the pilot of this study found; None where there was none, or one of other settings."""
        try:
            written = json.loads((self.results / "pilot.json").read_text(encoding="utf-8"))
            # As it looks once written: JSON knows no tuples.
            if written["settings"] != json.loads(json.dumps(self.pilot_settings())):
                return None
            return Pilot.from_json(written["found"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @cached_property
    def _expected_seconds(self) -> dict[str, float]:
        if self.pilot is None:
            return {}
        # How many jobs run side by side doesn't change how long one takes.
        costs = estimate(self, self.pilot, Concurrency(cores=1))
        return {one.stage: one.longest_seconds for one in costs if one.measured}

    def _job_size(self, pool: str) -> tuple[int, int]:
        if pool == TRAIN_POOL:
            return self.study.targets.folds_per_job, self.study.targets.subsets_per_job
        return 1, self.study.evaluations[pool].subsets_per_job

    def _sampling(self, pool: str) -> dict[str, Any]:
        sizes: Any = self.study.targets if pool == TRAIN_POOL else self.study.evaluations[pool]
        one_evaluation = isinstance(sizes, Evaluation)
        return {
            "seed": self.study.seed,
            "pool": pool,
            "pool_examples": None if one_evaluation else sizes.pool_examples,
            "validation_examples": sizes.tests if one_evaluation else sizes.validation_examples,
            "evaluated_examples": sizes.tests if one_evaluation else sizes.evaluated_examples,
            "subset_examples": sizes.subset_examples,
        }

    def _lm_source(self, lm: str = "") -> dict[str, Any]:
        settings = self.language_model(lm)
        return {
            "model": settings.model,
            "revision": settings.revision,
            "trust_remote_code": settings.trust_remote_code,
        }

    def _resolve_config(self) -> dict[str, Any]:
        return {"study": self.study.model_dump(mode="json")}

    def _prepare_corpus(self, corpus: str) -> dict[str, Any]:
        return self.study.corpora[corpus].model_dump(mode="json", exclude={"without"})

    def _pretrain_base_lm(self, lm: str = "") -> dict[str, Any]:
        settings = self.language_model(lm)
        values = settings.pretraining.model_dump(exclude={"corpus"})
        return {**values, "max_tokens": settings.max_tokens, "seed": self.study.seed}

    def _tokenize_corpus(self, corpus: str, lm: str = "") -> dict[str, Any]:
        settings = self.language_model(lm)
        limits = {"max_tokens": settings.max_tokens, "chat_template": settings.chat_template}
        return {**self._lm_source(lm), **limits}

    def _sample_subsets(self, pool: str) -> dict[str, Any]:
        folds, subsets, _ = self.runs(pool)
        return {"sampling": self._sampling(pool), "folds": folds, "subsets_per_fold": subsets}

    def _finetune_shard(self, pool: str, block: str) -> dict[str, Any]:
        folds, subsets, seeds = self.runs(pool)
        folds_per_job, subsets_per_job = self._job_size(pool)
        fold_block, subset_block = (int(part[1:]) for part in block.split("_"))
        first_fold, first_subset = fold_block * folds_per_job, subset_block * subsets_per_job
        return {
            **self._lm_source(self.language_model_of(pool)),
            "sampling": self._sampling(pool),
            "folds": [first_fold, min(first_fold + folds_per_job, folds)],
            "indexes": [first_subset, min(first_subset + subsets_per_job, subsets)],
            "seeds": seeds,
            "finetuning": self._finetuning(),
        }

    def _finetuning(self) -> dict[str, Any]:
        settings = self.study.finetuning
        of_deepspeed = {"engine", "zero_stage", "offload", "processes"}
        values = settings.model_dump(exclude={"max_diverged_share", *of_deepspeed})
        if settings.engine == "native":
            return values
        return {**values, "zero": {"stage": settings.zero_stage, "offload": settings.offload}}

    def _collect_targets(self, pool: str) -> dict[str, Any]:
        folds, subsets, seeds = self.runs(pool)
        return {
            "folds": folds,
            "subsets_per_fold": subsets,
            "seeds": seeds,
            "max_diverged_share": self.study.finetuning.max_diverged_share,
        }

    def _init_encoder(self, variant: str = "") -> dict[str, Any]:
        return {**self._encoder(variant).model_dump(), "seed": self.study.seed}

    def _take_encoder(self) -> dict[str, Any]:
        return self.study.encoder.model_dump(include={"model", "revision", "trust_remote_code", "max_tokens"})

    def _train_encoder(self, variant: str = "") -> dict[str, Any]:
        return {
            **self._encoder_training(variant).model_dump(exclude={"processes"}),
            **self._encoder_text(variant),
            "seed": self.study.seed,
        }

    def _encoder_text(self, variant: str) -> dict[str, Any]:
        encoder = self._encoder(variant)
        return {"prompt_words": encoder.prompt_words, "max_tokens": encoder.max_tokens}

    def _embed_corpus(self, encoder: str, corpus: str, part: str = "") -> dict[str, Any]:
        variant = encoder.partition("@")[2]
        training = self._encoder_training(variant)
        return {
            **self._part(part),
            **self._encoder_text(variant),
            "embedding_precision": self.study.scoring.embedding_precision,
            "chunk_tokens": training.chunk_tokens,
            "precision": training.precision,
        }

    def _part(self, part: str) -> dict[str, Any]:
        return {"part": [int(number) for number in part.removeprefix(".").split("of")]} if part else {}

    def _warmup_finetuning(self) -> dict[str, Any]:
        warmup = self.study.warmup
        changes = {"epochs": warmup.epochs, "learning_rate": warmup.learning_rate}
        values = self._finetuning() | {name: value for name, value in changes.items() if value is not None}
        return {name: value for name, value in values.items() if name != "zero"}

    def _warmup_lm(self) -> dict[str, Any]:
        return {
            **self._lm_source(),
            "examples": self.study.warmup.examples,
            "finetuning": self._warmup_finetuning(),
            "seed": self.study.seed,
        }

    def _fit_method(self, method: str) -> dict[str, Any]:
        own = self.own_of(method)
        return {
            **self._warmup_lm(),
            "measured_examples": self.study.warmup.measured_examples,
            "module": own.module,
            "settings": dict(own.settings),
        }

    def _embed_by_method(self, embedding: str, corpus: str, part: str) -> dict[str, Any]:
        own = self.own_of(embedding)
        return {
            **self._part(part),
            "lm_source": self._lm_source() if own.language_model else None,
            "module": own.module,
            "settings": dict(own.settings),
            "for_tests": embedding.endswith(OF_TESTS),
            "prompt_words": self.study.encoder.prompt_words,
            "batch_tokens": self.study.finetuning.step_tokens,
            "precision": self.study.finetuning.precision,
            "embedding_precision": self.study.scoring.embedding_precision,
        }

    def _score_pairs(self, method: str, evaluation: str) -> dict[str, Any]:
        return {
            "method": method,
            "poolings": self.poolings_of(method),
            "evaluation": evaluation,
            "seed": self.study.seed,
            "top": self.study.scoring.top,
            "tile_examples": self.study.scoring.tile_examples,
        }

    def _score_part(self, method: str, evaluation: str, part: str) -> dict[str, Any]:
        return {
            "method": method,
            "poolings": self.poolings_of(method),
            "part": f"{evaluation} {part.removeprefix('.')}",
            "top": self.study.scoring.top,
            "tile_examples": self.study.scoring.tile_examples,
        }

    def _merge_scores(self, method: str, evaluation: str) -> dict[str, Any]:
        return {
            "method": method,
            "poolings": self.poolings_of(method),
            "evaluation": evaluation,
            "top": self.study.scoring.top,
        }

    def _check_leaks(self) -> dict[str, Any]:
        return {"near_duplicate": self.study.judging.near_duplicate}

    def _evaluate_lds(self) -> dict[str, Any]:
        return {
            "bootstrap": self.study.judging.bootstrap,
            "confidence": self.study.judging.confidence,
            "seed": self.study.seed,
        }

    def _package_encoder(self) -> dict[str, Any]:
        return {"layout": self.study.release.layout}

    def _push_encoder(self) -> dict[str, Any]:
        return {"hub": self.study.release.hub}

    def _draw_base(self, experiment: str) -> dict[str, Any]:
        settings = self.experiment(experiment)
        return {"seed": self.study.seed, "experiment": experiment, "base_examples": settings.base_examples}

    def _draw_leave_out(self) -> dict[str, Any]:
        settings = self.study.experiments.leave_out
        return {"seed": self.study.seed, **settings.model_dump(include={"sizes", "groups", "seeds"})}

    def _draw_removal(self) -> dict[str, Any]:
        settings = self.study.experiments.removal
        return {"seed": self.study.seed, **settings.model_dump(include={"sizes", "tests", "random_draws", "seeds"})}

    def _draw_selection(self) -> dict[str, Any]:
        settings = self.study.experiments.selection
        return {"seed": self.study.seed, **settings.model_dump(include={"examples", "tasks", "full_data", "seeds"})}

    def _finetune_runs(self, experiment: str, job: str) -> dict[str, Any]:
        settings = self.experiment(experiment)
        return {
            **self._lm_source(self.language_model_of(settings.evaluation)),
            "experiment": experiment,
            "job": int(job),
            "jobs": settings.jobs,
            "seed": self.study.seed,
            "new_tokens": getattr(settings, "new_tokens", None),
            "finetuning": self._finetuning(),
        }

    def _judged_experiment(self, experiment: str) -> dict[str, Any]:
        return {
            "evaluation": self.experiment(experiment).evaluation,
            "bootstrap": self.study.judging.bootstrap,
            "confidence": self.study.judging.confidence,
            "seed": self.study.seed,
            "max_diverged_share": self.study.finetuning.max_diverged_share,
        }

    def _evaluate_leave_out(self) -> dict[str, Any]:
        return self._judged_experiment("leave_out")

    def _evaluate_removal(self) -> dict[str, Any]:
        return self._judged_experiment("removal")

    def _evaluate_selection(self) -> dict[str, Any]:
        return self._judged_experiment("selection")

    def _evaluate_classification(self) -> dict[str, Any]:
        return {
            "evaluations": {name: list(self.corpora_of(name)) for name in self.classified()},
            "confidence": self.study.judging.confidence,
        }

    def _evaluate_amortisation(self) -> dict[str, Any]:
        return {
            "evaluation": self.study.experiments.amortisation.evaluation,
            "trained": self.trained_methods(),
            "benchmarks": f"results/{self.study.run}/benchmarks",
            "fixed": {method: self.fixed_costs(method) for method in self.study.scoring.methods},
        }

    def trained_methods(self) -> list[str]:
        """Return the methods that read a trained encoder."""
        return [name for name in self.study.scoring.methods if (self.method(name).encoder or "").startswith("trained")]

    def fixed_costs(self, method: str) -> list[str]:
        """Return the benchmark files, as patterns, of what a method costs once, whatever it scores then."""
        known = self.method(method)
        if known.is_fitted:
            return ["warmup_lm/*.tsv"] * (known.own.language_model == "warm") + [f"fit_method/{method}.tsv"]
        encoder = known.encoder
        if not encoder:
            return []
        kind, at, name = encoder.partition("@")
        start = f"init_encoder/study{at + name if self.starts_anew(at + name) else ''}.tsv"
        if kind == "untrained":
            return [start]
        targets = [f"{stage}/{TRAIN_POOL}.tsv" for stage in ("sample_subsets", "collect_targets")]
        return [*targets, f"finetune_shard/{TRAIN_POOL}/*.tsv", start, f"train_encoder/study{at}{name}.tsv"]

    def _evaluate_transfer(self) -> dict[str, Any]:
        transfer = self.study.experiments.transfer
        trained = self.trained_methods()
        values = {"evaluation": transfer.evaluation, "home": transfer.home}
        return {**values, "method": (trained or self.study.scoring.methods)[0], "trained": trained}

    def _write_report(self) -> dict[str, Any]:
        folder = f"results/{self.study.run}"
        return {**self.study.report.model_dump(), "benchmarks": f"{folder}/benchmarks", "plan": f"{folder}/plan.json"}

    def _run_pilot(self) -> dict[str, Any]:
        return self.pilot_settings()

    def pilot_settings(self) -> dict[str, Any]:
        """Return the values that a pilot depends on: not how many folds, evaluation subsets or jobs there are."""
        return {
            "language_model": self.study.language_model.model_dump(),
            "runs": self._pilot_runs(),
            "training": self._pilot_training() if self.study.targets else None,
            "encoder": self._init_encoder() if self.study.targets else self._take_encoder(),
            "prompt_words": self.study.encoder.prompt_words,
            "chunk_tokens": self.study.encoder_training.chunk_tokens,
            "precision": self.study.encoder_training.precision,
            "tests_only": {name: self._only_tests(name) for name in self.study.corpora},
            "seed": self.study.seed,
        }

    def _pilot_runs(self) -> dict[str, Any] | None:
        if not self.study.uses_lm:
            return None
        sizes = self._sampling(self.pools[0]) if self.pools else {}
        return {
            "finetuning": self._finetuning(),
            "subset_examples": sizes.get("subset_examples", self.study.finetuning.batch_examples),
            "judged_examples": sizes.get("evaluated_examples"),
        }

    def _pilot_training(self) -> dict[str, Any]:
        sizes, training = self.study.targets, self.study.encoder_training
        return {
            "target_corpus": sizes.corpus,
            "step": {
                "pool_examples": sizes.pool_examples,
                "subset_examples": sizes.subset_examples,
                "subsets": min(training.subsets_per_step, sizes.subsets_per_fold),
                "tests": min(training.examples_per_step, sizes.evaluated_examples),
                "subsets_per_fold": sizes.subsets_per_fold,
                "tests_per_fold": sizes.evaluated_examples,
            },
            "objective": training.model_dump(
                include={"pooling", "smallest_difference", "largest_weight", "learned_scale"}
            ),
        }

    def _only_tests(self, corpus: str) -> bool:
        evaluations = self.study.evaluations.values()
        learned_from = {self.study.targets.corpus} if self.study.targets else set()
        return corpus in {one.test for one in evaluations} - {one.train for one in evaluations} - learned_from

    def _write_plan(self) -> dict[str, Any]:
        return {"study": self.study.model_dump(mode="json")}
