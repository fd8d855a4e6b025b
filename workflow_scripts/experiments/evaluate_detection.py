"""Evaluate how well rankings of a damaged pool find the damaged rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from workflow_scripts.core.frames import read_frame, write_frame
from workflow_scripts.core.progress import Progress, say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.evaluation.lds import interval
from workflow_scripts.experiments.tables import KEYS, VALUES

HARM = ("all_tests", "same_label", "nearest_tests")
SELF_INFLUENCE, LOSS = "self_influence", "loss"
RECALL_SHARES = {"recall_at_1": 0.01, "recall_at_5": 0.05, "recall_at_10": 0.1}
PRECISION, DIFFERENCE = "average_precision", "average_precision_over_first"
ANY = "any"
# Relative spread of squared lengths that float16 alone gives.
ONE_LENGTH = 5e-3
SCHEMA = pa.schema(
    [
        *KEYS,
        ("ranking", pa.string()),
        ("damage", pa.string()),
        *VALUES,
        ("first_ranking", pa.string()),
        ("damaged_rows", pa.int32()),
        ("rows", pa.int32()),
    ]
)
# Numbers in the arrays of resamples: 32 MiB.
NUMBERS_AT_ONCE = 2**22


def evaluate_detection(
    damage: Path,
    harm: Sequence[Path],
    losses: Sequence[Path],
    table: Path,
    *,
    evaluation: str,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> None:
    """Write how well each ranking of the pool's rows, the most suspicious first, finds the damaged ones.

    Rankings are by the lowest mean score (`all_tests`, `same_label`, `nearest_tests`), the highest self-influence and
    the highest loss; of equal rows, chance decides, the same for all rankings. A row without a score or a loss is
    among the last. Each kind of damage is looked for among the rows that aren't damaged; `any` is all of them among all
    rows.

    Metrics are average precision, recall among the first 1, 5 and 10 % of the rows, and
    `average_precision_over_first`: the average precision minus that of the first method's ranking `first_ranking`. That
    is the same ranking for the other methods, each of the three for self-influence and losses, and `all_tests` for the
    first method's own others. Intervals are of the bootstrap over damaged and over undamaged rows, with the same draws
    for all rankings: neither other trusted tests nor another choice of damaged rows is part of them.

    Parameters
    ----------
    damage: file that `damage_pool` wrote.
    harm: files that `score_harm` wrote, one per method; the first method is compared with all others.
    losses: `losses/<LM>/` files of the damaged pool.
    table: Parquet file to write, one row per kind of damage, ranking and metric.
    evaluation: name of the evaluation.
    bootstrap: number of bootstrap draws.
    confidence: coverage of the intervals, in (0, 1).
    seed: seed of the bootstrap, and of the order of equal rows.
    """
    # Every row is scored by methods of texts, and none by all if the LM reads none of the last ones.
    rows = 1 + max(int(read_frame(path, ["example_id"]).max().iloc[0]) for path in (damage, *harm, *losses))
    rankings = _rankings(harm, losses, rows, generator(seed, "detection", "ties"))
    first = harm[0].stem
    kinds = _kinds(damage, rows)
    found = []
    progress = Progress("evaluate_detection", len(kinds), "kinds of damage")
    for kind, (is_bad, is_looked_at) in kinds.items():
        chosen = np.flatnonzero(is_looked_at)
        # Places in `chosen`, whose ids ascend.
        orders = {key: np.searchsorted(chosen, order[is_looked_at[order]]) for key, order in rankings.items()}
        values = _measure(orders, is_bad[chosen], bootstrap, generator(seed, "bootstrap", "detection", kind))
        progress.advance()
        sizes = {"damage": kind, "damaged_rows": int(is_bad.sum()), "rows": len(chosen)}
        for row in _rows(values, first, confidence):
            found.append({**row, **sizes, "evaluation": evaluation})
            if row["metric"] == PRECISION:
                value, low, high = row["value"], row["ci_low"], row["ci_high"]
                say(f"  {kind:<14} {row['method']:<20} {row['ranking']:<14} {value:>6.3f}   {low:.3f} to {high:.3f}")
    write_frame(table, pd.DataFrame(found), SCHEMA)


def _rankings(
    harm: Sequence[Path], losses: Sequence[Path], rows: int, rng: np.random.Generator
) -> dict[tuple[str, str], np.ndarray]:
    """Return by method and ranking the ids of the rows, int [rows], the most suspicious first."""
    found: dict[tuple[str, str], pd.Series] = {}
    for path in harm:
        scores = read_frame(path).set_index("example_id")
        for ranking in HARM:
            found[path.stem, ranking] = -scores[ranking]
        own = scores[SELF_INFLUENCE].to_numpy(float)
        # Of embeddings of one length it is the same for all rows, and what is left is rounding.
        if np.ptp(own) > ONE_LENGTH * np.abs(own).max():
            found[path.stem, SELF_INFLUENCE] = scores[SELF_INFLUENCE]
    for path in losses:
        found[path.parent.name, LOSS] = read_frame(path).set_index("example_id")["loss"]
    by_chance = rng.random(rows)
    rankings = {}
    for key, values in found.items():
        # The ids of a corpus are its row numbers. A method of an LM has no score of a row without a response token.
        suspicion = np.full(rows, -np.inf)
        suspicion[values.index.to_numpy(int)] = values.astype(float).fillna(-np.inf)
        rankings[key] = np.lexsort((by_chance, -suspicion))
    return rankings


def _kinds(damage: Path, rows: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each kind of damage which rows have it, and which are looked at, bool [rows] each."""
    damaged = read_frame(damage)
    is_damaged = np.zeros(rows, bool)
    is_damaged[damaged["example_id"].to_numpy(int)] = True
    kinds = {}
    for kind, own in damaged.groupby("damage", sort=True):
        has_it = np.zeros(rows, bool)
        has_it[own["example_id"].to_numpy(int)] = True
        kinds[str(kind)] = (has_it, has_it | ~is_damaged)
    return kinds if len(kinds) == 1 else {**kinds, ANY: (is_damaged, np.ones(rows, bool))}


@dataclass(frozen=True)
class _Values:
    """A ranking's value of each metric, and its values in the resamples, float64 [draws]."""

    value: dict[str, float]
    draws: dict[str, np.ndarray]


def _measure(
    orders: Mapping[tuple[str, str], np.ndarray], is_bad: np.ndarray, draws: int, rng: np.random.Generator
) -> dict[tuple[str, str], _Values]:
    once = np.ones((1, len(is_bad)))
    blocks: dict[tuple[str, str], list[dict[str, np.ndarray]]] = {key: [] for key in orders}
    for counts in _resamples(is_bad, draws, rng):
        for key, order in orders.items():
            blocks[key].append(detection_metrics(is_bad[order], counts[:, order]))
    values = {}
    for key, order in orders.items():
        value = {metric: float(found[0]) for metric, found in detection_metrics(is_bad[order], once).items()}
        resampled = {metric: np.concatenate([block[metric] for block in blocks[key]]) for metric in value}
        values[key] = _Values(value, resampled)
    return values


def _resamples(is_bad: np.ndarray, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each row is drawn, float64 [draws, rows]; the numbers of damaged rows and of others stay."""
    size = max(NUMBERS_AT_ONCE // len(is_bad), 1)
    for start in range(0, draws, size):
        counts = np.empty((min(size, draws - start), len(is_bad)))
        for part in map(np.flatnonzero, (is_bad, ~is_bad)):
            counts[:, part] = rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=len(counts))
        yield counts


def detection_metrics(is_bad: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return average precision and recall among the first rows of a ranking, float64 [draws] each.

    A row's own precision counts its copies as one: otherwise resamples would be better than the data they are drawn of.

    Parameters
    ----------
    is_bad: bool [rows], which rows are damaged, the most suspicious row first.
    counts: float64 [draws, rows], how often each row counts.
    """
    bad = counts * is_bad
    listed, hits, all_bad = counts.cumsum(axis=1), bad.cumsum(axis=1), bad.sum(axis=1)
    precision = (hits - bad + 1) / (listed - counts + 1)
    found = {PRECISION: (bad * precision).sum(axis=1) / all_bad}
    for metric, share in RECALL_SHARES.items():
        most = np.maximum(np.round(share * listed[:, -1:]), 1)
        within = np.clip(most - (listed - counts), 0, counts)
        found[metric] = (within * is_bad).sum(axis=1) / all_bad
    return found


def _rows(values: Mapping[tuple[str, str], _Values], first: str, confidence: float) -> Iterator[dict[str, object]]:
    for (method, ranking), own in values.items():
        key = {"method": method, "ranking": ranking, "first_ranking": None}
        for metric, value in own.value.items():
            low, high = interval(own.draws[metric], confidence)
            yield {**key, "metric": metric, "value": value, "ci_low": low, "ci_high": high}
        for other in _compared_with(method, ranking, first):
            theirs = values[first, other]
            low, high = interval(own.draws[PRECISION] - theirs.draws[PRECISION], confidence)
            difference = own.value[PRECISION] - theirs.value[PRECISION]
            numbers = {"value": difference, "ci_low": low, "ci_high": high}
            yield {**key, "metric": DIFFERENCE, "first_ranking": other, **numbers}


def _compared_with(method: str, ranking: str, first: str) -> Sequence[str]:
    """Return the rankings of the first method that another ranking is compared with."""
    if method == first:
        return [] if ranking == HARM[0] else HARM[:1]
    return [ranking] if ranking in HARM else HARM


if __name__ == "__main__":
    run_stage(evaluate_detection)
