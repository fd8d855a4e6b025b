"""What was measured: LDS by evaluation and method, the encoder's training, the cost of each stage."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_scripts.core.parquet import read_metadata, read_table
from workflow_scripts.study.config import Study

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
    "dsdm": "DsDm",
    "less": "LESS",
    "length": "Length only",
    "random": "Random",
}
MAIN_METHOD = "airrep"
# Methods that read the trained encoder, with whatever variant of it; and all that read the encoder.
OURS = ("airrep", "airrep_mean", "airrep_signed")
ABLATION = (*OURS, "untrained")


@dataclass(frozen=True)
class Difference:
    """LDS of one row minus that of another, with its bootstrap interval (None where not measured)."""

    difference: float
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class LdsRow:
    """One method with one pooling on one evaluation; `lead` is the main row's LDS minus this one's."""

    method: str
    pooling: str
    name: str
    lds: float
    ci_low: float | None
    ci_high: float | None
    seconds: float | None
    bytes_per_example: float | None
    lead: Difference | None


@dataclass(frozen=True)
class EvaluationResult:
    """All rows of one evaluation, best first; `main` is AirRep with the pooling it was trained with."""

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
        others = (row for row in self.rows if row.method.partition("@")[0] not in OURS)
        return next(others, None)

    @property
    def ablation(self) -> list[LdsRow]:
        """The encoder's rows: trained and untrained, with each pooling; best first."""
        return [row for row in self.rows if row.method.partition("@")[0] in ABLATION]


@dataclass(frozen=True)
class StageCost:
    """What all jobs of one rule took; `peak_bytes` is the largest job's resident memory.

    `planned_seconds` is what the plan expected of them, None where there was none.
    """

    stage: str
    jobs: int
    seconds: float
    cpu_seconds: float
    peak_bytes: float | None
    planned_seconds: float | None = None

    @property
    def of_plan(self) -> float | None:
        """How many times as long as planned it took."""
        return self.seconds / self.planned_seconds if self.planned_seconds else None


@dataclass(frozen=True)
class RunCost:
    """What a run took, dearest stage first, and the wall time that the plan gave it.

    `wall_seconds`: how long at least one job was running; a pause between two runs doesn't count.
    """

    stages: list[StageCost]
    wall_seconds: float
    planned_wall_seconds: float | None

    @property
    def not_planned(self) -> list[str]:
        """The stages that ran and that the plan gave no time."""
        return [cost.stage for cost in self.stages if cost.planned_seconds is None]


@dataclass(frozen=True)
class FinetuningRuns:
    """The fine-tuning runs of a pool, and how many of them diverged; labels and losses leave those out."""

    pool: str
    runs: int
    diverged: int


def method_name(method: str) -> str:
    """Return a method's name as people write it."""
    base, at, variant = method.partition("@")
    name = METHOD_NAMES.get(base, base.replace("_", " "))
    return f"{name}, variant {variant}" if at else name


def gather_results(lds: Path, differences: Path, study: Study) -> list[EvaluationResult]:
    """Return the LDS of every evaluation, in the order of the config."""
    by_evaluation = defaultdict(list)
    for row in read_table(lds).to_pylist():
        by_evaluation[row["evaluation"]].append(row)
    leads = read_table(differences).to_pylist()
    order = [*study.evaluations, *(name for name in by_evaluation if name not in study.evaluations)]
    return [
        _evaluation(
            name,
            by_evaluation[name],
            [row for row in leads if row["evaluation"] == name],
            study.encoder_training.pooling,
        )
        for name in order
        if name in by_evaluation
    ]


def _evaluation(
    name: str, rows: list[dict[str, Any]], differences: list[dict[str, Any]], pooling: str
) -> EvaluationResult:
    main = _main_key(rows, pooling)
    leads = _leads(differences, main)
    poolings = Counter(row["method"] for row in rows)
    made = [_row(row, poolings[row["method"]] > 1, leads) for row in rows]
    made.sort(key=lambda row: -math.inf if math.isnan(row.lds) else row.lds, reverse=True)
    return EvaluationResult(
        name=name,
        n_tests=max(row["n_tests"] for row in rows),
        n_subsets=max(row["n_subsets"] for row in rows),
        ceiling=_first_known(row.get("ceiling") for row in rows),
        seed_agreement=_first_known(row.get("seed_agreement") for row in rows),
        rows=made,
        main=next((row for row in made if (row.method, row.pooling) == main), None),
    )


def _main_key(rows: list[dict[str, Any]], pooling: str) -> tuple[str, str] | None:
    ours = [row["pooling"] for row in rows if row["method"] == MAIN_METHOD]
    if not ours:
        return None
    return MAIN_METHOD, pooling if pooling in ours else ours[0]


def _leads(differences: list[dict[str, Any]], main: tuple[str, str] | None) -> dict[tuple[str, str], Difference]:
    leads = {}
    for row in differences:
        a, b = (row["method_a"], row["pooling_a"]), (row["method_b"], row["pooling_b"])
        low, high = _known(row["ci_low"]), _known(row["ci_high"])
        if a == main:
            leads[b] = Difference(row["difference"], low, high)
        elif b == main:
            leads[a] = Difference(-row["difference"], _negated(high), _negated(low))
    return leads


def _row(row: dict[str, Any], tell_pooling: bool, leads: Mapping[tuple[str, str], Difference]) -> LdsRow:
    name = method_name(row["method"])
    return LdsRow(
        method=row["method"],
        pooling=row["pooling"],
        name=f"{name}, {row['pooling']} pooling" if tell_pooling else name,
        lds=math.nan if row["lds"] is None else row["lds"],
        ci_low=_known(row["ci_low"]),
        ci_high=_known(row["ci_high"]),
        seconds=_known(row["seconds"]),
        bytes_per_example=_known(row["bytes_per_example"]),
        lead=leads.get((row["method"], row["pooling"])),
    )


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _negated(value: float | None) -> float | None:
    return None if value is None else -value


def _first_known(values: Iterable[float | None]) -> float | None:
    return next((value for value in map(_known, values) if value is not None), None)


def gather_runs(targets: Iterable[Path]) -> list[FinetuningRuns]:
    """Return the fine-tuning runs of every pool, from the metadata of `targets/<pool>.parquet`."""
    metadata = [(path.stem, read_metadata(path)) for path in targets]
    return [FinetuningRuns(pool, int(entries["runs"]), int(entries["diverged"])) for pool, entries in metadata]


def gather_training(training: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Return the (step, loss) points and the (step, validation LDS) points of the encoder's training."""
    rows = read_table(training, ["step", "loss", "validation_lds"]).to_pylist()
    losses = [(row["step"], row["loss"]) for row in rows if _known(row["loss"]) is not None]
    validations = [(row["step"], row["validation_lds"]) for row in rows if _known(row["validation_lds"]) is not None]
    return losses, validations


def gather_costs(benchmarks: Path, plan: Path) -> RunCost:
    """Return what each rule took, from Snakemake's benchmark files, beside what `plan.json` expected of it.

    `benchmarks` holds one folder per rule with one TSV per job. Both may be absent. Stages that the plan doesn't
    know, its own among them, count to the stages alone.
    """
    planned = json.loads(plan.read_text(encoding="utf-8")) if plan.exists() else {"stages": [], "total": {}}
    seconds = {stage["stage"]: stage["seconds"] for stage in planned["stages"]}
    by_stage, intervals = defaultdict(list), []
    for path in sorted(benchmarks.rglob("*.tsv")):
        place = path.relative_to(benchmarks)
        stage = place.parts[0] if len(place.parts) > 1 else place.stem
        with open(path, encoding="utf-8", newline="") as file:
            # A file may hold several repeats; a job's cost is all of them.
            jobs = list(csv.DictReader(file, delimiter="\t"))
        by_stage[stage].extend(jobs)
        end = path.stat().st_mtime
        intervals.append((end - sum(_number(job.get("s")) or 0.0 for job in jobs), end))
    costs = [_cost(stage, jobs, seconds.get(stage)) for stage, jobs in by_stage.items() if jobs]
    return RunCost(
        stages=sorted(costs, key=lambda cost: -cost.seconds),
        wall_seconds=_covered(intervals),
        planned_wall_seconds=planned["total"].get("wall_seconds"),
    )


def _covered(intervals: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    covered, last = 0.0, -math.inf
    for start, end in sorted(intervals):
        covered += max(end - max(start, last), 0.0)
        last = max(last, end)
    return covered


def _cost(stage: str, jobs: list[dict[str, str]], planned_seconds: float | None) -> StageCost:
    memory = [value for job in jobs if (value := _number(job.get("max_rss"))) is not None]
    return StageCost(
        stage=stage,
        jobs=len(jobs),
        seconds=sum(_number(job.get("s")) or 0.0 for job in jobs),
        cpu_seconds=sum(_number(job.get("cpu_time")) or 0.0 for job in jobs),
        peak_bytes=max(memory) * 2**20 if memory else None,  # Snakemake writes MiB
        planned_seconds=planned_seconds,
    )


def _number(text: str | None) -> float | None:
    # Snakemake writes "-" or "NA" for a job that ended before it could be measured.
    try:
        return _known(float(text)) if text else None
    except ValueError:
        return None
