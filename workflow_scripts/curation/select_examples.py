"""Select rows of a corpus by their scores for the tests of an evaluation (docs/curate.md)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_schema, write_batches
from workflow_scripts.core.progress import one_line, say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.tables import WHERE, equals_a_test, row_name, take_examples
from workflow_scripts.curation.choosing import choose, number_of_rows
from workflow_scripts.curation.ranking import (
    Ranking,
    means_of_embeddings,
    means_of_texts,
    rank_by_best_rank,
    rank_by_mean_score,
)
from workflow_scripts.curation.tables import SELECTION_SCHEMA
from workflow_scripts.scoring.same_label import NO_TEST, SameLabelTests
from workflow_scripts.study.curation_section import Curation
from workflow_scripts.targets.tables import read_tests

SHOWN_CHARACTERS = 80
ROWS_AT_ONCE = 50_000


def select_examples(
    train: Path,
    test: Path,
    validation: Path,
    scores: Path | None,
    train_embeddings: Sequence[Path],
    test_embeddings: Sequence[Path],
    selection: Path,
    *,
    choice: Curation,
    near_duplicate: float | None,
    seed: int,
    tile_examples: int,
) -> None:
    """Write which rows of a corpus are selected, best first, and why.

    Parameters
    ----------
    train: `corpora/` file of the training examples.
    test: `corpora/` file of the tests.
    validation: file with the ids of the tests, in one row.
    scores: top lists of the method; None for rules that need the scores of all rows.
    train_embeddings: embeddings of the training examples, one file or its parts; [] for methods that score texts, and
        where `scores` suffice.
    test_embeddings: embeddings of the tests, as those.
    selection: Parquet file to write, one row per selected row (`curation.tables`).
    choice: the selection's section of the config.
    near_duplicate: smallest Jaccard similarity of near duplicates; None to keep them.
    seed: seed of methods that score at random.
    tile_examples: how many rows are scored at a time.

    Raises
    ------
    StudyError: fewer rows than `choice.size` can be selected, a quota is for a label or file that no row has, or a file
        can't be read.
    """
    test_ids = read_tests(validation)
    rows = read_schema(train)[1]
    ranking = _ranking(train, test, test_ids, scores, train_embeddings, test_embeddings, choice, seed, tile_examples)
    ranking, equal_tests = _without_tests(ranking, train, test, test_ids)
    most = None if choice.size is None else number_of_rows(choice.size, rows)
    chosen = choose(
        train,
        ranking.example_ids,
        most,
        quota_by=choice.quota_by,
        quotas=choice.quotas,
        near_duplicate=near_duplicate,
    )
    found = len(chosen.places)
    folded = int(chosen.near_duplicates.sum())
    if found == 0 or (choice.rule != "helpful_only" and most is not None and found < most):
        raise StudyError(_too_few(choice, most, found, len(ranking.example_ids), folded, chosen.over_quota))
    example_ids, values = ranking.example_ids[chosen.places], ranking.scores[chosen.places]
    deciding = ranking.deciding_tests(example_ids)
    tests = _Tests(test, test_ids)

    def tables() -> Iterator[pa.Table]:
        for start in range(0, found, ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            yield pa.table(
                {
                    "rank": np.arange(start + 1, min(start + ROWS_AT_ONCE, found) + 1),
                    "example_id": example_ids[part],
                    "score": values[part],
                    "near_duplicates": chosen.near_duplicates[part],
                    **_columns(take_examples(train, example_ids[part], ["label", *WHERE, "hash"])),
                    "test_id": deciding[part],
                    **tests.where(deciding[part]),
                    "reason": [
                        _reason(choice, value, place, rows, tests.name(test_id), len(test_ids))
                        for value, place, test_id in zip(values[part], chosen.places[part], deciding[part], strict=True)
                    ],
                }
            )

    write_batches(
        selection,
        SELECTION_SCHEMA,
        tables(),
        rows=str(rows),
        ranked=str(len(ranking.example_ids)),
        tests=str(len(test_ids)),
        over_quota=str(chosen.over_quota),
        equal_tests=str(equal_tests),
        quantiles=json.dumps([] if ranking.quantiles is None else ranking.quantiles.tolist()),
    )
    say(f"select_examples: {found:,} of {rows:,} rows, {folded:,} near duplicates folded into them")


def _ranking(
    train: Path,
    test: Path,
    test_ids: np.ndarray,
    scores: Path | None,
    train_embeddings: Sequence[Path],
    test_embeddings: Sequence[Path],
    choice: Curation,
    seed: int,
    tile_examples: int,
) -> Ranking:
    if scores is not None:
        return rank_by_best_rank(scores)
    groups = SameLabelTests.read(train, test, test_ids) if choice.tests == "same_label" else None
    if groups and (groups.group_of == NO_TEST).all():
        raise StudyError(
            f"tests: same_label is asked for, and no row of {train} has the label of a test. Write tests: all, or name "
            "the column of the labels under corpora.<name>.columns, e.g. {label: task}."
        )
    if train_embeddings:
        means = means_of_embeddings(train_embeddings, test_embeddings, test_ids, tile_examples, groups)
    else:
        means = means_of_texts(choice.method, train, test, test_ids, seed, tile_examples, groups)
    ranking = rank_by_mean_score(means, lowest=choice.is_for_review)
    if choice.rule != "helpful_only":
        return ranking
    helpful = int(np.count_nonzero(ranking.scores > 0))
    return Ranking(ranking.example_ids[:helpful], ranking.scores[:helpful], ranking.deciding_tests, ranking.quantiles)


def _without_tests(ranking: Ranking, train: Path, test: Path, test_ids: np.ndarray) -> tuple[Ranking, int]:
    """Return a ranking without rows that equal one of the tests, and how many these are."""
    is_test = equals_a_test(train, test, test_ids)
    kept = ~is_test[ranking.example_ids]
    ranking = replace(ranking, example_ids=ranking.example_ids[kept], scores=ranking.scores[kept])
    return ranking, int(is_test.sum())


def _too_few(choice: Curation, most: int | None, found: int, ranked: int, folded: int, over_quota: int) -> str:
    asked = "any row" if most is None else f"{most:,} rows"
    passed = f"{folded:,} near duplicates and {over_quota:,} rows over their quota are passed over"
    if choice.reads_top_lists:
        return (
            f"{asked} are asked for, and {found:,} can be selected: the top lists of {choice.method} have {ranked:,} "
            f"distinct rows, of which {passed}. Raise scoring.top, lower size, or write rule: mean_score, which scores "
            "all rows."
        )
    if choice.rule == "helpful_only":
        return f"no row has a mean score above 0 by {choice.method} ({passed}). Write rule: mean_score and a size."
    untested = "" if choice.tests == "all" else ", and rows whose label no test has aren't ranked"
    return f"{asked} are asked for, and {found:,} can be selected: {passed}{untested}. Lower size, or raise quotas."


class _Tests:
    """Where the tests stand in their source, and what they say."""

    def __init__(self, corpus: Path, test_ids: np.ndarray):
        table = take_examples(corpus, test_ids, [*WHERE, "prompt", "response"])
        self._table = table.select(WHERE).rename_columns(["test_file", "test_row"])
        self._place = {int(test_id): place for place, test_id in enumerate(test_ids)}
        several = len(table["source_file"].unique()) > 1
        self._names = [
            f"{row_name(one['source_file'], one['source_row'], several)} "
            f"({one_line(one['prompt'] + ' -> ' + one['response'], SHOWN_CHARACTERS)})"
            for one in table.to_pylist()
        ]

    def where(self, test_ids: np.ndarray) -> dict[str, pa.ChunkedArray]:
        """Return `test_file` and `test_row` of some tests."""
        return _columns(self._table.take(pa.array([self._place[int(one)] for one in test_ids], pa.int64())))

    def name(self, test_id: int) -> str:
        """Return a test's row and the beginning of its text."""
        return self._names[self._place[int(test_id)]]


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.column_names}


def _reason(choice: Curation, score: float, place: int, rows: int, test: str, tests: int) -> str:
    """Return why a row is selected, in a sentence; `place` is its place in the ranking, from 0."""
    if choice.reads_top_lists:
        return f"its best rank is for the test in {test}, with score {score:.4g}"
    end, extreme = ("bottom", "lowest") if choice.is_for_review else ("top", "highest")
    over = f"{tests:,} tests" if choice.tests == "all" else "the tests of its label"
    return (
        f"mean score {score:.4g} over {over}, number {place + 1:,} from the {end} of {rows:,} rows; {extreme} "
        f"for the test in {test}"
    )


if __name__ == "__main__":
    run_stage(select_examples)
