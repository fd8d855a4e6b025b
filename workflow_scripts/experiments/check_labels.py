"""Reject experiments that need class labels which the corpora don't have, and count the labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import read_frame, write_frame
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage

SCHEMA = pa.schema(
    [("evaluation", pa.string()), ("role", pa.string()), ("label", pa.string()), ("examples", pa.int64())]
)


def check_labels(
    corpora: Sequence[Path],
    labels: Path,
    *,
    evaluations: Mapping[str, Sequence[str]],
    classified: Sequence[str],
) -> None:
    """Write how many training and test examples of each evaluation have each class label (null: none).

    Parameters
    ----------
    corpora: `corpora/` files that the evaluations need, matched by their names.
    labels: Parquet file to write, one row per evaluation, role and label.
    evaluations: for each evaluation that needs labels, the names of its training and its test corpus.
    classified: evaluations whose tests are classified, so that the training examples need labels that differ.

    Raises
    ------
    StudyError: no test of an evaluation has a label, or all training examples of a classified one have the same.
    """
    corpus = {path.stem: path for path in corpora}
    counted = []
    for evaluation, (train, test) in evaluations.items():
        train_labels, test_labels = (read_frame(corpus[name], ["label"])["label"] for name in (train, test))
        _refuse_none(evaluation, test, test_labels)
        if evaluation in classified:
            _refuse_alike(evaluation, train, train_labels)
        for role, values in (("train", train_labels), ("test", test_labels)):
            counts = values.groupby(values, sort=False, dropna=False).size().rename("examples").reset_index()
            counted.append(counts.assign(evaluation=evaluation, role=role))
            say(f"check_labels {evaluation}: {len(counts):,} labels among {len(values):,} {role} examples")
    write_frame(labels, pd.concat(counted), SCHEMA)


def _refuse_none(evaluation: str, corpus: str, labels: pd.Series) -> None:
    if labels.isna().all():
        raise StudyError(
            f"no test of {evaluation} has a label, so there is nothing to classify and no task to select data for. "
            f"Name the column under corpora.{corpus}.columns, e.g. {{label: task}}, or leave {evaluation} out of "
            "experiments.classification and experiments.selection."
        )


def _refuse_alike(evaluation: str, corpus: str, labels: pd.Series) -> None:
    distinct = labels.unique()
    if len(distinct) == 1:
        found = "have no label" if pd.isna(distinct[0]) else f"have the label {distinct[0]!r}"
        raise StudyError(
            f"all examples of the corpus {corpus} {found}, so every method is right about the same tests. Name another "
            f"column under corpora.{corpus}.columns, or leave {evaluation} out of "
            "experiments.classification.evaluations."
        )


if __name__ == "__main__":
    run_stage(check_labels)
