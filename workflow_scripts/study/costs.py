"""The cost of a study: the units of work of each stage, times the seconds that a unit takes.

Units and seconds come from a pilot (`run_pilot`). This is only arithmetic on them; it also runs while Snakemake parses,
so nothing heavy is imported.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.specs import StageSpecs

Work = Mapping[str, float]  # a unit, as `Pilot.seconds` names it -> how many
# The units of a job's start-up: a job that starts, and the libraries of a model that it loads.
START_UP = ("job_start", "model_start")

# These run on a GPU where there is one.
GPU_STAGES = ("pretrain_base_lm", "finetune_shard", "train_encoder", "embed_corpus")
# Two starts of Snakemake in each Slurm job, and the time until squeue is asked whether it has ended. The wait in
# the queue can't be predicted.
SECONDS_OF_A_CLUSTER_JOB = 40.0
GOOD_JOB_SECONDS = 1800.0

# Bytes on disk: a token; a loss in its block; a target; a kept score; a group score; the text of a row that the pilot
# didn't read. That of a target is measured (benchmarks/storage.py), the others are guesses.
BYTES = {"token": 2.0, "loss": 5.0, "target": 6.8, "score": 8.0, "group": 6.0, "row": 500.0}
FILES_BYTES = 3e6  # report, logs, tables of the evaluation


def parameters_in_name(model: str) -> float | None:
    """Return the number of parameters in a model's name, e.g. 5e8 for `Qwen/Qwen2.5-0.5B`; None if it has none."""
    named = re.search(r"(\d+(?:\.\d+)?)[bB]\b", model)
    return float(named.group(1)) * 1e9 if named else None


@dataclass(frozen=True)
class CorpusFacts:
    """Size of a corpus.

    Parameters
    ----------
    rows: number of examples.
    lm_tokens: mean tokens of an example for the LM.
    encoder_tokens: mean tokens of an example for the encoder.
    row_bytes: mean bytes of an example on disk.
    """

    rows: int
    lm_tokens: float
    encoder_tokens: float
    row_bytes: float


@dataclass(frozen=True)
class Pilot:
    """What the pilot measured or assumed.

    Parameters
    ----------
    hardware: description of the machine.
    gpus: number of GPUs that the GPU stages have; 0 if they run on the CPU.
    seconds: seconds that one unit of work takes, by the unit's name, e.g. `trained_token`.
    assumed_units: names of the units whose seconds were assumed, not measured.
    assumptions: what was assumed, as sentences.
    corpora: size of each corpus, by name.
    lm_parameters: number of parameters of the LM.
    encoder_parameters: number of parameters of the encoder.
    """

    hardware: str
    gpus: int
    seconds: Mapping[str, float]
    assumed_units: tuple[str, ...]
    assumptions: tuple[str, ...]
    corpora: Mapping[str, CorpusFacts]
    lm_parameters: float
    encoder_parameters: float

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU stages are timed, or assumed, on a GPU."""
        return self.gpus > 0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Pilot:
        """Return the pilot that `pilot.json` holds under `found`."""
        return cls(
            **{
                **values,
                "assumed_units": tuple(values["assumed_units"]),
                "assumptions": tuple(values["assumptions"]),
                "corpora": {name: CorpusFacts(**facts) for name, facts in values["corpora"].items()},
            }
        )


@dataclass(frozen=True)
class Concurrency:
    """How many jobs run at a time.

    Parameters
    ----------
    cores: CPU cores of this machine, or of each job on a cluster.
    jobs: number of jobs on a cluster; None for one machine, where as many run as its cores and GPUs allow.
    """

    cores: int
    jobs: int | None = None

    def slots(self, gpus: int, processes: int) -> int:
        """Return how many jobs run at a time.

        Parameters
        ----------
        gpus: number of GPUs that the jobs share; 0 for jobs on cores.
        processes: number of processes, each on a GPU or core of its own, that share one job.
        """
        return self.jobs if self.jobs is not None else max((gpus or self.cores) // processes, 1)


@dataclass(frozen=True)
class StageEstimate:
    """The expected cost of one stage.

    Parameters
    ----------
    stage: name of the stage.
    jobs: number of its jobs.
    processor: `GPU` or `core`, what `hours` are counted in.
    hours: GPU hours or core hours of all jobs.
    seconds: of all jobs, one after the other.
    longest_seconds: of the longest job.
    wall_seconds: until all jobs have ended, if they start at once as slots get free.
    start_up_seconds: of `seconds`, what the start-up of the jobs takes (`core.timing`).
    disk_bytes: size of the files that the stage leaves.
    measured: whether the pilot measured all units of its work.
    """

    stage: str
    jobs: int
    processor: str
    hours: float
    seconds: float
    longest_seconds: float
    wall_seconds: float
    start_up_seconds: float
    disk_bytes: float
    measured: bool


def estimate(plan: StudyPlan, pilot: Pilot, concurrency: Concurrency) -> list[StageEstimate]:
    """Return the expected cost of each stage that the study runs, in the order of the pipeline.

    Parameters
    ----------
    plan: what the study runs.
    pilot: seconds of each unit of work, and sizes of the corpora.
    concurrency: how many jobs run at a time.
    """
    disk = disk_bytes(plan, pilot)
    return [
        _stage_estimate(stage, jobs, plan, pilot, concurrency, disk.get(stage, 0.0))
        for stage, jobs in work(plan, pilot).items()
    ]


def _stage_estimate(
    stage: str, jobs: Sequence[Work], plan: StudyPlan, pilot: Pilot, concurrency: Concurrency, disk: float
) -> StageEstimate:
    processes = sharing_processes(stage, plan, pilot)
    seconds = [job_seconds(job, pilot, processes) for job in jobs]
    on_gpu = pilot.on_gpu and stage in GPU_STAGES
    occupied = occupied_processors(stage, plan, pilot, concurrency)
    overhead = 0.0 if concurrency.jobs is None else SECONDS_OF_A_CLUSTER_JOB
    slots = concurrency.slots(pilot.gpus if on_gpu else 0, occupied)
    return StageEstimate(
        stage=stage,
        jobs=len(jobs),
        processor="GPU" if on_gpu else "core",
        hours=sum(seconds) * occupied / 3600,
        seconds=sum(seconds),
        longest_seconds=max(seconds),
        wall_seconds=makespan([one + overhead for one in seconds], slots),
        start_up_seconds=sum(seconds) - sum(work_seconds(job, pilot, processes) for job in jobs),
        disk_bytes=disk,
        measured=not any(unit in pilot.assumed_units for job in jobs for unit in job),
    )


def occupied_processors(stage: str, plan: StudyPlan, pilot: Pilot, concurrency: Concurrency) -> int:
    """Return how many GPUs or cores a job of `stage` occupies; parameters as in `estimate`."""
    return concurrency.cores if _is_on_all_cores(stage, plan, pilot) else plan.processes(stage)


def sharing_processes(stage: str, plan: StudyPlan, pilot: Pilot) -> int:
    """Return how many times as much as the pilot's one process a job of `stage` has to compute with.

    Processes on the cores of one job share what the pilot had, too. Parameters as in `estimate`.
    """
    return 1 if _is_on_all_cores(stage, plan, pilot) else plan.processes(stage)


def _is_on_all_cores(stage: str, plan: StudyPlan, pilot: Pilot) -> bool:
    # As rules/common.smk has it (`threads_of_gpu_job`, `threads_of_encoder`).
    on_all_cores = stage == "pretrain_base_lm" or (stage in ("train_encoder", "embed_corpus") and plan.has_layers)
    return on_all_cores and not (pilot.on_gpu and stage in GPU_STAGES)


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Return the seconds until the last job has ended, if each starts as soon as one of `slots` is free."""
    ends = [0.0] * max(min(slots, len(seconds)), 1)
    for one in seconds:
        heapq.heappush(ends, heapq.heappop(ends) + one)
    return max(ends)


def work(plan: StudyPlan, pilot: Pilot) -> dict[str, list[Work]]:
    """Return the work of each job, by stage in the order of the pipeline: how many of each unit it does."""
    study, start, model = plan.study, {"job_start": 1}, {"job_start": 1, "model_start": 1}
    tests = {name: _measured(plan, pilot, name) for name in study.evaluations}
    pairs = {name: pilot.corpora[one.train].rows * tests[name] for name, one in study.evaluations.items()}
    parts = {name: len(plan.parts_of(one.train)) for name, one in study.evaluations.items()}
    of_parts, whole = (plan.methods_scored(in_parts=in_parts, stored=True) for in_parts in (True, False))
    jobs: dict[str, list[Work]] = {
        "prepare_corpus": [{**start, "prepared_row": _rows_read(plan, pilot, name)} for name in study.corpora],
        "resolve_config": [model],
        "pretrain_base_lm": [_pretraining_work(plan)] if plan.has_builtin_lm else [],
        "tokenize_corpus": [{**model, "tokenized_row": pilot.corpora[name].rows} for name in plan.tokenized_corpora()],
        "sample_subsets": [start] * len(plan.drawn_pools),
        "finetune_shard": [job for pool in plan.pools for job in finetuning_work(plan, pilot, pool)],
        "collect_targets": [start] * len(plan.pools),
        **_encoder_work(plan, pilot, sum(tests.values())),
        "embed_corpus": [
            {**model, "embedded_token": pilot.corpora[name].rows * pilot.corpora[name].encoder_tokens / number}
            for encoder in _encoders(plan)
            for name in _embedded(plan, encoder)
            for number in [len(plan.parts_of(name))]
            for _ in range(number)
        ],
        "score_pairs": [
            {**(model if plan.embedding_of(method) else start), "scored_pair": pairs[name]}
            for name in pairs
            for method in whole
        ],
        "score_part": [
            {**model, "scored_pair": pairs[name] / parts[name]}
            for name in pairs
            for _ in of_parts
            for _ in range(parts[name])
        ],
        "merge_scores": [start] * (len(pairs) * len(plan.methods_scored(in_parts=True))),
        "evaluate_lds": [{**start, "bootstrapped_pair": _bootstrapped_pairs(plan, tests)}]
        if plan.lds_evaluations
        else [],
        # Methods that score texts score once more; for those that embed, two mean embeddings are as good.
        "evaluate_label_influence": [{**start, "scored_pair": sum(pairs.values()) * _text_methods(plan)}],
        "write_report": [start],
    }
    return {stage: of_stage for stage, of_stage in jobs.items() if of_stage}


def _text_methods(plan: StudyPlan) -> int:
    return sum(plan.embedding_of(method) is None for method in plan.methods_scored(in_parts=False, stored=True))


def _rows_read(plan: StudyPlan, pilot: Pilot, corpus: str) -> float:
    """Return the rows of a corpus's source: all of them are read, even for a part of it."""
    first, last = plan.study.corpora[corpus].part
    return pilot.corpora[corpus].rows / (last - first)


def _pretraining_work(plan: StudyPlan) -> Work:
    steps = plan.study.language_model.pretraining.steps
    return {"job_start": 1, "model_start": 1, "pretraining_start": 1, "pretraining_step": steps}


def _encoder_work(plan: StudyPlan, pilot: Pilot, tests: int) -> dict[str, list[Work]]:
    """Return the work of the stages that make the encoder; one that was trained elsewhere is only copied."""
    targets, start = plan.study.targets, {"job_start": 1, "model_start": 1}
    if targets is None:
        return {"take_encoder": [{**start, "encoder_start": 1}]}
    rows = pilot.corpora[targets.corpus].rows
    return {
        "check_leaks": [{"job_start": 1, "compared_row": rows * len(plan.study.evaluations) + tests}],
        "init_encoder": [{**start, "encoder_start": 1} for _ in plan.initialized_variants()],
        # The study's own comes first.
        "train_encoder": [
            {**start, "encoder_tokenized_row": rows, **_training_work(plan, variant)}
            for variant in plan.trained_variants()
        ],
        "package_encoder": [start],
    }


def _training_work(plan: StudyPlan, variant: str) -> Work:
    _, training = plan.study.encoder_of(variant.removeprefix("@") or None)
    validations = 1 + math.ceil(training.steps / training.validate_every)
    return {"encoder_step": training.steps, "validated_fold": validations * training.validation_folds}


def _encoders(plan: StudyPlan) -> set[str]:
    """Return the encoders whose embeddings the study's methods read, `trained` and `untrained` among them."""
    return {encoder for method in plan.study.scoring.methods if (encoder := plan.method(method).encoder)}


def _embedded(plan: StudyPlan, encoder: str) -> list[str]:
    """Return the corpora that an encoder embeds: those of the targets too, if a method of it scores them."""
    corpora = {corpus for one in plan.study.evaluations.values() for corpus in (one.train, one.test)}
    if any(plan.method(name).encoder == encoder for name in plan.methods_that_score_targets()):
        corpora.add(plan.targets.corpus)
    return sorted(corpora)


def _bootstrapped_pairs(plan: StudyPlan, tests: Mapping[str, int]) -> int:
    scoring = plan.study.scoring
    rows = 1 + sum(len(plan.poolings_of(method)) for method in scoring.methods) + len(scoring.blends)
    draws = plan.study.judging.bootstrap
    return sum(draws * rows * tests[name] * plan.study.evaluations[name].subsets ** 2 for name in plan.lds_evaluations)


def finetuning_work(plan: StudyPlan, pilot: Pilot, pool: str) -> list[Work]:
    """Return the work of each fine-tuning job of a pool."""
    train, test = (pilot.corpora[name] for name in plan.corpora_of(pool))
    measured = _measured(plan, pilot, pool)
    jobs: list[Work] = []
    for block in plan.blocks(pool):
        spec = StageSpecs(plan).spec("finetune_shard", {"pool": pool, "block": block})
        folds = spec["folds"][1] - spec["folds"][0]
        runs = folds * (spec["indexes"][1] - spec["indexes"][0]) * spec["seeds"]
        trained = runs * spec["sampling"]["subset_examples"] * plan.study.finetuning.epochs
        # The base LM is evaluated once for each fold.
        jobs.append(
            {
                "job_start": 1,
                "model_start": 1,
                "trained_token": trained * train.lm_tokens,
                "evaluated_token": (runs + folds) * measured * test.lm_tokens,
            }
        )
    return jobs


def _measured(plan: StudyPlan, pilot: Pilot, pool: str) -> int:
    return plan.measured_examples(pool) or pilot.corpora[plan.corpora_of(pool)[1]].rows


def distinct_examples(pool: int, subsets: int, subset_examples: int) -> float:
    """Return the expected number of distinct examples in random subsets of a pool.

    Parameters
    ----------
    pool: number of examples in the pool.
    subsets: number of subsets.
    subset_examples: number of examples in a subset.
    """
    return pool * (1 - (1 - min(subset_examples / pool, 1)) ** subsets)


def disk_bytes(plan: StudyPlan, pilot: Pilot) -> dict[str, float]:
    """Return the bytes that each stage leaves on disk."""
    study, scoring = plan.study, plan.study.scoring
    losses = sum(math.prod(plan.runs(pool)) * _measured(plan, pilot, pool) for pool in plan.pools)
    number_bytes = {"float16": 2, "float32": 4}[scoring.embedding_precision]
    vector_bytes = study.encoder.dimension * number_bytes + 16  # 16: its row's hash
    return {
        "prepare_corpus": sum(pilot.corpora[name].rows * pilot.corpora[name].row_bytes for name in study.corpora),
        "pretrain_base_lm": 4 * pilot.lm_parameters,
        "tokenize_corpus": sum(
            pilot.corpora[name].rows * pilot.corpora[name].lm_tokens * BYTES["token"]
            for name in plan.tokenized_corpora()
        ),
        "finetune_shard": losses * BYTES["loss"],
        "collect_targets": losses * BYTES["target"],
        "init_encoder": 4 * pilot.encoder_parameters,
        # While it trains: the best weights, the present ones, and the two moments of AdamW.
        "train_encoder": 5 * 4 * pilot.encoder_parameters,
        "embed_corpus": vector_bytes
        * sum(pilot.corpora[name].rows for encoder in _encoders(plan) for name in _embedded(plan, encoder)),
        "score_pairs": _score_bytes(plan, pilot, plan.methods_scored(in_parts=False)),
        "merge_scores": _score_bytes(plan, pilot, plan.methods_scored(in_parts=True)),
        "write_report": FILES_BYTES,
    }


def _score_bytes(plan: StudyPlan, pilot: Pilot, methods: Sequence[str]) -> float:
    """Return the bytes of the kept scores and of the group scores of some methods."""
    top = 2 * plan.study.scoring.top * BYTES["score"]
    return sum(
        _measured(plan, pilot, name) * (top + len(plan.poolings_of(method)) * one.subsets * BYTES["group"])
        for name, one in plan.study.evaluations.items()
        for method in methods
    )


def not_planned(plan: StudyPlan) -> dict[str, list[str]]:
    """Return the stages that the plan does not cover, and the methods, experiments or evaluations that need each."""
    own = {name: one for name in plan.study.scoring.methods if (one := plan.method(name).own)}
    experiments = {name: plan.experiment(name) for name in plan.experiments()}
    with_runs = [name for name, settings in experiments.items() if hasattr(settings, "jobs")]
    with_base = [name for name, settings in experiments.items() if hasattr(settings, "base_examples")]
    detecting = [name for name in experiments if name == "detection"]
    stages = {
        "warmup_lm": [*(name for name, one in own.items() if one.language_model == "warm"), *detecting],
        "fit_method": [name for name, one in own.items() if one.fitted],
        "embed_by_method": [name for name, one in own.items() if one.stored],
        "score_part_by_lm" if plan.study.scoring.parts > 1 else "score_pairs_by_lm": plan.unstored_methods(),
        "choose_pooling": plan.methods_with_chosen_pooling(),
        "predict_targets": [plan.surrogate.method] if plan.surrogate else [],
        "predict_held_back": plan.blended_methods(),
        "weigh_blend": plan.study.scoring.blends,
        "score_blend": plan.study.listed_blends,
        "check_labels": plan.labelled(),
        "draw_base": with_base,
        "score_base": with_base,
        **{f"draw_{name}": [name] for name in with_runs},
        "finetune_runs": with_runs,
        **{f"evaluate_{name}": [name] for name in experiments},
        **dict.fromkeys(("damage_pool", "score_harm", "measure_losses"), detecting),
        **{stage: list(plan.study.curation) for stage in ("select_examples", "write_curated", "summarize_curation")},
        "drop_rows": [name for name, choice in plan.study.curation.items() if choice.drop is not None],
        "push_encoder": [plan.study.release.hub] if plan.study.release.hub else [],
    }
    return {stage: names for stage, names in stages.items() if names}


def counted_alike(plan: StudyPlan) -> list[str]:
    """Return, as sentences, what is assumed to cost as much as something else."""
    study = plan.study
    return [
        *(
            f"A step of the encoder variant {name} is taken to cost what one of the study's own encoder does."
            for name in study.encoder_variants
            if f"@{name}" in plan.trained_variants()
        ),
        *(
            f"Runs of the LM {name} are taken to cost what those of the study's own LM do; its making and its tokens "
            "are not counted."
            for name in study.language_models
        ),
        *(
            f"{number} processes that share a job of {stage} on GPUs are taken to be {number} times as fast as one."
            for stage in ("finetune_shard", "train_encoder")
            if (number := plan.processes(stage)) > 1
        ),
    ]


def job_seconds(job: Work, pilot: Pilot, processes: int = 1) -> float:
    """Return the seconds that a job is expected to take, its work evenly shared by `processes`."""
    start_up = sum(pilot.seconds[unit] * number for unit, number in job.items() if unit in START_UP)
    return start_up + work_seconds(job, pilot, processes)


def work_seconds(job: Work, pilot: Pilot, processes: int = 1) -> float:
    """Return the seconds that a job's work is expected to take, without its start-up (`core.timing`)."""
    return sum(pilot.seconds[unit] * number for unit, number in job.items() if unit not in START_UP) / processes


def good_job_sizes(plan: StudyPlan, pilot: Pilot, concurrency: Concurrency) -> dict[str, dict[str, int]]:
    """Return the `folds_per_job` and `subsets_per_job` of each pool with which a fine-tuning job takes half an hour.

    Jobs are shorter where ones of half an hour would leave slots empty. Parameters as in `estimate`.
    """
    slots = concurrency.slots(pilot.gpus, plan.processes("finetune_shard"))
    sizes = {}
    for pool in plan.pools:
        folds, subsets, _ = plan.runs(pool)
        jobs = finetuning_work(plan, pilot, pool)
        whole = sum(work_seconds(job, pilot, plan.processes("finetune_shard")) for job in jobs)
        of_subset = whole / (folds * subsets)
        chosen = max(min(GOOD_JOB_SECONDS, whole / slots) / of_subset, 1.0)
        in_folds = max(min(round(chosen / subsets), folds), 1)
        sizes[pool] = {"subsets_per_job": min(subsets, round(chosen))}
        if pool == "train":
            sizes[pool] = {"folds_per_job": in_folds, **sizes[pool]}
    return sizes
