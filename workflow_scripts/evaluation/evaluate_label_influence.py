"""Which labels of training rows help which labels of tests: each method's prediction beside the measured effect."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import write_frame
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.seeds import generator
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.tables import equals_a_test
from workflow_scripts.evaluation.group_scores import read_losses
from workflow_scripts.evaluation.label_influence import (
    LabelGroups,
    Resamples,
    agreement,
    agreement_ceiling,
    bootstrap_cells,
    bootstrap_effects,
    cells,
    measured_effects,
    shares_of_subsets,
    top_shares,
)
from workflow_scripts.evaluation.lds import interval
from workflow_scripts.scoring.label_sums import LabelSums, label_sums_of_embeddings, label_sums_of_texts

MOST_TRAIN_LABELS, MOST_TEST_LABELS = 12, 8
VALUES = ("mean_score", "advantage", "top_share", "measured")
SCHEMA = pa.schema(
    [
        ("evaluation", pa.string()),
        ("method", pa.string()),
        ("train_label", pa.string()),
        ("test_label", pa.string()),
        ("train_rows", pa.int64()),
        ("tests", pa.int64()),
        ("corpus_share", pa.float64()),
        *((f"{value}{end}", pa.float64()) for value in VALUES for end in ("", "_low", "_high")),
        ("train_labels_left_out", pa.int64()),
        ("test_labels_left_out", pa.int64()),
    ]
)
AGREEMENT_SCHEMA = pa.schema(
    [
        ("evaluation", pa.string()),
        ("method", pa.string()),
        ("prediction", pa.string()),
        ("agreement", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("ceiling", pa.float64()),
        ("n_cells", pa.int64()),
        ("n_subsets", pa.int64()),
    ]
)


def evaluate_label_influence(
    corpora: list[Path],
    validations: list[Path],
    scores: list[Path],
    embeddings: list[Path],
    subsets: list[Path],
    targets: list[Path],
    influence: Path,
    agreements: Path,
    *,
    evaluations: Mapping[str, Sequence[str]],
    methods: Mapping[str, Sequence[str] | None],
    texts: Sequence[str],
    bootstrap: int,
    confidence: float,
    seed: int,
    tile_examples: int,
) -> None:
    """Write a matrix of training labels x test labels for every method and evaluation, and how well each is confirmed.

    An evaluation whose training corpus has fewer than two labels (or one, and rows without) has no rows. The largest
    labels are kept; rows of the others count among "all other rows". Rows that equal a test don't count.

    Intervals are by the bootstrap. Tests are resampled within their label. Where fine-tuning was measured, subsets are
    resampled too, the same for all methods. Training rows are not resampled: the matrix is that of this corpus, all of
    whose rows are scored, but for those that equal a test.

    Parameters
    ----------
    corpora: `corpora/` files of all evaluations, matched by their names.
    validations: `subsets/<evaluation>.validation.parquet` of every evaluation, the ids of its tests.
    scores: `scores/<method>/<evaluation>.parquet` of every method and evaluation, for the lists of the most helpful.
    embeddings: `embeddings/<embedding>/<corpus>.parquet` that the methods read, parts of a corpus among them.
    subsets: `subsets/<evaluation>.parquet` of the evaluations whose subsets were fine-tuned.
    targets: `targets/<evaluation>.parquet` of these evaluations.
    influence: Parquet file to write, one row per evaluation, method, training label and test label (null: rows without
        a label), in the order of their size.
    agreements: Parquet file to write, for each evaluation with subsets, method and prediction (`mean_score` or
        `top_share`), Spearman's correlation over the cells of its matrix and the measured one.
    evaluations: for each evaluation, the names of its training and its test corpus.
    methods: for each method, the names of the embeddings of its training rows and of its tests; None for one that
        stores none.
    texts: the methods among them that score texts. One that neither does so nor stores embeddings has no mean scores.
    bootstrap: number of bootstrap draws.
    confidence: coverage of the intervals, in (0, 1).
    seed: seed of the bootstrap and of methods that score at random.
    tile_examples: how many rows are read or scored at a time.

    Raises
    ------
    StudyError: a file can't be read, or lacks tests or subsets.
    """
    frames, agreed = [], []
    for evaluation, (train, test) in evaluations.items():
        files = _Files(
            train=_of(corpora, train),
            test=_of(corpora, test),
            validation=_of(validations, f"{evaluation}.validation"),
            subsets=_of(subsets, evaluation) if any(path.stem == evaluation for path in subsets) else None,
            targets=_of(targets, evaluation) if any(path.stem == evaluation for path in targets) else None,
        )
        labels = read_table(files.train, ["label"])["label"].combine_chunks()
        test_ids = np.sort(read_table(files.validation)["example_ids"].combine_chunks().values.to_numpy())
        # A test's own row, of its own label, scores highest: that says nothing of what the label does.
        rows = LabelGroups.of(labels, MOST_TRAIN_LABELS, ~equals_a_test(files.train, files.test, test_ids))
        if len(rows.labels) < 2:
            say(f"evaluate_label_influence {evaluation}: {train} has no two labels, so nothing is compared")
            continue
        matrices = _Matrices(files, rows, test_ids, bootstrap, confidence, generator(seed, "labels", evaluation))
        for method, stored in methods.items():
            sums = None
            if stored:
                of_rows, of_tests = _parts(embeddings, stored[0], train), _parts(embeddings, stored[1], test)
                sums = label_sums_of_embeddings(of_rows, of_tests, test_ids, rows.codes, tile_examples)
            elif method in texts:
                pair = (files.train, files.test, test_ids)
                sums = label_sums_of_texts(method, *pair, rows.codes, seed=seed, tile_examples=tile_examples)
            (listed,) = (path for path in scores if (path.parent.name, path.stem) == (method, evaluation))
            frame, confirmed = matrices.of_method(sums, listed)
            frames.append(frame.assign(evaluation=evaluation, method=method))
            agreed += [{"evaluation": evaluation, "method": method, **one} for one in confirmed]
        say(f"evaluate_label_influence {evaluation}: {matrices.size}")
    _write(influence, frames, SCHEMA)
    _write(agreements, [pd.DataFrame(agreed)] if agreed else [], AGREEMENT_SCHEMA)


def _of(paths: Sequence[Path], name: str) -> Path:
    return next(path for path in paths if path.stem == name)


def _parts(embeddings: Sequence[Path], embedding: str, corpus: str) -> list[Path]:
    # A part is `<corpus>.<part>of<parts>.parquet`, and names have no dots.
    return [path for path in embeddings if (path.parent.name, path.name.partition(".")[0]) == (embedding, corpus)]


def _refuse_missing(path: Path, what: str, wanted: np.ndarray, found: np.ndarray) -> None:
    if missing := np.setdiff1d(wanted, found).tolist():
        raise StudyError(
            f"{path} lacks {len(missing):,} of the evaluation's {what}, e.g. {missing[0]}: it was made from other "
            "files. Delete it and run again."
        )


def _write(path: Path, frames: Sequence[pd.DataFrame], schema: pa.Schema) -> None:
    empty = schema.empty_table().to_pandas()
    write_frame(path, pd.concat(frames, ignore_index=True) if frames else empty, schema)


@dataclass(frozen=True)
class _Files:
    """The files of an evaluation: `subsets` and `targets` are None where nothing was fine-tuned."""

    train: Path
    test: Path
    validation: Path
    subsets: Path | None
    targets: Path | None


class _Matrices:
    """The matrices of an evaluation: the measured one, and by `of_method` those of a method."""

    def __init__(
        self,
        files: _Files,
        rows: LabelGroups,
        test_ids: np.ndarray,
        bootstrap: int,
        confidence: float,
        rng: np.random.Generator,
    ):
        self.rows, self.test_ids, self.confidence = rows, test_ids, confidence
        labels = read_table(files.test, ["label"])["label"].take(pa.array(self.test_ids))
        self.tests = LabelGroups.of(labels.combine_chunks(), MOST_TEST_LABELS)
        self.subsets = 0
        if files.subsets and files.targets:
            losses = read_losses(files.targets)
            _refuse_missing(files.targets, "tests", self.test_ids, losses.tests)
            self.subsets, mean = len(losses.subsets), losses.mean[np.searchsorted(losses.tests, self.test_ids)]
            table = read_table(files.subsets, ["subset", "example_ids"])
            _refuse_missing(files.subsets, "subsets", losses.subsets, table["subset"].to_numpy())
            table = table.take(pc.index_in(pa.array(losses.subsets, table["subset"].type), table["subset"]))
            shares = shares_of_subsets([ids.values.to_numpy() for ids in table["example_ids"]], rows)
        self.resamples = Resamples.draw(self.tests, self.subsets, bootstrap, rng)
        if self.subsets:
            self.measured = measured_effects(shares, mean, self.tests)
            self.measured_draws = bootstrap_effects(shares, mean, self.tests, self.resamples)
            self.ceiling = agreement_ceiling(shares, mean, self.tests, rng)

    @property
    def size(self) -> str:
        named = f"{len(self.rows.labels)} x {len(self.tests.labels)} labels"
        return f"{named}, {self.rows.left_out} of training rows and {self.tests.left_out} of tests left out"

    def of_method(self, sums: LabelSums | None, scores: Path) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """Return a method's rows of the table, and its agreements.

        Parameters
        ----------
        sums: sums of its scores; None where they aren't known.
        scores: its lists of the most helpful rows.
        """
        groups = len(self.rows.labels)
        columns = self._labels() | self._with_intervals("measured", *self._measured())
        predictions = {}
        if sums:
            means, advantages = (values[:groups] for values in (sums.means(), sums.advantages()))
            columns |= self._of_tests("mean_score", means) | self._of_tests("advantage", advantages)
            predictions["mean_score"] = advantages
        listed = read_table(scores, ["test_id", "sign", "example_id"])
        listed = listed.filter(pc.equal(listed["sign"], "helpful"))
        listed = listed.filter(pa.array(self.rows.codes[listed["example_id"].to_numpy()] >= 0))
        shown = top_shares(
            self.test_ids, listed["test_id"].to_numpy(), self.rows.codes[listed["example_id"].to_numpy()], groups
        )
        columns |= self._of_tests("top_share", shown)
        # Above what a list of random rows would have.
        predictions["top_share"] = shown - self.rows.shares[:, None]
        frame = pd.DataFrame(columns).reindex(columns=[*SCHEMA.names])
        return frame, list(self._agreements(predictions)) if self.subsets else []

    def _labels(self) -> dict[str, Any]:
        rows, tests = len(self.rows.labels), len(self.tests.labels)
        return {
            "train_label": np.repeat(np.array(self.rows.labels, object), tests),
            "test_label": np.tile(np.array(self.tests.labels, object), rows),
            "train_rows": np.repeat(self.rows.counts, tests),
            "tests": np.tile(self.tests.counts, rows),
            "corpus_share": np.repeat(self.rows.shares, tests),
            "train_labels_left_out": self.rows.left_out,
            "test_labels_left_out": self.tests.left_out,
        }

    def _measured(self) -> tuple[np.ndarray, np.ndarray]:
        if self.subsets:
            return self.measured, self.measured_draws
        unknown = np.full((len(self.rows.labels), len(self.tests.labels)), np.nan)
        return unknown, unknown[None]

    def _of_tests(self, name: str, values: np.ndarray) -> dict[str, np.ndarray]:
        draws = bootstrap_cells(values, self.tests, self.resamples)
        return self._with_intervals(name, cells(values, self.tests), draws)

    def _with_intervals(self, name: str, values: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
        tail = (1 - self.confidence) / 2
        known = np.where(np.isfinite(values), draws, 0.0)
        low, high = (np.where(np.isfinite(values), np.nanquantile(known, q, axis=0), np.nan) for q in (tail, 1 - tail))
        return {name: values.ravel(), f"{name}_low": low.ravel(), f"{name}_high": high.ravel()}

    def _agreements(self, predictions: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        for name, values in predictions.items():
            own, drawn_cells = cells(values, self.tests), bootstrap_cells(values, self.tests, self.resamples)
            # The same cells for the estimate and its interval: those that every resample can measure.
            known = np.isfinite([own, self.measured]).all(axis=0)
            known &= np.isfinite(drawn_cells).all(axis=0) & np.isfinite(self.measured_draws).all(axis=0)
            own = np.where(known, own, np.nan)
            drawn = agreement(np.where(known, drawn_cells, np.nan), self.measured_draws)
            low, high = interval(drawn, self.confidence) if np.isfinite(drawn).any() else (np.nan, np.nan)
            yield {
                "prediction": name,
                "agreement": float(agreement(own[None], self.measured[None])[0]),
                "ci_low": low,
                "ci_high": high,
                "ceiling": self.ceiling,
                "n_cells": int(known.sum()),
                "n_subsets": self.subsets,
            }


if __name__ == "__main__":
    run_stage(evaluate_label_influence)
