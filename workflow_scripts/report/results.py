"""Read the measured results: LDS by evaluation and method, the encoder's training, the cost of each stage."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.core.benchmark_files import read_benchmarks, read_record
from workflow_scripts.core.frames import read_frame, rows_of
from workflow_scripts.core.parquet import read_metadata, spec_hash
from workflow_scripts.study.artifacts import benchmark_stages
from workflow_scripts.study.config import Study
from workflow_scripts.study.methods import methods_of
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.specs import StageSpecs

METHOD_NAMES = {
    "airrep": "AirRep",
    "airrep_mean": "AirRep, mean pooling",
    "airrep_signed": "AirRep, signed pooling",
    "untrained": "Untrained encoder",
    "tfidf": "TF-IDF",
    "bm25": "BM25",
    "dsir": "DSIR",
    "rds": "RDS",
    "tracin": "TracIn",
    "logra_4": "LoGra, rank 4",
    "logra_8": "LoGra, rank 8",
    "logra_16": "LoGra, rank 16",
    "logra_16_fisher": "LoGra, rank 16, Fisher",
    "logra_16_random": "LoGra, rank 16, random start",
    "ekfac": "EK-FAC",
    "ekfac_16384": "EK-FAC, sketch of 16,384",
    "ekfac_8192": "EK-FAC, sketch of 8,192",
    "ekfac_4096": "EK-FAC, sketch of 4,096",
    "ekfac_2048": "EK-FAC, sketch of 2,048",
    "ekfac_65536_binary": "EK-FAC, sketch of 65,536 bits",
    "ekfac_32768_binary": "EK-FAC, sketch of 32,768 bits",
    "ekfac_16384_binary": "EK-FAC, sketch of 16,384 bits",
    "forward": "Head's gradient",
    "dsdm": "DsDm",
    "less": "LESS",
    "length": "Length only",
    "random": "Random",
}
# What a method costs for each new corpus, and what it costs once.
PER_CORPUS, ONCE = ("embedding", "scoring"), ("fitting", "warmup")
COST_PARTS = (*PER_CORPUS, *ONCE)
# Methods that read the trained encoder, with whatever variant of it; and all that read the encoder.
OURS = ("airrep", "airrep_mean", "airrep_signed")
ABLATION = (*OURS, "untrained")


@dataclass(frozen=True)
class Difference:
    """LDS of one row minus that of another, with its bootstrap interval (None if not measured)."""

    difference: float
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class LdsRow:
    """LDS of one method with one pooling on one evaluation.

    Parameters
    ----------
    method: name of the method.
    pooling: name of the pooling.
    chosen: what the pooling `chosen` is; None for other poolings.
    name: name of the method for people.
    lds: the LDS.
    ci_low: lower end of its interval.
    ci_high: upper end of its interval.
    seconds: work of embedding and scoring, in seconds.
    parts: seconds of work by part, of `COST_PARTS`; the first two add up to `seconds`. None where it isn't known.
    bytes_per_example: what is stored for a training example, in bytes.
    lead: the main row's LDS minus this one's; None for the main row, or if there is none.
    """

    method: str
    pooling: str
    chosen: str | None
    name: str
    lds: float
    ci_low: float | None
    ci_high: float | None
    seconds: float | None
    parts: Mapping[str, float | None]
    bytes_per_example: float | None
    lead: Difference | None


@dataclass(frozen=True)
class EvaluationResult:
    """Results of one evaluation.

    Parameters
    ----------
    name: name of the evaluation.
    n_tests: number of tests.
    n_subsets: number of subsets.
    ceiling: noise ceiling of the LDS.
    seed_agreement: correlation of two runs on the same subsets.
    rows: LDS of every method and pooling, best first.
    main: the trained encoder's row, which the others are compared with; None if there is none.
    """

    name: str
    n_tests: int
    n_subsets: int
    ceiling: float | None
    seed_agreement: float | None
    rows: list[LdsRow]
    main: LdsRow | None

    @property
    def rival(self) -> LdsRow | None:
        """The best row of another method than AirRep."""
        return next((row for row in self.rows if not set(OURS) & set(base_methods(row.method))), None)

    @property
    def ablation(self) -> list[LdsRow]:
        """The encoder's rows: trained and untrained, with each pooling; best first."""
        return [row for row in self.rows if len(bases := base_methods(row.method)) == 1 and bases[0] in ABLATION]


@dataclass(frozen=True)
class AverageRow:
    """The mean LDS of one method with one pooling over several evaluation sets.

    Parameters
    ----------
    lds: the mean.
    ci_low: lower end of its interval.
    ci_high: upper end of its interval.
    lead: the main row's mean minus this one's; None for the main row.
    by_set: its row on each set, by the set's name.
    """

    lds: float
    ci_low: float | None
    ci_high: float | None
    lead: Difference | None
    by_set: Mapping[str, LdsRow]

    @property
    def row(self) -> LdsRow:
        """Its row on the first set, which names it."""
        return next(iter(self.by_set.values()))


@dataclass(frozen=True)
class StageCost:
    """Time and memory of all jobs of one rule.

    Parameters
    ----------
    stage: name of the rule.
    jobs: number of jobs.
    seconds: wall seconds, summed over the jobs.
    cpu_seconds: CPU seconds, summed over the jobs; None if measured of none.
    peak_bytes: resident memory of the largest job, in bytes; None if not measured.
    planned_seconds: wall seconds that the plan expected; None if it has none.
    start_up_seconds: of `seconds`, what the jobs' start-up took; None if a job has no record of it.
    """

    stage: str
    jobs: int
    seconds: float
    cpu_seconds: float | None
    peak_bytes: float | None
    planned_seconds: float | None = None
    start_up_seconds: float | None = None

    @property
    def of_plan(self) -> float | None:
        """Seconds over planned seconds; None if there was no plan."""
        return self.seconds / self.planned_seconds if self.planned_seconds else None


@dataclass(frozen=True)
class RunCost:
    """Time and memory of a run.

    Parameters
    ----------
    stages: cost of each stage, the most expensive first.
    wall_seconds: how long at least one job was running; a pause between two runs doesn't count.
    planned_wall_seconds: wall seconds that the plan expected; None if it has none.
    """

    stages: list[StageCost]
    wall_seconds: float
    planned_wall_seconds: float | None

    @property
    def not_planned(self) -> list[str]:
        """The stages that ran and that the plan didn't cover."""
        return [cost.stage for cost in self.stages if cost.planned_seconds is None]


@dataclass(frozen=True)
class FinetuningRuns:
    """Number of fine-tuning runs of a pool, and how many of them diverged and are left out."""

    pool: str
    runs: int
    diverged: int


def base_methods(method: str) -> list[str]:
    """Return the methods, without their variants, that a row of the LDS table is of: one, or those of a blend."""
    return [name.partition("@")[0] for name in methods_of(method)]


def method_name(method: str) -> str:
    """Return a method's name for people, e.g. `TF-IDF` for `tfidf`, or those of a blend's methods."""
    if len(blended := methods_of(method)) > 1:
        return " + ".join(map(method_name, blended))
    base, at, variant = method.partition("@")
    name = METHOD_NAMES.get(base, base.replace("_", " "))
    return f"{name}, variant {variant}" if at else name


def gather_results(lds: Path, differences: Path, study: Study) -> list[EvaluationResult]:
    """Return the results of every evaluation, in the order of the config.

    Parameters
    ----------
    lds: table that `evaluate_lds` wrote.
    differences: table of paired differences that `evaluate_lds` wrote.
    study: the study.
    """
    by_evaluation = {str(name): rows for name, rows in read_frame(lds).groupby("evaluation", sort=False)}
    leads, plan = read_frame(differences), StudyPlan(study)
    main = plan.main_method() if plan.trained_methods() else None
    return [
        _evaluation(name, by_evaluation[name], leads[leads["evaluation"] == name], main, study.encoder_training.pooling)
        for name in dict.fromkeys([*study.evaluations, *by_evaluation])
        if name in by_evaluation
    ]


def gather_average(average: Path, results: Sequence[EvaluationResult]) -> list[AverageRow]:
    """Return the rows of the mean LDS over several evaluation sets, best first.

    Parameters
    ----------
    average: table that `evaluate_lds` wrote.
    results: the results of every evaluation.
    """
    of_set = {(result.name, row.method, row.pooling): row for result in results for row in result.rows}
    return [
        AverageRow(
            lds=row.lds,
            ci_low=_known(row.ci_low),
            ci_high=_known(row.ci_high),
            lead=None
            if math.isnan(row.lead)
            else Difference(row.lead, _known(row.lead_ci_low), _known(row.lead_ci_high)),
            by_set={name: of_set[name, row.method, row.pooling] for name in row.evaluations},
        )
        for row in rows_of(read_frame(average))
    ]


def _evaluation(
    name: str, rows: pd.DataFrame, differences: pd.DataFrame, method: str | None, pooling: str
) -> EvaluationResult:
    main = _main_row(rows, differences, method, pooling)
    leads = _leads(differences, main)
    rows = rows.assign(tell_pooling=rows.duplicated("method", keep=False))
    made = [_row(row, leads) for row in rows.sort_values("lds", ascending=False, kind="stable").itertuples()]
    return EvaluationResult(
        name=name,
        n_tests=rows["n_tests"].max(),
        n_subsets=rows["n_subsets"].max(),
        ceiling=next(iter(rows["ceiling"].dropna()), None),
        seed_agreement=next(iter(rows["seed_agreement"].dropna()), None),
        rows=made,
        main=next((row for row in made if (row.method, row.pooling) == main), None),
    )


def _main_row(
    rows: pd.DataFrame, differences: pd.DataFrame, method: str | None, pooling: str
) -> tuple[str, str] | None:
    """Return the row that the differences are taken from; where there are none, that of `pooling`, or another.

    It is a row of `method`, the trained encoder's that others are compared with; None where there is none.
    """
    if method is None:
        return None
    ours = rows.loc[rows["method"] == method, "pooling"].tolist()
    leading = differences.loc[differences["method_a"] == method, "pooling_a"].tolist()
    poolings = [*leading, *(one for one in ours if one == pooling), *ours]
    return (method, poolings[0]) if ours else None


def _leads(differences: pd.DataFrame, main: tuple[str, str] | None) -> dict[tuple[str, str], Difference]:
    leads = {}
    for row in rows_of(differences):
        a, b = (row.method_a, row.pooling_a), (row.method_b, row.pooling_b)
        if a == main:
            leads[b] = Difference(row.difference, _known(row.ci_low), _known(row.ci_high))
        elif b == main:
            leads[a] = Difference(-row.difference, _known(-row.ci_high), _known(-row.ci_low))
    return leads


def _row(row: Any, leads: Mapping[tuple[str, str], Difference]) -> LdsRow:
    name = method_name(row.method)
    return LdsRow(
        method=row.method,
        pooling=row.pooling,
        chosen=row.chosen if isinstance(row.chosen, str) else None,
        name=f"{name}, {row.pooling} pooling" if row.tell_pooling else name,
        lds=row.lds,
        ci_low=_known(row.ci_low),
        ci_high=_known(row.ci_high),
        seconds=_known(row.seconds),
        parts={part: _known(getattr(row, f"{part}_seconds")) for part in COST_PARTS},
        bytes_per_example=_known(row.bytes_per_example),
        lead=leads.get((row.method, row.pooling)),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def gather_runs(targets: Iterable[Path]) -> list[FinetuningRuns]:
    """Return the fine-tuning runs of every pool, from the metadata of `targets/<pool>.parquet`."""
    metadata = [(path.stem, read_metadata(path)) for path in targets]
    return [FinetuningRuns(pool, int(entries["runs"]), int(entries["diverged"])) for pool, entries in metadata]


def gather_training(training: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Return the (step, loss) points and the (step, validation LDS) points of the encoder's training."""
    steps = read_frame(training, ["step", "loss", "validation_lds"]).set_index("step")
    return _points(steps["loss"].dropna()), _points(steps["validation_lds"].dropna())


def _points(values: pd.Series) -> list[tuple[int, float]]:
    return list(zip(values.index.tolist(), values.tolist(), strict=True))


def gather_costs(benchmarks: Path, plan: Path, study: Study) -> RunCost:
    """Return the time and memory of each stage's jobs, beside the expected time.

    Stages that the plan doesn't cover have no expected time. A plan that was made for other values counts as none.

    Parameters
    ----------
    benchmarks: folder of Snakemake's benchmark files, one folder per rule with one TSV per job; may be absent.
    plan: `plan.json`; may be absent.
    study: the study, of whose jobs alone the files count.
    """
    specs = StageSpecs(StudyPlan(study))
    planned = read_plan(plan, specs) or {"stages": [], "total": {}}
    seconds = {stage["stage"]: stage["seconds"] for stage in planned["stages"]}
    known = {benchmarks / path: stage for path, stage in benchmark_stages(specs).items()}
    jobs = read_benchmarks(path for path in sorted(known) if path.exists())
    stages = jobs["path"].map(known)
    start_ups = jobs["path"].map(_start_up_seconds).astype(float).groupby(stages).sum(min_count=1, skipna=False)
    costs = jobs.groupby(stages).agg(
        jobs=("s", "size"), seconds=("s", "sum"), cpu_seconds=("cpu_time", _sum_of_known), peak_mib=("max_rss", "max")
    )
    # Snakemake writes MiB
    return RunCost(
        stages=[
            StageCost(
                row.Index,
                row.jobs,
                row.seconds,
                _known(row.cpu_seconds),
                _known(row.peak_mib * 2**20),
                seconds.get(row.Index),
                _known(start_ups[row.Index]),
            )
            for row in rows_of(costs.sort_values("seconds", ascending=False, kind="stable"))
        ],
        wall_seconds=_covered(jobs.groupby("path")["s"].sum()),
        planned_wall_seconds=planned["total"].get("wall_seconds"),
    )


def _sum_of_known(values: pd.Series) -> float:
    return values.sum(min_count=1)


def _start_up_seconds(benchmark: Path) -> float:
    record = read_record(benchmark)
    return record[0].clock if record else math.nan


def read_plan(path: Path, specs: StageSpecs) -> dict[str, Any] | None:
    """Return a plan that `write_plan` wrote; None if there is none, or if it was made for other values.

    Parameters
    ----------
    path: `plan.json`.
    specs: those of the study whose plan it must be.
    """
    if not path.exists():
        return None
    plan = json.loads(path.read_text(encoding="utf-8"))
    return plan if plan.get("study") == spec_hash(specs.spec("write_plan", {})["study"]) else None


def _covered(seconds: pd.Series) -> float:
    """Return how long at least one job was running, from the seconds of each benchmark file, written at its end."""
    ends = seconds.index.map(lambda path: path.stat().st_mtime)
    jobs = pd.DataFrame({"start": ends - seconds.to_numpy(), "end": ends}).sort_values(["start", "end"])
    before = jobs["end"].cummax().shift(fill_value=-math.inf)
    return float((jobs["end"] - jobs["start"].clip(lower=before)).clip(lower=0).sum())
