"""Ask whether the top-ranked training example carries the test's label (paper, section 4.1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binomtest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_table, write_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.experiments.tables import KEYS, VALUES

SCHEMA = pa.schema([*KEYS, *VALUES, ("n_tests", pa.int32())])


def evaluate_classification(
    scores: Sequence[Path],
    corpora: Sequence[Path],
    table: Path,
    *,
    evaluations: Mapping[str, Sequence[str]],
    confidence: float,
) -> None:
    """Write each method's accuracy on each evaluation set, with Wilson's interval.

    Parameters
    ----------
    scores: `scores/<method>/<evaluation>.parquet`. corpora: all that the evaluations need, matched by their names.
    evaluations: names of the training and the test corpus of each evaluation, whose labels `check_labels` has seen.
    """
    corpus = {path.stem: path for path in corpora}
    rows: list[dict[str, Any]] = []
    for path in scores:
        train, test = (corpus[name] for name in evaluations[path.stem])
        hits = top_example_has_label(path, train, test)
        right, tests = int(hits.sum()), len(hits)
        wilson = binomtest(right, tests).proportion_ci(confidence, method="wilson")
        method, evaluation = path.parent.name, path.stem
        row = {"method": method, "evaluation": evaluation, "metric": "accuracy", "value": right / tests}
        rows.append({**row, "ci_low": wilson.low, "ci_high": wilson.high, "n_tests": tests})
        say(f"  {method:<20} {evaluation:<12} {right / tests:.3f}   {wilson.low:.3f} to {wilson.high:.3f}")
    write_table(table, pa.Table.from_pylist(rows, SCHEMA))


def top_example_has_label(scores: Path, train: Path, test: Path) -> np.ndarray:
    """Return for each test with a label whether its most helpful example carries it, bool [tests].

    Raises
    ------
    StudyError: no test has a label.
    """
    table = read_table(scores, ["test_id", "sign", "rank", "example_id"])
    table = table.filter(pc.and_(pc.equal(table["sign"], "helpful"), pc.equal(table["rank"], 1)))
    test_labels = read_table(test, ["label"])["label"].take(table["test_id"]).to_pylist()
    train_labels = read_table(train, ["label"])["label"].take(table["example_id"]).to_pylist()
    hits = [ours == theirs for ours, theirs in zip(test_labels, train_labels, strict=True) if ours is not None]
    if not hits:
        raise StudyError(
            f"none of the chosen tests of {scores.stem} has a label. Raise evaluations.{scores.stem}.tests, or leave "
            "it out of experiments.classification.evaluations."
        )
    return np.array(hits)


if __name__ == "__main__":
    run_stage(snakemake, evaluate_classification)  # noqa: F821
