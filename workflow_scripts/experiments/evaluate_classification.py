"""Evaluate how often the top-ranked training example has the test's class label (paper, section 4.1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binomtest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import write_frame
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.tables import equals_a_test
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
    scores: `scores/<method>/<evaluation>.parquet` of every method and classified evaluation.
    corpora: `corpora/` files that the evaluations need, matched by their names.
    table: Parquet file to write, one row per method and evaluation.
    evaluations: for each evaluation, the names of its training and its test corpus; `check_labels` ensures that they
        have labels.
    confidence: coverage of the intervals, in (0, 1).

    Raises
    ------
    StudyError: no test of an evaluation has a label.
    """
    corpus = {path.stem: path for path in corpora}
    rows = []
    equal_tests: dict[str, np.ndarray] = {}
    for path in scores:
        train, test = (corpus[name] for name in evaluations[path.stem])
        if path.stem not in equal_tests:
            # All methods rank for the same tests.
            test_ids = read_table(path, ["test_id"])["test_id"].unique().to_numpy()
            equal_tests[path.stem] = equals_a_test(train, test, test_ids)
        hits = top_example_has_label(path, train, test, equal_tests[path.stem])
        right, tests = int(hits.sum()), len(hits)
        wilson = binomtest(right, tests).proportion_ci(confidence, method="wilson")
        method, evaluation = path.parent.name, path.stem
        row = {"method": method, "evaluation": evaluation, "metric": "accuracy", "value": right / tests}
        rows.append({**row, "ci_low": wilson.low, "ci_high": wilson.high, "n_tests": tests})
        say(f"  {method:<20} {evaluation:<12} {right / tests:.3f}   {wilson.low:.3f} to {wilson.high:.3f}")
    write_frame(table, pd.DataFrame(rows), SCHEMA)


def top_example_has_label(scores: Path, train: Path, test: Path, equal_tests: np.ndarray) -> np.ndarray:
    """Return for each test with a class label whether its most helpful example has the same, bool [tests].

    Rows that equal one of the tests are passed over. A test whose list has no other counts as missed.

    Parameters
    ----------
    scores: `scores/<method>/<evaluation>.parquet`.
    train: `corpora/` file of the training examples.
    test: `corpora/` file of the tests.
    equal_tests: bool [rows], which training examples equal a test (`corpora.tables.equals_a_test`).

    Raises
    ------
    StudyError: no test has a label.
    """
    table = read_table(scores, ["test_id", "sign", "rank", "example_id"])
    table = table.filter(pc.equal(table["sign"], "helpful"))
    ranked = pd.DataFrame({name: table[name].to_numpy() for name in ("test_id", "rank", "example_id")})
    test_ids = ranked["test_id"].unique()
    is_test = equal_tests[ranked["example_id"]]
    others = ranked[~is_test].sort_values("rank", kind="stable").drop_duplicates("test_id").set_index("test_id")
    if passed_over := np.count_nonzero(is_test & (ranked["rank"] == 1)):
        say(f"  {scores.parent.name}: {passed_over:,} first-ranked rows equal a test, and are passed over")
    top = pa.array(others["example_id"].reindex(test_ids), pa.int64(), from_pandas=True)
    test_labels = read_table(test, ["label"])["label"].take(pa.array(test_ids))
    train_labels = read_table(train, ["label"])["label"].take(top)
    hits = pc.fill_null(pc.equal(test_labels, train_labels), False).filter(pc.is_valid(test_labels))
    if not len(hits):
        raise StudyError(
            f"none of the chosen tests of {scores.stem} has a label. Raise evaluations.{scores.stem}.tests, or leave "
            "it out of experiments.classification.evaluations."
        )
    return hits.to_numpy()


if __name__ == "__main__":
    run_stage(evaluate_classification)
