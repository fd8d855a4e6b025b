"""Evaluate every method by its LDS, with interval and noise ceiling (paper, section 4.1)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from workflow_scripts.core.benchmark_files import recorded_work
from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import write_frame
from workflow_scripts.core.parquet import read_metadata
from workflow_scripts.core.progress import Progress, say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.core.timing import Seconds
from workflow_scripts.evaluation.average import AVERAGE_SCHEMA, EvaluatedSet, average_rows, average_table, leading_place
from workflow_scripts.evaluation.blends import Blend, read_blend
from workflow_scripts.evaluation.group_scores import MeasuredLosses, read_group_scores, read_losses
from workflow_scripts.evaluation.lds import (
    Bootstrap,
    UndefinedLdsError,
    bootstrap_lds,
    interval,
    linear_datamodeling_score,
    noise_ceiling,
    paired_difference,
    seed_agreement,
)
from workflow_scripts.evaluation.lds_table import lds_table
from workflow_scripts.scoring.chosen_pooling import read_chosen_pooling

MAIN_METHOD = "airrep"
COST_PARTS = ("embedding", "scoring", "fitting", "warmup", "start_up")
LDS_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("evaluation", pa.string()),
        ("pooling", pa.string()),
        ("chosen", pa.string()),
        ("lds", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("ceiling", pa.float64()),
        ("seed_agreement", pa.float64()),
        ("n_tests", pa.int32()),
        ("n_subsets", pa.int32()),
        ("seconds", pa.float64()),
        ("cpu_seconds", pa.float64()),
        *((f"{part}_{kind}", pa.float64()) for part in COST_PARTS for kind in ("seconds", "cpu_seconds")),
        ("bytes_per_example", pa.float64()),
    ]
)
DIFFERENCE_SCHEMA = pa.schema(
    [
        ("method_a", pa.string()),
        ("pooling_a", pa.string()),
        ("method_b", pa.string()),
        ("pooling_b", pa.string()),
        ("evaluation", pa.string()),
        ("difference", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
    ]
)


def evaluate_lds(
    groups: Sequence[Path],
    scores: Sequence[Path],
    targets: Sequence[Path],
    lds: Path,
    differences: Path,
    poolings: Sequence[Path] = (),
    blends: Sequence[Path] = (),
    average: Path | None = None,
    *,
    averaged: Sequence[str] = (),
    main: str = MAIN_METHOD,
    bootstrap: int,
    confidence: float,
    seed: int,
    benchmarks: str,
    warmup: Mapping[str, Sequence[str]],
    fitting: Mapping[str, Sequence[str] | None],
) -> None:
    """Write and print the LDS of every method and pooling on every evaluation set.

    Losses are the mean over a subset's fine-tuning runs; a run that diverged doesn't count, and neither does a subset
    whose runs all diverged. An evaluation set on which the LDS is undefined is reported and has no rows.

    Costs are seconds of work (`core.timing`), on the clock and of the processor: `embedding` and `scoring`, tests
    included, whose sum is `seconds` and `cpu_seconds`; `fitting` and `warmup`, which are paid once for any number of
    corpora; `start_up` is that of the jobs that embed and score. What isn't known is null. A blend costs what its two
    methods cost; embeddings that both read are counted twice, in seconds and in bytes.

    Parameters
    ----------
    groups: `groups/<method>/<evaluation>.parquet` of every method and evaluation.
    scores: `scores/<method>/<evaluation>.parquet` of every method and evaluation, for the costs in the metadata.
    targets: `targets/<evaluation>.parquet` of every evaluation.
    lds: Parquet file to write, one row per evaluation, method and pooling, in the order of `targets` and by decreasing
        LDS.
    differences: Parquet file to write, from the same bootstrap draws: the LDS of `main`, and of each blend, minus that
        of every other row.
    poolings: `poolings/<method>.parquet` of the methods whose pooling was chosen on held-back folds; their rows say in
        the column `chosen` what the pooling `chosen` is.
    blends: `blends/<method>+<method>.parquet`, each a further row, whose pooling is `chosen`, too.
    average: Parquet file to write, the mean LDS over the sets `averaged`, see `evaluation.average`; None without them.
    averaged: names of these evaluation sets; those on which the LDS is undefined don't count.
    main: name of the method that every other row is compared with; the first one, if it is not among them.
    bootstrap: number of bootstrap draws over tests and subsets.
    confidence: coverage of the intervals, in (0, 1).
    seed: seed of the bootstrap.
    benchmarks: folder of Snakemake's benchmark files.
    warmup: for each method and blend, globs below `benchmarks` of the jobs that warm its LM up.
    fitting: likewise of the jobs that fit it; None for an encoder that was trained elsewhere.

    Raises
    ------
    StudyError: files don't belong together, or the LDS is undefined on every evaluation set.
    """
    scores_of = {(path.parent.name, path.stem): path for path in scores}
    once = {
        method: {
            "fitting": recorded_work(Path(benchmarks), fitting[method]),
            "warmup": recorded_work(Path(benchmarks), warmup[method]),
        }
        for method in fitting
    }
    mixed = {path.stem: read_blend(path) for path in blends}
    chosen = {path.stem: str(read_chosen_pooling(path)) for path in poolings} | {
        name: str(blend) for name, blend in mixed.items()
    }
    lds_frames, difference_frames, undefined = [], [], []
    sets: dict[str, EvaluatedSet] = {}
    progress = Progress("evaluate_lds", len(targets), "evaluation sets")
    for path in targets:
        evaluation, measured = path.stem, read_losses(path)
        candidates = [
            _Candidate(method, pooling, values, _cost(scores_of[method, evaluation], **once[method]))
            for group in groups
            if group.stem == evaluation
            for method in [group.parent.name]
            for pooling, values in read_group_scores(group, measured).items()
        ]
        candidates += [_blended(name, blend, candidates, **once[name]) for name, blend in mixed.items()]
        tests, subsets = measured.mean.shape
        resamples = Bootstrap.draw(tests, subsets, bootstrap, generator(seed, "bootstrap", evaluation))
        draws = bootstrap_lds(np.stack([one.scores for one in candidates]), measured.mean, resamples)
        progress.advance()
        try:
            rows = _lds_rows(evaluation, candidates, measured, draws, confidence)
            is_chosen = rows["pooling"] == "chosen"
            rows["chosen"] = rows["method"].map(chosen).where(is_chosen, None)
        except UndefinedLdsError as error:
            undefined.append(f"{evaluation}: the LDS is undefined: {error}.")
            say(f"\n{undefined[-1]} It is left out.")
            continue
        _show(rows, measured, confidence)
        lds_frames.append(_best_first(rows))
        if evaluation in averaged:
            sets[evaluation] = EvaluatedSet(rows, draws)
        difference_frames.append(_difference_rows(rows, draws, main, mixed, confidence))
    if not lds_frames:
        raise StudyError("\n".join(undefined))
    lds_rows = pd.concat(lds_frames)
    if average:
        means = average_rows(sets, main, confidence)
        write_frame(average, means, AVERAGE_SCHEMA)
        for line in average_table(means, lds_rows):
            say(line)
    write_frame(differences, pd.concat(difference_frames), DIFFERENCE_SCHEMA)
    write_frame(lds, lds_rows, LDS_SCHEMA)


@dataclass(frozen=True)
class _Candidate:
    """A method and pooling to evaluate: `scores` float32 [tests, subsets]; `cost` has the columns of what it cost."""

    method: str
    pooling: str
    scores: np.ndarray
    cost: dict[str, float]


def _blended(name: str, blend: Blend, candidates: Sequence[_Candidate], **once: Seconds) -> _Candidate:
    of_row = {(one.method, one.pooling): one for one in candidates}
    first, second = (of_row[row] for row in zip(blend.methods, blend.poolings, strict=True))
    scores = blend.scores(first.scores.T, second.scores.T).T.astype(np.float32)
    cost = {key: first.cost[key] + second.cost[key] for key in first.cost}
    return _Candidate(name, "chosen", scores, cost | _entries(once))


def _entries(parts: Mapping[str, Seconds]) -> dict[str, float]:
    return {column: value for name, part in parts.items() for column, value in part.entries(name).items()}


def _cost(scores: Path, **once: Seconds) -> dict[str, float]:
    metadata = read_metadata(scores)
    parts = {name: Seconds.read(metadata, name) for name in ("embedding", "scoring", "start_up")}
    return {
        **(parts["embedding"] + parts["scoring"]).entries(),
        **_entries({**parts, **once}),
        "bytes_per_example": float(metadata["bytes_per_example"]),
    }


def _lds_rows(
    evaluation: str,
    candidates: Sequence[_Candidate],
    measured: MeasuredLosses,
    draws: np.ndarray,
    confidence: float,
) -> pd.DataFrame:
    agreement, losses = seed_agreement(measured.by_seed), measured.mean
    scored = [(one.method, one.pooling, linear_datamodeling_score(one.scores, losses)) for one in candidates]
    rows = pd.DataFrame(scored, columns=["method", "pooling", "lds"])
    rows[["ci_low", "ci_high"]] = [interval(its_draws, confidence) for its_draws in draws]
    return rows.join(pd.DataFrame([one.cost for one in candidates])).assign(
        evaluation=evaluation,
        ceiling=noise_ceiling(agreement, measured.by_seed.shape[2]),
        seed_agreement=agreement,
        n_tests=(np.ptp(losses, axis=1) > 0).sum(),
        n_subsets=len(measured.subsets),
    )


def _best_first(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("lds", ascending=False, kind="stable")


def _difference_rows(
    rows: pd.DataFrame, draws: np.ndarray, main: str, blends: Collection[str], confidence: float
) -> pd.DataFrame:
    """Return the paired differences of the first row of `main`, and of each blend, to all other rows."""
    methods = rows["method"].tolist()
    leading = [leading_place(methods, main), *map(methods.index, blends)]
    pairs = [(one, other) for one in leading for other in range(len(rows)) if other != one]
    a, b = (rows.iloc[[pair[side] for pair in pairs]].reset_index() for side in (0, 1))
    intervals = [paired_difference(draws[first], draws[second], confidence) for first, second in pairs]
    return pd.DataFrame(
        {
            "method_a": a["method"],
            "pooling_a": a["pooling"],
            "method_b": b["method"],
            "pooling_b": b["pooling"],
            "evaluation": a["evaluation"],
            "difference": a["lds"] - b["lds"],
            "ci_low": [low for low, _ in intervals],
            "ci_high": [high for _, high in intervals],
        }
    )


def _show(rows: pd.DataFrame, measured: MeasuredLosses, confidence: float) -> None:
    first = rows.iloc[0]
    say(
        f"\nLDS on {first['evaluation']}: {first['n_tests']:,} tests, {first['n_subsets']:,} subsets, "
        f"{measured.by_seed.shape[2]} runs of each; seed agreement {first['seed_agreement']:.3f}, "
        f"noise ceiling {first['ceiling']:.3f}"
    )
    if left_out := len(measured.tests) - first["n_tests"]:
        say(f"  left out: {left_out:,} tests whose loss is the same for every subset")
    if measured.diverged:
        say(f"  left out: {measured.diverged:,} runs that diverged")
    say(f"  intervals cover {confidence:.0%}")
    for line in lds_table(rows):
        say(line)


if __name__ == "__main__":
    run_stage(evaluate_lds)
