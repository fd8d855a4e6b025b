# The study, and what every rule file needs of it. No rules here.
import os
import re
import sys
from pathlib import Path
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import keep_earlier
from workflow_scripts.core.gpus import limit_gpu_jobs, refuse_cores_and_jobs, sends_jobs
from workflow_scripts.core.interpreter import require_python_without_spaces
from workflow_scripts.core.model_contents import RECORDS_VARIABLE
from workflow_scripts.core.tracking import require_tracker
from workflow_scripts.study.artifacts import REUSING, are_in_doubt, artifacts
from workflow_scripts.study.job_groups import GROUPED_STAGES, job_group
from workflow_scripts.study.methods import methods_of
from workflow_scripts.study.plan import DAMAGED_POOL, EXPERIMENT_TABLES, StudyPlan
from workflow_scripts.study.resources import JobResources
from workflow_scripts.study.sources import snapshot_name
from workflow_scripts.study.specs import StageSpecs
from workflow_scripts.study.config import load_study
from workflow_scripts.study.config_files import refuse_repeated_keys, with_nulls
from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

CONFIG_FILE = str((workflow.configfiles or ["config.yaml"])[-1])

try:
    require_python_without_spaces()
    refuse_repeated_keys(map(Path, workflow.configfiles))
    update_config(config, with_nulls(workflow.config_settings.config))
    study = load_study(config, origin=CONFIG_FILE)
    RESULTS = f"results/{study.run}"
    plan_of_study = StudyPlan(study)
    stage_specs = StageSpecs(plan_of_study)
    job_resources = JobResources(plan_of_study)
    # Before hours are spent on what comes before it; an environment of Snakemake's own is asked by the job.
    if workflow.is_main_process and study.track and not workflow.deployment_settings.deployment_method:
        require_tracker(study.track)
    # Jobs read the Snakefile too, and need not ask again.
    if workflow.is_main_process and are_in_doubt(found := list(artifacts(stage_specs)), Path(RESULTS, "models")):
        # Only here: it reads tables.
        from workflow_scripts.provenance.verify import Command, refuse_mixed_results

        if (command := Command.read(sys.argv[1:])).makes_results:
            refuse_mixed_results(found, Path(RESULTS), CONFIG_FILE, command)
except StudyError as error:
    raise WorkflowError(str(error)) from None

# Jobs inherit it. Threads that spin while they wait for each other slow a job many times over as soon as another
# process wants the same core; those that spin for some microseconds (GNU's OpenMP, which torch uses on Linux) hardly
# do, and save most waits that there are in a small model.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# torch asks for huge pages then: most of a step's time on a CPU is the first touch of its new memory otherwise.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Each step has other lengths, and memory in fixed blocks is soon in pieces that fit none of them.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

# How many GPUs the jobs of this machine share; 0 where there are none, and on a cluster, whose scheduler counts them.
GPUS_HERE = limit_gpu_jobs(workflow)


# Short jobs that a cluster gets as one take turns in it: it has the memory of one of them, and the time of all.
resource_scopes:
    turn="local",


if sends_jobs(workflow) and workflow.is_main_process:
    workflow.register_resource("turn", 1)

# Jobs inherit it: they compare local models with what the study was begun with.
os.environ[RECORDS_VARIABLE] = f"{RESULTS}/models"


onstart:
    try:
        refuse_cores_and_jobs(workflow)
    except StudyError as error:
        raise WorkflowError(str(error)) from None
    # Snakemake's `update` would keep them too, but it restores the file of a job that fails and records it as what that
    # job made: the next run would take it for finished.
    for job in workflow.dag.needrun_jobs() if workflow.is_main_process else []:
        if job.rule.name in REUSING:
            for path in job.output:
                keep_earlier(Path(path))


wildcard_constraints:
    corpus="|".join([*study.corpora, DAMAGED_POOL]),
    pool="|".join(plan_of_study.drawn_pools),
    evaluation="|".join(study.evaluations),
    encoder="(trained|untrained)(" + "|".join(plan_of_study.variants) + ")",
    variant="(" + "|".join(plan_of_study.variants) + ")",
    snapshot="|".join(map(re.escape, plan_of_study.hub_models)) or "(?!)",
    lm="(" + "|".join(plan_of_study.language_models) + ")",
    dataset="|".join(map(re.escape, plan_of_study.hub_datasets)) or "(?!)",
    experiment="|".join(EXPERIMENT_TABLES),
    curation="|".join(study.curation) or "(?!)",
    form="jsonl|parquet",
    # Empty where a corpus is embedded and scored in one piece.
    part=r"(\.\d+of\d+)?",


def spec(stage):
    """Values that decide a stage's result, as one sorted dict: what `params` compares between runs."""

    def values(wildcards):
        return stage_specs.spec(stage, dict(wildcards))

    return values


def spec_of_base(wildcards):
    return stage_specs.base_spec(dict(wildcards))


def environment_spec(wildcards, resources):
    gpus = resources.get("gpu", 0) or int("gpu" in resources.get("gres", ""))
    return {"version": 1, "gpus": gpus, "require_gpu": bool(resources.get("require_gpu", 0))}


def plan_spec(wildcards):
    """The plan's values and what runs at a time: the jobs of a cluster's profile, or the cores of this machine."""
    jobs = workflow.nodes if workflow.non_local_exec else None
    return {**stage_specs.spec("write_plan", {}), "cores": workflow.cores, "jobs": jobs}


def resources_for(stage):
    """What a stage's jobs ask for; a retry asks for half as much memory (MiB) again, and for twice the minutes."""

    def mebibytes(wildcards, attempt):
        return int(job_resources.memory_mb(stage) * (1 + 0.5 * (attempt - 1)))

    def minutes(wildcards, attempt):
        is_short = job_group(plan_of_study, stage, dict(wildcards)) is not None
        return job_resources.runtime_minutes(stage, grouped=is_short) * attempt

    gpus = job_resources.gpus(stage)
    # One process for each GPU: where this machine has none, as many on its cores.
    on_gpus = {"gpu": gpus, "processes": gpus} if gpus else {}
    turns = {"turn": 1} if stage in GROUPED_STAGES else {}
    return {**on_gpus, **turns, "mem_mb": mebibytes, "runtime": minutes}


def grouped(stage):
    """The group of a stage's jobs, for a rule's `group`; one machine, and jobs that were sent, have none."""

    def group(wildcards):
        return job_group(plan_of_study, stage, dict(wildcards))

    return group if sends_jobs(workflow) and workflow.is_main_process else None


def tracker():
    """Where training curves go: not among the params, so that it reruns nothing."""
    return {"track": study.track} if study.track else {}


def threads_of_gpu_job(gpus, on_cpu=None):
    """Threads of a job on so many GPUs: their share of the cores. Where no GPU is here: `on_cpu`, or all cores."""
    if GPUS_HERE:
        # One core at least is left, so that a job without a GPU keeps none from its own.
        return max((workflow.cores - 1) * gpus // GPUS_HERE, 1)
    return on_cpu or workflow.cores


def threads_of_encoder():
    """Threads of a job that trains an encoder or embeds with it; one without layers hardly uses a second core."""
    on_cpu = None if plan_of_study.has_layers else plan_of_study.encoder_processes()
    return threads_of_gpu_job(plan_of_study.encoder_processes(), on_cpu)


def finetuning_first(wildcards):
    """Training waits for its targets, and only the LDS table for those of an evaluation; but these take longest.

    What predicts targets has no priority of its own, so that those of an evaluation don't go before it.
    """
    return 2 if wildcards.pool == "train" else int(plan_of_study.surrogate is None)


def any_of(methods):
    """A wildcard's constraint: one of these methods, or nothing at all."""
    return "|".join(methods) or "(?!)"
