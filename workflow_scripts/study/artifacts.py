"""Which artifacts a study's jobs write, and where each keeps the hash of the spec that it was made with.

Imported while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_scripts.core.file_states import has_other_inputs
from workflow_scripts.core.model_contents import local_models, read_record
from workflow_scripts.study.plan import DAMAGED_POOL, EXPERIMENT_TABLES, SURROGATE_POOL, StudyPlan
from workflow_scripts.study.specs import StageSpecs

# Where Snakemake keeps what each file was made with, and which files a killed run left, which it makes again.
SNAKEMAKE_RECORDS = tuple(Path(".snakemake") / name for name in ("metadata", "incomplete"))
# Rules that run another rule's stage: on the base sets of experiments, and on held-back folds.
SCORE_BASE, PREDICT_HELD_BACK = "score_base", "predict_held_back"
# Stages that reuse what is valid of the earlier version of their result.
REUSING = frozenset({"finetune_shard", "finetune_runs", "embed_corpus", "embed_by_method"})
# Benchmark files, below the folder of their rule, of jobs whose wildcards aren't folders one below the other.
_BENCHMARKS = {
    "pretrain_base_lm": "study{lm}",
    "tokenize_corpus": "{corpus}",
    "init_encoder": "study{variant}",
    "train_encoder": "study{variant}",
    "embed_corpus": "{encoder}/{corpus}{part}",
    "embed_by_method": "{embedding}/{corpus}{part}",
    "score_part": "{method}/{evaluation}{part}",
    "write_curated": "{curation}/{rows}.{form}",
    "drop_rows": "{curation}.{form}",
}
# Experiments that fine-tune, and those of them that score a base set of their own.
DRAWN, WITH_BASE = ("leave_out", "removal", "selection", "curated_data"), ("leave_out", "removal")


@dataclass(frozen=True)
class Artifact:
    """What a job writes: the file or folder that holds the hash of the job's spec.

    Parameters
    ----------
    path: the file or folder.
    stage: the job's stage.
    spec: the spec that the study's config gives the job.
    wildcards: those of the job's rule that decide the spec.
    """

    path: Path
    stage: str
    spec: dict[str, Any]
    wildcards: Mapping[str, str]

    @property
    def rule(self) -> str:
        """The job's rule: it has the stage's name, but for base sets, held-back folds, and where an LM scores."""
        rule = self.stage
        if self.stage == "score_pairs" and self._experiment:
            rule = SCORE_BASE
        elif self.stage == "predict_targets" and self.path.parent.name == "held_back":
            rule = PREDICT_HELD_BACK
        return rule + ("_by_lm" if "unstored" in self.spec else "")

    @property
    def _experiment(self) -> str:
        """The experiment in whose folder the artifact lies; empty for none."""
        # Below results/<run>/, whose name may be any.
        kind, name = (*self.path.parts[2:4], "", "")[:2]
        return name if kind == "experiments" else ""

    @property
    def counted_as(self) -> str:
        """The stage that the job's costs count for: its rule, with the name of the LM where it is a further one."""
        return self.rule + self.wildcards.get("lm", "")

    @property
    def benchmark(self) -> Path:
        """The job's benchmark file, below `benchmarks/`."""
        if self.rule.startswith(SCORE_BASE):
            return Path(SCORE_BASE, self._experiment, *self.wildcards.values()).with_suffix(".tsv")
        return _benchmark(self.rule, self.wildcards)

    @property
    def models(self) -> list[str]:
        """Local folders of the models that the job loads."""
        return local_models(self.spec)

    def is_recorded(self) -> bool:
        """Return whether Snakemake knows what this was made with; otherwise it judges by age alone."""
        name = urlsafe_b64encode(str(self.path).encode()).decode()
        for folder in filter(Path.is_dir, SNAKEMAKE_RECORDS):
            # It breaks a name that is too long for a file into folders.
            longest = os.pathconf(folder, "PC_NAME_MAX") - 1
            pieces = [name[start : start + longest] for start in range(0, len(name), longest)]
            if folder.joinpath(*("@" + piece for piece in pieces[:-1]), pieces[-1]).exists():
                return True
        return False


def artifacts(specs: StageSpecs) -> Iterator[Artifact]:
    """Yield the artifacts of a study, one for each of its jobs but those whose results are temporary.

    Parameters
    ----------
    specs: the specs of the study's jobs.
    """
    for path, stage, wildcards in _StudyArtifacts(specs.plan).all():
        yield Artifact(specs.plan.results / path, stage, specs.spec(stage, wildcards), wildcards)


def benchmark_stages(specs: StageSpecs) -> dict[Path, str]:
    """Return the benchmark files of a study's jobs, below `benchmarks/`, and of each the stage that it counts for.

    Other files that lie there are of earlier jobs: of other sizes, or of methods that the study no longer has.

    Parameters
    ----------
    specs: the specs of the study's jobs.
    """
    plan = specs.plan
    stages = {one.benchmark: one.counted_as for one in artifacts(specs)}
    # Their results are temporary.
    for method in plan.methods_scored(in_parts=True):
        rule = "score_part_by_lm" if plan.method(method).is_unstored else "score_part"
        for evaluation, settings in plan.study.evaluations.items():
            for part in plan.parts_of(settings.train):
                stages[_benchmark(rule, {"method": method, "evaluation": evaluation, "part": part})] = rule
    return stages


def _benchmark(rule: str, wildcards: Mapping[str, str]) -> Path:
    # The rule of a stage where an LM scores writes where the other one does.
    stage = rule.removesuffix("_by_lm")
    place = _BENCHMARKS[stage].format(**wildcards) if stage in _BENCHMARKS else "/".join(wildcards.values()) or "study"
    return Path(stage + (wildcards["lm"] if stage == "tokenize_corpus" else ""), f"{place}.tsv")


def are_in_doubt(found: Iterable[Artifact], records: Path) -> bool:
    """Return whether existing artifacts may not be what the study's config and models make; no artifact is read.

    That is where Snakemake has no record of one, where a file that one was made from has another size or time, and
    where a local model has no record, or other files than its record.

    Parameters
    ----------
    found: the artifacts of a study.
    records: folder of the records of its models.
    """
    found = list(found)
    existing = [artifact for artifact in found if artifact.path.exists()]
    if any(not artifact.is_recorded() or has_other_inputs(artifact.path) for artifact in existing):
        return True
    loaded = {model for artifact in existing for model in artifact.models}
    for model in {model for artifact in found for model in artifact.models}:
        known = read_record(records, model)
        if not known.is_current() if known else model in loaded:
            return True
    return False


# Path in the results folder, stage, wildcards of the rule.
_Job = tuple[str, str, dict[str, str]]


class _StudyArtifacts:
    def __init__(self, plan: StudyPlan):
        self.plan, self.study = plan, plan.study
        self.methods = list(plan.study.scoring.methods)

    def all(self) -> Iterator[_Job]:
        yield from self._corpora_and_models()
        yield from self._runs()
        yield from self._encoders()
        yield from self._scores()
        yield from self._experiments()
        yield from self._results()

    def _corpora_and_models(self) -> Iterator[_Job]:
        for dataset in self.plan.hub_datasets:
            yield f"datasets/{dataset}.json", "resolve_dataset", {"dataset": dataset}
        for corpus in self.study.corpora:
            yield f"corpora/{corpus}.parquet", "prepare_corpus", {"corpus": corpus}
        for name, model in self.plan.hub_models.items():
            if model.is_loaded:
                yield f"models/{name}", "fetch_model", {"snapshot": name}
        tokens = self._tokens()
        read = {lm for lm, _ in tokens} | {
            "" for variant in self.plan.initialized_variants() if self.plan.reads_tokens_of_lm(variant)
        }
        for lm in sorted(read):
            if self.plan.is_builtin(lm):
                yield f"language_model{lm}", "pretrain_base_lm", {"lm": lm}
        for lm, corpus in sorted(tokens):
            yield f"tokens{lm}/{corpus}.parquet", "tokenize_corpus", {"lm": lm, "corpus": corpus}

    def _tokens(self) -> set[tuple[str, str]]:
        """Return which LM reads which corpus."""
        own = self.plan.tokenized_corpora()
        read = {("", corpus) for corpus in own}
        if self.plan.detection_losses():
            read.add(("", DAMAGED_POOL))
        if self.plan.reader_of_suspects():
            read |= {("", self.plan.corpora_of(self._evaluation_of(name))[0]) for name in self.plan.lists_for_review()}
        drawn = {self.plan.experiment(name).evaluation for name in DRAWN if self.plan.experiment(name)}
        for pool in self.plan.drawn_pools:
            lm = self.plan.language_model_of(pool)
            corpora = set(self.plan.corpora_of(pool))
            read |= {(lm, corpus) for corpus in (corpora if pool in {*self.plan.pools, *drawn} else corpora & set(own))}
        return read

    def _evaluation_of(self, curation: str) -> str:
        return self.study.curation[curation].evaluation

    def _runs(self) -> Iterator[_Job]:
        for pool in self.plan.drawn_pools:
            yield f"subsets/{pool}.parquet", "sample_subsets", {"pool": pool}
        for pool in self.plan.pools:
            for block in self.plan.blocks(pool):
                yield f"targets/{pool}/{block}.parquet", "finetune_shard", {"pool": pool, "block": block}
            yield f"targets/{pool}.parquet", "collect_targets", {"pool": pool}

    def _encoders(self) -> Iterator[_Job]:
        for variant in self.plan.initialized_variants():
            yield f"encoder_untrained{variant}", "init_encoder", {"variant": variant}
        if self.plan.surrogate:
            yield f"targets/{SURROGATE_POOL}.parquet", "predict_targets", {"pool": SURROGATE_POOL}
        for variant in self.plan.trained_variants():
            yield f"encoder{variant}.log.parquet", "train_encoder", {"variant": variant}
        if not self.study.targets:
            yield "encoder", "take_encoder", {}

    def _scores(self) -> Iterator[_Job]:
        own = {name: spec for name in self.methods if (spec := self.plan.method(name).own)}
        if any(spec.language_model == "warm" for spec in own.values()) or self.plan.detection_losses():
            yield "language_model_warm", "warmup_lm", {}
        for name in dict.fromkeys(fit for method in own if (fit := self.plan.fit_of(method))):
            yield f"fitted/{name}.safetensors", "fit_method", {"method": name}
        yield from self._embeddings()
        for method in self.plan.methods_with_chosen_pooling():
            yield f"poolings/{method}.parquet", "choose_pooling", {"method": method}
        for method in self.plan.blended_methods():
            yield f"held_back/{method}.parquet", "predict_targets", {"method": method}
        for blend in self.plan.study.scoring.blends:
            yield f"blends/{blend}.parquet", "weigh_blend", {"blend": blend}
        for blend in self.study.listed_blends:
            for evaluation in self.study.evaluations:
                path = f"scores/{blend}/{evaluation}.parquet"
                yield path, "score_blend", {"blend": blend, "evaluation": evaluation}
        split = self.plan.methods_scored(in_parts=True)
        for method in self.methods:
            stage = "merge_scores" if method in split else "score_pairs"
            for evaluation in self.study.evaluations:
                wildcards = {"method": method, "evaluation": evaluation}
                yield f"scores/{method}/{evaluation}.parquet", stage, wildcards

    def _embeddings(self) -> Iterator[_Job]:
        found = {
            (embedding, corpus, self.plan.method(method).own is not None)
            for method in self.methods
            for evaluation in self.study.evaluations.values()
            for corpus, for_tests in ((evaluation.train, False), (evaluation.test, True))
            if (embedding := self.plan.embedding_of(method, for_tests))
        }
        found |= {
            (embedding, self.plan.targets.corpus, self.plan.method(method).own is not None)
            for method in self.plan.methods_that_score_targets()
            for for_tests in (False, True)
            if (embedding := self.plan.embedding_of(method, for_tests))
        }
        detecting = self.plan.experiment_methods("detection") if self.plan.experiment("detection") else []
        found |= {
            (embedding, DAMAGED_POOL, self.plan.method(method).own is not None)
            for method in detecting
            if (embedding := self.plan.embedding_of(method))
        }
        for embedding, corpus, is_own in sorted(found):
            # The test corpus of one evaluation may be the training corpus of another.
            for part in self.plan.parts_of(corpus):
                names = {"corpus": corpus, "part": part}
                path = f"embeddings/{embedding}/{corpus}{part}.parquet"
                if is_own:
                    yield path, "embed_by_method", {"embedding": embedding, **names}
                else:
                    yield path, "embed_corpus", {"encoder": embedding, **names}

    def _experiments(self) -> Iterator[_Job]:
        for name in self.plan.experiments():
            settings, folder = self.plan.experiment(name), f"experiments/{name}"
            if name in WITH_BASE:
                yield f"{folder}/base.parquet", "draw_base", {"experiment": name}
                for method in self.plan.experiment_methods(name):
                    wildcards = {"method": method, "evaluation": settings.evaluation}
                    yield f"{folder}/groups/{method}/{settings.evaluation}.parquet", "score_pairs", wildcards
            if name in DRAWN:
                yield f"{folder}/runs.parquet", f"draw_{name}", {}
                for job in range(settings.jobs):
                    wildcards = {"experiment": name, "job": str(job)}
                    yield f"{folder}/measured/{job}.parquet", "finetune_runs", wildcards
            if name == "detection":
                yield from self._detection()
            yield f"evaluation/{EXPERIMENT_TABLES[name]}.parquet", f"evaluate_{name}", {}

    def _detection(self) -> Iterator[_Job]:
        yield f"corpora/{DAMAGED_POOL}.parquet", "damage_pool", {}
        for method in self.plan.experiment_methods("detection"):
            yield f"experiments/detection/harm/{method}.parquet", "score_harm", {"method": method}
        for name in self.plan.detection_losses():
            yield f"losses/{name}/{DAMAGED_POOL}.parquet", "measure_losses", {"reader": name, "corpus": DAMAGED_POOL}

    def _results(self) -> Iterator[_Job]:
        if self.study.targets:
            yield "evaluation/leaks.parquet", "check_leaks", {}
        if self.plan.labelled():
            yield "evaluation/labels.parquet", "check_labels", {}
        if self.plan.lds_evaluations:
            yield "evaluation/lds.parquet", "evaluate_lds", {}
        yield "evaluation/label_influence.parquet", "evaluate_label_influence", {}
        yield from self._curation()
        yield "config.resolved.yaml", "resolve_config", {}
        if self.study.targets:
            yield "release", "package_encoder", {}
            if self.study.release.hub:
                yield "pushed.json", "push_encoder", {}
        yield "report.html", "write_report", {}

    def _curation(self) -> Iterator[_Job]:
        for name, choice in self.study.curation.items():
            folder, form = f"curation/{name}", choice.format
            yield f"{folder}/selection.parquet", "select_examples", {"curation": name}
            rows = choice.rows_file.partition(".")[0]
            yield f"{folder}/{choice.rows_file}", "write_curated", {"curation": name, "rows": rows, "form": form}
            if choice.drop is not None:
                yield f"{folder}/kept.{form}", "drop_rows", {"curation": name, "form": form}
            yield f"{folder}/summary.md", "summarize_curation", {"curation": name}
            if choice.is_for_review:
                yield from self._suspects(name, folder)

    def _suspects(self, name: str, folder: str) -> Iterator[_Job]:
        reader, corpus = self.plan.reader_of_suspects(), self.plan.corpora_of(self._evaluation_of(name))[0]
        if reader:
            yield f"losses/{reader}/{corpus}.parquet", "measure_losses", {"reader": reader, "corpus": corpus}
        yield f"{folder}/suspects.parquet", "list_suspects", {"curation": name}
