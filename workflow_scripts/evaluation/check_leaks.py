"""Reject an evaluation whose test examples are in the encoder's training corpus, and report near duplicates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.frames import write_frame
from workflow_scripts.core.parquet import read_table
from workflow_scripts.core.progress import Progress, say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.near_duplicates import word_triples
from workflow_scripts.corpora.tables import WHERE

SCHEMA = pa.schema(
    [
        ("evaluation", pa.string()),
        ("test_id", pa.int32()),
        ("example_id", pa.int32()),
        ("similarity", pa.float32()),
        ("test_file", pa.string()),
        ("test_row", pa.int64()),
        ("example_file", pa.string()),
        ("example_row", pa.int64()),
    ]
)
COLUMNS = ["example_id", "prompt", "response", "hash", *WHERE]
ROWS_AT_ONCE = 20_000


def check_leaks(
    corpus: Path,
    tests: Sequence[Path],
    validations: Sequence[Path],
    leaks: Path,
    lm_corpora: Sequence[Path] = (),
    *,
    near_duplicate: float,
) -> None:
    """Write the test examples with a near duplicate in the encoder's corpus, each with the most similar example there.

    Parameters
    ----------
    corpus: `corpora/` file that the encoder's targets are drawn from.
    tests: for each evaluation, the `corpora/` file of its tests.
    validations: for each evaluation, the file with the ids of its test examples,
        `<evaluation>.validation.parquet`.
    leaks: Parquet file to write, one row per near duplicate.
    lm_corpora: `corpora/` files that the study's LMs are pretrained on, which must have no test either.
    near_duplicate: smallest Jaccard similarity of the sets of word 3-grams that is reported. Texts of fewer than three
        words are only compared exactly.

    Raises
    ------
    StudyError: a test example is in `corpus` or one of `lm_corpora` word for word.
    """
    seen = read_table(corpus, COLUMNS)
    read_by_lms = {path: read_table(path, ["hash", *WHERE]) for path in lm_corpora}
    found = []
    for test_corpus, validation in zip(tests, validations, strict=True):
        evaluation = validation.name.removesuffix(".validation.parquet")
        chosen = read_table(validation)["example_ids"].combine_chunks().values
        table = read_table(test_corpus, COLUMNS).take(chosen)
        _refuse_exact(evaluation, table, seen, corpus, "encoder")
        for path, read in read_by_lms.items():
            _refuse_exact(evaluation, table, read, path, "LM")
        near = _near_duplicates(evaluation, table, seen, near_duplicate)
        found.append(near)
        duplicated = f"{len(near):,} of {table.num_rows:,} tests"
        say(f"check_leaks {evaluation}: {duplicated} have a near duplicate in {corpus.stem}")
    write_frame(leaks, pd.concat(found), SCHEMA)


def _refuse_exact(evaluation: str, tests: pa.Table, seen: pa.Table, corpus: Path, reader: str) -> None:
    place = pc.index_in(tests["hash"], seen["hash"])
    leaked = tests.filter(pc.is_valid(place))
    if len(leaked):
        first, its_example = leaked.slice(0, 1).to_pylist()[0], pc.drop_null(place)[0].as_py()
        same = seen.slice(its_example, 1).to_pylist()[0]
        raise StudyError(
            f"{len(leaked):,} test examples of {evaluation!r} occur word for word in {corpus.stem!r}, which the "
            f"{reader} is trained on (e.g. row {first['source_row']} of {first['source_file']} "
            f"is its row {same['source_row']} of {same['source_file']}). Write parts that don't "
            f"overlap, or `without: [<the test corpus>]` under corpora.{corpus.stem}."
        )


def _near_duplicates(evaluation: str, tests: pa.Table, seen: pa.Table, smallest: float) -> pd.DataFrame:
    test_grams = word_triples(tests)
    test_sizes = np.asarray(test_grams.sum(axis=1)).ravel()
    best = np.zeros(tests.num_rows, np.float32)
    nearest = np.zeros(tests.num_rows, np.int64)
    progress = Progress(f"check_leaks {evaluation}", seen.num_rows, "training examples")
    for start in range(0, seen.num_rows, ROWS_AT_ONCE):
        part = seen.slice(start, ROWS_AT_ONCE)
        grams = word_triples(part)
        common = (test_grams @ grams.T).tocoo()
        either = test_sizes[common.row] + np.asarray(grams.sum(axis=1)).ravel()[common.col] - common.data
        similarity = sparse.csr_matrix((common.data / either, (common.row, common.col)), shape=common.shape)
        highest = similarity.max(axis=1).toarray().ravel()
        better = highest > best
        best[better] = highest[better]
        nearest[better] = start + np.asarray(similarity.argmax(axis=1)).ravel()[better]
        progress.advance(part.num_rows)
    close = best >= smallest
    return pd.DataFrame(
        {
            "evaluation": evaluation,
            "test_id": tests["example_id"].to_numpy()[close],
            "example_id": seen["example_id"].to_numpy()[nearest[close]],
            "similarity": best[close],
            **_where("test", tests, np.flatnonzero(close)),
            **_where("example", seen, nearest[close]),
        }
    )


def _where(role: str, corpus: pa.Table, places: np.ndarray) -> dict[str, list[object]]:
    taken = corpus.select(WHERE).take(pa.array(places, pa.int64()))
    return {f"{role}_file": taken["source_file"].to_pylist(), f"{role}_row": taken["source_row"].to_pylist()}


if __name__ == "__main__":
    run_stage(check_leaks)
