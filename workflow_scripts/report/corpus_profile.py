"""Statistics of each corpus for the report: rows, rejected rows, truncation, lengths, class labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from workflow_scripts.core.frames import read_frame, rows_of
from workflow_scripts.core.parquet import read_table
from workflow_scripts.corpora.tables import WHERE, row_name
from workflow_scripts.language_model.tokens import NO_RESPONSE
from workflow_scripts.study.config import Study
from workflow_scripts.study.method_costs import warmup_jobs
from workflow_scripts.study.plan import StudyPlan

LENGTH_BINS = 24
LABELS_SHOWN = 10
REJECTS_SHOWN = 5


@dataclass(frozen=True)
class Reject:
    """Rows rejected for one reason: how many, and the numbers of the first ones in the source."""

    reason: str
    rows: int
    first: list[str]


@dataclass(frozen=True)
class Lengths:
    """Histogram of the examples' lengths.

    Parameters
    ----------
    unit: unit of all lengths.
    median: median length.
    high: 95th percentile of the lengths.
    longest: largest length.
    edges: edges of the bins, one more than `counts`.
    counts: number of examples in each bin.
    """

    unit: str
    median: int
    high: int
    longest: int
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class CorpusProfile:
    """Statistics of one corpus.

    Parameters
    ----------
    name: name of the corpus.
    roles: what the study uses it for.
    rows: number of examples.
    rejects: rejected rows, by reason.
    tokenised: number of examples that were tokenised; 0 if the LM never reads the corpus.
    shortened: number of examples that the token limit cut.
    without_response: number of examples left out because no response token was left.
    lengths: lengths of the examples; None if there are none.
    labels: the most frequent class labels and their numbers of examples.
    distinct_labels: number of class labels.
    """

    name: str
    roles: list[str]
    rows: int
    rejects: list[Reject]
    tokenised: int
    shortened: int
    without_response: int
    lengths: Lengths | None
    labels: list[tuple[str, int]]
    distinct_labels: int

    @property
    def rejected(self) -> int:
        """Number of rejected rows, for any reason."""
        return sum(reject.rows for reject in self.rejects)


def gather_profiles(
    corpora: Sequence[Path],
    rejected: Sequence[Path],
    tokens: Sequence[Path],
    rejected_tokens: Sequence[Path],
    study: Study,
) -> list[CorpusProfile]:
    """Return the statistics of every corpus; files are matched by their names.

    Parameters
    ----------
    corpora: `corpora/` files.
    rejected: files of their rejected rows.
    tokens: `tokens/` files; only corpora that the LM reads have one.
    rejected_tokens: files of the examples without a response token.
    study: the study, for the corpora's roles.
    """
    rejected_of = {_corpus(path): path for path in rejected}
    tokens_of = {_corpus(path): path for path in tokens}
    without_response_of = {_corpus(path): path for path in rejected_tokens}
    return [
        _profile(
            path,
            rejected_of.get(_corpus(path)),
            tokens_of.get(_corpus(path)),
            without_response_of.get(_corpus(path)),
            _roles(study, _corpus(path)),
        )
        for path in corpora
    ]


def _corpus(path: Path) -> str:
    return path.name.removesuffix(".parquet").removesuffix(".rejected")


def _roles(study: Study, corpus: str) -> list[str]:
    plan = StudyPlan(study)
    roles = []
    lms = [plan.language_model(lm) for lm in plan.language_models] if study.uses_lm else []
    if any(lm.model == "builtin:tiny" and lm.pretraining.corpus == corpus for lm in lms):
        roles.append("pre-training of the base LM")
    warms_up = plan.detection_losses() or any(warmup_jobs(plan, method) for method in study.scoring.methods)
    if warms_up and plan.warmup_corpus() == corpus:
        roles.append("warm-up of the LM")
    if study.targets and study.targets.corpus == corpus:
        roles.append("training of the encoder")
    for name, evaluation in study.evaluations.items():
        if evaluation.train == corpus:
            roles.append(f"training pool of {name}")
        if evaluation.test == corpus:
            roles.append(f"test examples of {name}")
    roles += [f"left out of {name}" for name, one in study.corpora.items() if corpus in one.without]
    return roles


def _profile(
    corpus: Path, rejected: Path | None, tokens: Path | None, without_response: Path | None, roles: list[str]
) -> CorpusProfile:
    table = read_table(corpus, ["prompt", "response", "label", "source_file"])
    several_files = pc.count_distinct(table["source_file"]).as_py() > 1
    cut = read_frame(without_response, [*WHERE, "reason"]) if without_response else pd.DataFrame(columns=["reason"])
    is_cut = cut["reason"].str.startswith(NO_RESPONSE)
    refused = [cut[~is_cut], *([read_frame(rejected, [*WHERE, "reason"])] if rejected else [])]
    labels = table["label"].to_pandas().value_counts().sort_index().sort_values(ascending=False, kind="stable")
    tokenised, shortened = 0, 0
    if tokens:
        read = read_table(tokens, ["input_ids", "cut_tokens"])
        tokenised = read.num_rows
        shortened = pc.sum(pc.greater(read["cut_tokens"], 0)).as_py() or 0
        lengths = _lengths(pc.list_value_length(read["input_ids"]).to_numpy(), "tokens")
    else:
        characters = pc.add(pc.utf8_length(table["prompt"]), pc.utf8_length(table["response"]))
        lengths = _lengths(characters.drop_null().to_numpy(), "characters")
    return CorpusProfile(
        name=_corpus(corpus),
        roles=roles,
        rows=table.num_rows,
        rejects=_rejects(pd.concat(refused), several_files),
        tokenised=tokenised,
        shortened=shortened,
        without_response=int(is_cut.sum()),
        lengths=lengths,
        labels=list(labels.head(LABELS_SHOWN).items()),
        distinct_labels=len(labels),
    )


def _rejects(rejected: pd.DataFrame, several_files: bool) -> list[Reject]:
    rejects = []
    for reason, rows in rejected.groupby("reason", sort=False):
        first = [
            row_name(row.source_file, row.source_row, several_files).removeprefix("row ")
            for row in rows_of(rows.head(REJECTS_SHOWN))
        ]
        rejects.append(Reject(str(reason), len(rows), first))
    return sorted(rejects, key=lambda reject: -reject.rows)


def _lengths(lengths: np.ndarray, unit: str) -> Lengths | None:
    if not len(lengths):
        return None
    # One 100 kB row must not squeeze all others into the first bin: the last bin is open.
    end = max(float(np.quantile(lengths, 0.99)), 1.0)
    counts, edges = np.histogram(np.minimum(lengths, end), bins=LENGTH_BINS, range=(0, end))
    return Lengths(
        unit=unit,
        median=int(np.median(lengths)),
        high=int(np.quantile(lengths, 0.95)),
        longest=int(lengths.max()),
        edges=edges.tolist(),
        counts=counts.tolist(),
    )
