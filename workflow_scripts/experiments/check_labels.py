"""Refuse experiments that ask for labels which the corpora don't have, and count the labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
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
    """Write how many training and test examples of each evaluation carry each label (null: none).

    Parameters
    ----------
    corpora: all that the evaluations need, matched by their names.
    evaluations: names of the training and the test corpus of each evaluation that needs labels.
    classified: those whose tests are classified, so that the training examples need labels that differ.

    Raises
    ------
    StudyError: no test of an evaluation has a label, or the training examples of a classified one are all alike.
    """
    corpus = {path.stem: path for path in corpora}
    rows: list[dict[str, Any]] = []
    for evaluation, (train, test) in evaluations.items():
        train_labels, test_labels = (read_table(corpus[name], ["label"])["label"] for name in (train, test))
        _refuse_none(evaluation, test, test_labels)
        if evaluation in classified:
            _refuse_alike(evaluation, train, train_labels)
        for role, values in (("train", train_labels), ("test", test_labels)):
            counts = values.value_counts().to_pylist()
            rows += [
                {"evaluation": evaluation, "role": role, "label": c["values"], "examples": c["counts"]} for c in counts
            ]
            say(f"check_labels {evaluation}: {len(counts):,} labels among {len(values):,} {role} examples")
    write_table(labels, pa.Table.from_pylist(rows, SCHEMA))


def _refuse_none(evaluation: str, corpus: str, labels: pa.ChunkedArray) -> None:
    if labels.null_count == len(labels):
        raise StudyError(
            f"no test of {evaluation} has a label, so there is nothing to classify and no task to select data for. "
            f"Name the column under corpora.{corpus}.columns, e.g. {{label: task}}, or leave {evaluation} out of "
            "experiments.classification and experiments.selection."
        )


def _refuse_alike(evaluation: str, corpus: str, labels: pa.ChunkedArray) -> None:
    distinct = pc.unique(labels)
    if len(distinct) == 1:
        label = distinct[0].as_py()
        found = "have no label" if label is None else f"have the label {label!r}"
        raise StudyError(
            f"all examples of the corpus {corpus} {found}, so every method is right about the same tests. Name another "
            f"column under corpora.{corpus}.columns, or leave {evaluation} out of "
            "experiments.classification.evaluations."
        )


if __name__ == "__main__":
    run_stage(snakemake, check_labels)  # noqa: F821
