"""Print a finished study's LDS tables, the top examples of evaluations without one, and the path of the report.

Run: python -m workflow_scripts.report.show_results CONFIG
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import read_frame
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.progress import one_line
from workflow_scripts.corpora.tables import WHERE, row_name
from workflow_scripts.evaluation.average import average_table
from workflow_scripts.evaluation.lds_table import lds_table
from workflow_scripts.study.config import Study
from workflow_scripts.study.config_files import read_study

TESTS_SHOWN = 5
EXAMPLES_SHOWN = 3
CHARACTERS = 50


def results_text(results: Path, study: Study) -> str:
    """Return the results of every evaluation and the report's path, as text.

    For an evaluation that is its LDS table, or some tests with their top examples if it has no LDS.

    Parameters
    ----------
    results: folder of the study's results.
    study: the study.
    """
    has_lds = any(evaluation.subsets for evaluation in study.evaluations.values())
    rows = read_frame(results / "evaluation" / "lds.parquet") if has_lds else pd.DataFrame()
    average = results / "evaluation" / "average_lds.parquet"
    lines = [
        line
        for name, evaluation in study.evaluations.items()
        for line in (_lds_table(name, rows) if evaluation.subsets else _best_examples(results, study, name))
    ]
    # Results of earlier versions don't have it.
    if average.exists():
        lines = ["", *average_table(read_frame(average), rows), *lines]
    return "\n".join([*lines, *_near_duplicates(results, study), "", f"Report: {results / 'report.html'}"])


def _best_examples(results: Path, study: Study, evaluation: str) -> Iterator[str]:
    method = study.scoring.methods[0]
    path = results / "scores" / method / f"{evaluation}.parquet"
    table = read_table(path)
    table = table.filter(pc.and_(pc.equal(table["sign"], "helpful"), pc.less_equal(table["rank"], EXAMPLES_SHOWN)))
    best = table.to_pandas().sort_values(["test_id", "rank"]).groupby("test_id")
    corpora = study.evaluations[evaluation]
    tests, examples = (
        _Shown.read(results / "corpora" / f"{corpus}.parquet") for corpus in (corpora.test, corpora.train)
    )
    yield ""
    yield f"Most helpful training examples on {evaluation} by {method} ({len(best):,} tests; all scores: {path})"
    for test, rows in itertools.islice(best, TESTS_SHOWN):
        yield f"  test, {tests.text(test)}"
        for row in rows.itertuples():
            yield f"  {row.score:>9.4f}  {examples.text(row.example_id)}"
    if len(best) > TESTS_SHOWN:
        yield f"  ... and {len(best) - TESTS_SHOWN:,} tests more"


@dataclass(frozen=True)
class _Shown:
    """A corpus whose examples are shown."""

    corpus: pa.Table
    several_files: bool

    @classmethod
    def read(cls, corpus: Path) -> _Shown:
        table = read_table(corpus, ["prompt", "response", *WHERE])
        return cls(table, pc.count_distinct(table["source_file"]).as_py() > 1)

    def text(self, example_id: int) -> str:
        # The ids of a corpus are the places of its rows.
        (row,) = self.corpus.slice(example_id, 1).to_pylist()
        where = row_name(row["source_file"], row["source_row"], self.several_files)
        return f"{where}: {one_line(row['prompt'], CHARACTERS)} -> {one_line(row['response'], CHARACTERS)}"


def _near_duplicates(results: Path, study: Study) -> Iterator[str]:
    path = results / "evaluation" / "leaks.parquet"
    if study.targets and path.exists() and (found := read_table(path, ["evaluation"]).num_rows):
        yield ""
        yield f"{found:,} tests have a near duplicate in the corpus that the encoder is trained on: {path}"


def _lds_table(evaluation: str, rows: pd.DataFrame) -> Iterator[str]:
    rows = rows[rows["evaluation"] == evaluation]
    yield ""
    if rows.empty:
        yield f"LDS on {evaluation}: it can't be computed there; the report says why"
        return
    first = rows.iloc[0]
    yield (
        f"LDS on {evaluation} ({first['n_tests']:,} tests, {first['n_subsets']:,} subsets, "
        f"noise ceiling {first['ceiling']:.3f})"
    )
    yield from lds_table(rows)


def main() -> None:
    """Print the results of the study whose config is the first argument of the command line."""
    config = Path(sys.argv[1])
    try:
        study = read_study(config)
        results = Path("results") / study.run
        if not (results / "report.html").exists():
            raise StudyError(f"{results} has no report yet; run the study first")
        print(results_text(results, study))
    except StudyError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
