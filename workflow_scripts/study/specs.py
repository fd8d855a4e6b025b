"""The spec of each job: the values that its stage is called with.

Imported while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workflow_scripts.study.evaluation_sections import Evaluation
from workflow_scripts.study.method_costs import fitting_jobs, fixed_costs, warmup_jobs
from workflow_scripts.study.methods import OF_TESTS, methods_of
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.stage_versions import STAGE_VERSIONS

# Stages that decide the numbers of an encoder.
STAGES_OF_ENCODER = (
    *("prepare_corpus", "pretrain_base_lm", "tokenize_corpus", "sample_subsets", "finetune_shard", "collect_targets"),
    *("predict_targets", "init_encoder", "train_encoder"),
)
# Stages that compute on a GPU, where a job has one. For others `deterministic` changes nothing.
COMPUTED_ON_GPUS = (
    "pretrain_base_lm",
    "finetune_shard",
    "finetune_runs",
    "init_encoder",
    "train_encoder",
    "embed_corpus",
    "warmup_lm",
    "fit_method",
    "embed_by_method",
    "measure_losses",
    "score_pairs",
    "score_part",
    "choose_pooling",
    "predict_targets",
    "run_pilot",
)


# Stages that read the training corpus and the tests of an evaluation, which a wildcard names, or an experiment, whose
# name is a wildcard where it isn't here.
_OF_EVALUATION = ("sample_subsets", "finetune_shard", "score_pairs", "score_part", "score_blend")
_OF_EXPERIMENT = {
    "draw_base": "",
    "finetune_runs": "",
    "draw_selection": "selection",
    "draw_curated_data": "curated_data",
    "damage_pool": "detection",
    "evaluate_detection": "detection",
}


class StageSpecs:
    """The specs of a study's jobs.

    Parameters
    ----------
    plan: what the study runs.
    """

    def __init__(self, plan: StudyPlan):
        self.plan, self.study = plan, plan.study

    def spec(self, stage: str, wildcards: Mapping[str, str]) -> dict[str, Any]:
        """Return the values that a job's stage is called with, its `version` and its inputs' `roles`, sorted by name.

        They are all that decides its result besides its input files, so a changed value reruns only this job and those
        that depend on it.

        Parameters
        ----------
        stage: name of the stage, a key of `STAGE_VERSIONS`.
        wildcards: wildcards of the job's rule, by name.
        """
        values = getattr(self, f"_{stage}")(**wildcards)
        if self.study.deterministic and stage in COMPUTED_ON_GPUS:
            values = {**values, "deterministic": True}
        if roles := self._roles(stage, wildcards):
            values = {**values, "roles": roles}
        return dict(sorted({"version": STAGE_VERSIONS[stage], **values}.items()))

    def base_spec(self, wildcards: Mapping[str, str]) -> dict[str, Any]:
        """Return the spec of `score_pairs` for the base set of an experiment.

        Parameters
        ----------
        wildcards: has `method` and `evaluation`; others are ignored.
        """
        return self.spec("score_pairs", {name: wildcards[name] for name in ("method", "evaluation")})

    def _roles(self, stage: str, wildcards: Mapping[str, str]) -> dict[str, Any]:
        """Return which input of a job is which, where two could change places.

        Snakemake compares the inputs of two runs as a sorted list, so a change of their roles alone reruns nothing.
        """
        if stage in _OF_EVALUATION:
            evaluation = wildcards.get("evaluation") or wildcards["pool"]
        elif stage in _OF_EXPERIMENT:
            evaluation = self.plan.experiment(_OF_EXPERIMENT[stage] or wildcards["experiment"]).evaluation
        elif stage == "select_examples":
            evaluation = self.study.curation[wildcards["curation"]].evaluation
        else:
            return {}
        if evaluation not in self.study.evaluations:
            return {}  # the folds of an encoder, which have one corpus
        roles: dict[str, Any] = {"corpora": list(self.plan.corpora_of(evaluation))}
        if stage in ("draw_selection", "evaluate_detection"):
            # Their tables have differences from the first method.
            roles["methods"] = self.plan.experiment_methods(_OF_EXPERIMENT[stage])
        return roles

    def _sampling(self, pool: str) -> dict[str, Any]:
        from_targets = self.plan.draws_from_targets(pool)
        sizes: Any = self.study.targets if from_targets else self.study.evaluations[pool]
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
        settings = self.plan.language_model(lm)
        return {
            "model": settings.model,
            "revision": settings.revision,
            "trust_remote_code": settings.trust_remote_code,
        }

    def _resolve_config(self) -> dict[str, Any]:
        # Where one of these computes something else, what is recorded of the code is recorded again.
        stages = {stage: STAGE_VERSIONS[stage] for stage in STAGES_OF_ENCODER}
        return {"study": self._study_values(), "stages": stages}

    def _study_values(self) -> dict[str, Any]:
        # As the stages' own specs: what is off has no part in them, or a new key would recompute finished studies.
        off: dict[str, Any] = {key: True for key in ("deterministic", "curation") if not getattr(self.study, key)}
        off["track"] = True  # whatever it is, it decides no number
        absent = {name for name in ("curated_data", "detection") if getattr(self.study.experiments, name) is None}
        if absent:
            off["experiments"] = absent
        if of_all_tests := [name for name, one in self.study.curation.items() if one.tests == "all"]:
            off["curation"] = {name: {"tests"} for name in of_all_tests}
        if not self.study.scoring.blends:
            off["scoring"] = {"blends"}
        if self.plan.surrogate is None:
            off |= {"targets": {"surrogate"}, "encoder_training": {"surrogate_share"}}
        return self.study.model_dump(mode="json", exclude=off)

    def _prepare_corpus(self, corpus: str) -> dict[str, Any]:
        return self.study.corpora[corpus].model_dump(mode="json", exclude={"without"})

    def _resolve_dataset(self, dataset: str) -> dict[str, Any]:
        one = self.plan.hub_datasets[dataset]
        return {"dataset": one.name, "revision": one.revision}

    def _fetch_model(self, snapshot: str) -> dict[str, Any]:
        one = self.plan.hub_models[snapshot]
        return {"model": one.model, "revision": one.revision, "trust_remote_code": one.trust_remote_code}

    def _pretrain_base_lm(self, lm: str = "") -> dict[str, Any]:
        settings = self.plan.language_model(lm)
        values = settings.pretraining.model_dump(exclude={"corpus"})
        return {**values, "max_tokens": settings.max_tokens, "seed": self.study.seed}

    def _tokenize_corpus(self, corpus: str, lm: str = "") -> dict[str, Any]:
        settings = self.plan.language_model(lm)
        limits = {"max_tokens": settings.max_tokens, "chat_template": settings.chat_template}
        return {**self._lm_source(lm), **limits}

    def _sample_subsets(self, pool: str) -> dict[str, Any]:
        folds, subsets, _ = self.plan.runs(pool)
        return {"sampling": self._sampling(pool), "folds": folds, "subsets_per_fold": subsets}

    def _finetune_shard(self, pool: str, block: str) -> dict[str, Any]:
        folds, subsets, seeds = self.plan.runs(pool)
        folds_per_job, subsets_per_job = self.plan.job_size(pool)
        fold_block, subset_block = (int(part[1:]) for part in block.split("_"))
        first_fold, first_subset = fold_block * folds_per_job, subset_block * subsets_per_job
        return {
            **self._lm_source(self.plan.language_model_of(pool)),
            "sampling": self._sampling(pool),
            "folds": [first_fold, min(first_fold + folds_per_job, folds)],
            "indexes": [first_subset, min(first_subset + subsets_per_job, subsets)],
            "seeds": seeds,
            "finetuning": self.study.finetuning.spec(),
        }

    def _collect_targets(self, pool: str) -> dict[str, Any]:
        folds, subsets, seeds = self.plan.runs(pool)
        return {
            "folds": folds,
            "subsets_per_fold": subsets,
            "seeds": seeds,
            "max_diverged_share": self.study.finetuning.max_diverged_share,
        }

    def _predict_targets(self, pool: str = "", method: str = "") -> dict[str, Any]:
        """Return the values for the folds of `pool`, or for those that weigh `method` in a blend."""
        values: dict[str, Any]
        if method:
            values = {"pooling": self.plan.blended_pooling(method), "folds": self.plan.held_back_folds(method)}
        else:
            assert self.plan.surrogate is not None, f"nothing predicts the targets of {pool}"
            method = self.plan.surrogate.method
            values = {"pooling": self.plan.poolings_of(method)[0]}
        return {
            **values,
            "method": method,
            "seed": self.study.seed,
            "tile_examples": self.study.scoring.tile_examples,
            **self._unstored(method),
        }

    def _weigh_blend(self, blend: str) -> dict[str, Any]:
        methods = methods_of(blend)
        poolings = [self.plan.blended_pooling(method) for method in methods]
        return {"blend": blend, "poolings": poolings, "folds": min(map(self.plan.held_back_folds, methods))}

    def _score_blend(self, blend: str, evaluation: str) -> dict[str, Any]:
        return {
            "blend": blend,
            "evaluation": evaluation,
            "seed": self.study.seed,
            "top": self.study.scoring.top,
            "tile_examples": self.study.scoring.tile_examples,
        }

    def _init_encoder(self, variant: str = "") -> dict[str, Any]:
        source = {"lm_source": self._lm_source()} if self.plan.reads_tokens_of_lm(variant) else {}
        return {"settings": self.plan.encoder(variant).spec(), **source, "seed": self.study.seed}

    def _take_encoder(self) -> dict[str, Any]:
        return self.study.encoder.model_dump(include={"model", "revision", "trust_remote_code", "max_tokens"})

    def _train_encoder(self, variant: str = "") -> dict[str, Any]:
        training = self.plan.encoder_training(variant).spec()
        return {"training": training, **self._encoder_text(variant), "seed": self.study.seed}

    def _encoder_text(self, variant: str) -> dict[str, Any]:
        encoder = self.plan.encoder(variant)
        return {"prompt_words": encoder.prompt_words, "max_tokens": encoder.max_tokens}

    def _embed_corpus(self, encoder: str, corpus: str, part: str = "") -> dict[str, Any]:
        variant = encoder.partition("@")[2]
        training = self.plan.encoder_training(variant)
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
        values = self.study.finetuning.spec() | {name: value for name, value in changes.items() if value is not None}
        # The warm-up has one process, whose LM fits one GPU: the gradient of each example is taken by itself.
        return {name: value for name, value in values.items() if name not in ("engine", "zero_stage", "offload")}

    def _warmup_lm(self) -> dict[str, Any]:
        return {
            **self._lm_source(),
            "examples": self.study.warmup.examples,
            "finetuning": self._warmup_finetuning(),
            "seed": self.study.seed,
        }

    def _fit_method(self, method: str) -> dict[str, Any]:
        own = self.plan.embedding_spec(method)
        return {
            **self._warmup_lm(),
            "measured_examples": self.study.warmup.measured_examples,
            "module": own.module,
            "settings": dict(own.settings),
        }

    def _embed_by_method(self, embedding: str, corpus: str, part: str) -> dict[str, Any]:
        own, for_tests = self.plan.embedding_spec(embedding), embedding.endswith(OF_TESTS)
        return {
            **self._part(part),
            "lm_source": self._lm_source() if own.language_model else None,
            "module": own.module,
            "settings": dict(own.settings),
            "for_tests": for_tests,
            "prompt_words": self.study.encoder.prompt_words,
            "batch_tokens": self.study.finetuning.step_tokens,
            "precision": self.study.finetuning.precision,
            "embedding_precision": (
                "binary" if own.binary and not for_tests else self.study.scoring.embedding_precision
            ),
        }

    def _score_pairs(self, method: str, evaluation: str) -> dict[str, Any]:
        return {
            "method": method,
            "poolings": self.plan.poolings_of(method),
            "evaluation": evaluation,
            "seed": self.study.seed,
            "top": self.study.scoring.top,
            "tile_examples": self.study.scoring.tile_examples,
            **self._unstored(method),
        }

    def _unstored(self, method: str) -> dict[str, Any]:
        """Return how the jobs that score compute a method's embeddings; nothing for one that stores them."""
        if not self.plan.method(method).is_unstored:
            return {}
        values = self._embed_by_method(method, corpus="", part="")
        names = ("module", "settings", "lm_source", "batch_tokens", "precision")
        return {"unstored": {name: values[name] for name in names}}

    def _score_part(self, method: str, evaluation: str, part: str) -> dict[str, Any]:
        return {
            "method": method,
            "poolings": self.plan.poolings_of(method),
            "part": f"{evaluation} {part.removeprefix('.')}",
            "top": self.study.scoring.top,
            "tile_examples": self.study.scoring.tile_examples,
            **self._unstored(method),
            **({"part_numbers": self._part(part)["part"]} if self.plan.method(method).is_unstored else {}),
        }

    def _merge_scores(self, method: str, evaluation: str) -> dict[str, Any]:
        return {
            "method": method,
            "poolings": self.plan.poolings_of(method),
            "evaluation": evaluation,
            "top": self.study.scoring.top,
        }

    def _choose_pooling(self, method: str) -> dict[str, Any]:
        return {
            "method": method,
            "folds": self.plan.held_back_folds(method),
            "seed": self.study.seed,
            "tile_examples": self.study.scoring.tile_examples,
            **self._unstored(method),
        }

    def _check_leaks(self) -> dict[str, Any]:
        return {"near_duplicate": self.study.judging.near_duplicate}

    def _check_labels(self) -> dict[str, Any]:
        return {
            "evaluations": {name: list(self.plan.corpora_of(name)) for name in self.plan.labelled()},
            "classified": self.plan.classified(),
        }

    def _evaluate_lds(self) -> dict[str, Any]:
        rows = [*self.study.scoring.methods, *self.study.scoring.blends]
        return {
            "bootstrap": self.study.judging.bootstrap,
            "confidence": self.study.judging.confidence,
            "seed": self.study.seed,
            "benchmarks": f"results/{self.study.run}/benchmarks",
            "warmup": {row: warmup_jobs(self.plan, row) for row in rows},
            "fitting": {row: fitting_jobs(self.plan, row) for row in rows},
            # The stage's default is named by no spec, or finished studies would be evaluated again.
            **({"main": main} if (main := self.plan.main_method()) != "airrep" else {}),
            **({"averaged": averaged} if (averaged := self.plan.averaged_evaluations) else {}),
        }

    def _evaluate_label_influence(self) -> dict[str, Any]:
        methods = self.study.scoring.methods
        read = {
            method: [train, self.plan.embedding_of(method, for_tests=True)]
            if (train := self.plan.embedding_of(method))
            else None
            for method in methods
        }
        return {
            "evaluations": {name: [one.train, one.test] for name, one in self.study.evaluations.items()},
            "methods": read,
            "texts": [name for name in methods if read[name] is None and not self.plan.method(name).is_unstored],
            "bootstrap": self.study.judging.bootstrap,
            "confidence": self.study.judging.confidence,
            "seed": self.study.seed,
            "tile_examples": self.study.scoring.tile_examples,
        }

    def _package_encoder(self) -> dict[str, Any]:
        return {"layout": self.study.release.layout}

    def _push_encoder(self) -> dict[str, Any]:
        return {"hub": self.study.release.hub}

    def _draw_base(self, experiment: str) -> dict[str, Any]:
        settings = self.plan.experiment(experiment)
        return {"seed": self.study.seed, "experiment": experiment, "base_examples": settings.base_examples}

    def _draw_leave_out(self) -> dict[str, Any]:
        settings = self.plan.experiment("leave_out")
        return {"seed": self.study.seed, **settings.model_dump(include={"sizes", "groups", "seeds"})}

    def _draw_removal(self) -> dict[str, Any]:
        settings = self.plan.experiment("removal")
        return {"seed": self.study.seed, **settings.model_dump(include={"sizes", "tests", "random_draws", "seeds"})}

    def _draw_selection(self) -> dict[str, Any]:
        settings = self.plan.experiment("selection")
        return {"seed": self.study.seed, **settings.model_dump(include={"examples", "tasks", "full_data", "seeds"})}

    def _finetune_runs(self, experiment: str, job: str) -> dict[str, Any]:
        settings = self.plan.experiment(experiment)
        return {
            **self._lm_source(self.plan.language_model_of(settings.evaluation)),
            "experiment": experiment,
            "job": int(job),
            "jobs": settings.jobs,
            "seed": self.study.seed,
            "new_tokens": getattr(settings, "new_tokens", None),
            "finetuning": self.study.finetuning.spec(),
        }

    def _experiment_statistics(self, experiment: str) -> dict[str, Any]:
        return {
            "evaluation": self.plan.experiment(experiment).evaluation,
            "bootstrap": self.study.judging.bootstrap,
            "confidence": self.study.judging.confidence,
            "seed": self.study.seed,
            "max_diverged_share": self.study.finetuning.max_diverged_share,
        }

    def _evaluate_leave_out(self) -> dict[str, Any]:
        return self._experiment_statistics("leave_out")

    def _evaluate_removal(self) -> dict[str, Any]:
        return self._experiment_statistics("removal")

    def _evaluate_selection(self) -> dict[str, Any]:
        return self._experiment_statistics("selection")

    def _evaluate_classification(self) -> dict[str, Any]:
        return {
            "evaluations": {name: list(self.plan.corpora_of(name)) for name in self.plan.classified()},
            "confidence": self.study.judging.confidence,
        }

    def _evaluate_amortisation(self) -> dict[str, Any]:
        return {
            "evaluation": self.plan.experiment("amortisation").evaluation,
            "trained": self.plan.trained_methods(),
            "benchmarks": f"results/{self.study.run}/benchmarks",
            "fixed": {method: fixed_costs(self.plan, method) for method in self.study.scoring.methods},
        }

    def _evaluate_transfer(self) -> dict[str, Any]:
        transfer = self.plan.experiment("transfer")
        trained = self.plan.trained_methods()
        values = {"evaluation": transfer.evaluation, "home": transfer.home}
        blends = [blend for blend in self.study.scoring.blends if set(methods_of(blend)) & set(trained)]
        return {**values, "method": self.plan.main_method(), "trained": [*trained, *blends]}

    def _damage_pool(self) -> dict[str, Any]:
        settings = self.plan.experiment("detection")
        return {"seed": self.study.seed, **settings.model_dump(include={"share", "damages", "trigger"})}

    def _score_harm(self, method: str) -> dict[str, Any]:
        return {"method": method, "seed": self.study.seed, "tile_examples": self.study.scoring.tile_examples}

    def _measure_losses(self, reader: str, corpus: str) -> dict[str, Any]:
        # Which LM and which corpus it is decide the inputs.
        finetuning = self.study.finetuning
        return {
            **self._lm_source(),
            "evaluation_tokens": finetuning.evaluation_tokens,
            "precision": finetuning.precision,
        }

    def _evaluate_detection(self) -> dict[str, Any]:
        values = self._experiment_statistics("detection")
        return {name: value for name, value in values.items() if name != "max_diverged_share"}

    def _write_report(self) -> dict[str, Any]:
        folder = f"results/{self.study.run}"
        return {**self.study.report.model_dump(), "benchmarks": f"{folder}/benchmarks", "plan": f"{folder}/plan.json"}

    def _run_pilot(self) -> dict[str, Any]:
        return self.pilot_settings()

    def pilot_settings(self) -> dict[str, Any]:
        """Return the values that a pilot depends on.

        The numbers of folds, evaluation subsets and jobs are not among them.
        """
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
        sizes = self._sampling(self.plan.pools[0]) if self.plan.pools else {}
        return {
            "finetuning": self.study.finetuning.spec(),
            "subset_examples": sizes.get("subset_examples", self.study.finetuning.batch_examples),
            "measured_examples": sizes.get("evaluated_examples"),
        }

    def _pilot_training(self) -> dict[str, Any]:
        sizes, training = self.plan.targets, self.study.encoder_training
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
            "objective": training.model_dump(include={"pooling", "min_label_gap", "max_pair_weight", "learned_scale"}),
        }

    def _only_tests(self, corpus: str) -> bool:
        evaluations = self.study.evaluations.values()
        learned_from = {self.study.targets.corpus} if self.study.targets else set()
        return corpus in {one.test for one in evaluations} - {one.train for one in evaluations} - learned_from

    def _write_plan(self) -> dict[str, Any]:
        return {"study": self._study_values()}

    def _select_examples(self, curation: str) -> dict[str, Any]:
        choice = self.study.curation[curation]
        return {
            "choice": choice.spec(),
            "near_duplicate": self.study.judging.near_duplicate if choice.near_duplicates == "once" else None,
            "seed": self.study.seed,
            "tile_examples": self.study.scoring.tile_examples,
        }

    def _original_rows(self, curation: str) -> dict[str, Any]:
        choice = self.study.curation[curation]
        corpus = self.study.corpora[self.study.evaluations[choice.evaluation].train]
        read_again = {"source", "config_name", "split", "revision", "data_files", "columns", "response_turn"}
        origin = corpus.model_dump(mode="json", include=read_again)
        return {"origin": origin, "prefix": choice.prefix}

    def _write_curated(self, curation: str, rows: str, form: str) -> dict[str, Any]:
        return {**self._original_rows(curation), "form": form, "for_review": rows == "review"}

    def _drop_rows(self, curation: str, form: str) -> dict[str, Any]:
        return {**self._original_rows(curation), "form": form}

    def _summarize_curation(self, curation: str) -> dict[str, Any]:
        return {"name": curation, "choice": self.study.curation[curation].spec()}

    def _list_suspects(self, curation: str) -> dict[str, Any]:
        return self._summarize_curation(curation)

    def _draw_curated_data(self) -> dict[str, Any]:
        settings = self.plan.experiment("curated_data")
        return {"seed": self.study.seed, **settings.model_dump(include={"random_draws", "seeds"})}

    def _evaluate_curated_data(self) -> dict[str, Any]:
        return self._experiment_statistics("curated_data")
