"""Write and read scores as Parquet tables: those of a whole corpus, and those of a part before they are merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflow_scripts.core.parquet import read_table, write_batches, write_table
from workflow_scripts.core.timing import Seconds
from workflow_scripts.corpora.tables import WHERE, take_examples
from workflow_scripts.scoring.corpus_scores import CorpusScores, PartScores
from workflow_scripts.scoring.group_scores import GroupSums
from workflow_scripts.scoring.top_k import Sign

SIGNS: tuple[Sign, ...] = ("helpful", "harmful")
Costs = Callable[[], Mapping[str, str]]


def costs(scoring: Seconds, embedding: Seconds, start_up: Seconds, bytes_per_example: float) -> dict[str, str]:
    """Return what scores cost, as metadata of their file.

    Parameters
    ----------
    scoring: work of the scoring jobs, from the first row read to the last one written.
    embedding: work of embedding training examples and tests.
    start_up: start-up of both.
    bytes_per_example: what is stored for each training example.
    """
    times = {"scoring": scoring, "embedding": embedding, "start_up": start_up}
    texts = {key: text for name, seconds in times.items() for key, text in seconds.texts(name).items()}
    return {**texts, "bytes_per_example": f"{bytes_per_example:.1f}"}


def write_scores(
    train: Path,
    test: Path,
    scores: Path,
    groups: Path,
    result: CorpusScores,
    poolings: Iterable[str],
    test_ids: np.ndarray,
    subsets: np.ndarray,
    costs: Costs,
) -> None:
    """Write the scores of all subsets, and then the top examples of each test, with what `costs` returns as metadata.

    `costs` is called once the rows are written. The corpora `train` and `test` say in which rows of their sources tests
    and examples stand.
    """
    tables = []
    for pooling in poolings:
        found = result.groups(pooling)
        columns = {**_pairs(test_ids, subsets), "pooling": pa.array([pooling] * found.size, pa.string())}
        tables.append(pa.table({**columns, "score": pa.array(found.ravel(), pa.float32())}))
    write_table(groups, pa.concat_tables(tables))
    write_top(train, test, scores, result, test_ids, costs)


def write_top(train: Path, test: Path, scores: Path, result: CorpusScores, test_ids: np.ndarray, costs: Costs) -> None:
    """Write the top examples of each test, as `write_scores` does."""
    top = _top_table({sign: result.top(sign) for sign in SIGNS}, test_ids)
    for role, corpus, ids in (("test", test, top["test_id"]), ("example", train, top["example_id"])):
        where = take_examples(corpus, ids.to_numpy(), WHERE)
        for column, name in zip(where.columns, ("file", "row"), strict=True):
            top = top.append_column(f"{role}_{name}", column)
    write_batches(scores, top.schema, [top], costs)


def write_part(
    scores: Path, sums: Path, part: PartScores, test_ids: np.ndarray, subsets: np.ndarray, costs: Costs
) -> None:
    """Write the scores of a part of a corpus.

    Parameters
    ----------
    scores: Parquet file to write, the top examples as in `write_scores`.
    sums: Parquet file to write, the group sums, one row per test and subset.
    part: scores of the part.
    test_ids: int [tests], ids of the tests.
    subsets: int [subsets], numbers of the subsets.
    costs: returns entries of the metadata of `scores`; called once the rows are written.
    """
    members, *arrays = part.sums
    columns = _pairs(test_ids, subsets) | {"members": np.tile(members, len(test_ids))}
    # [subsets, tests], and rows stand test by test.
    columns |= {name: array.T.ravel() for name, array in zip(GroupSums._fields[1:], arrays, strict=True)}
    write_table(sums, pa.table(columns))
    top = _top_table({"helpful": part.helpful, "harmful": part.harmful}, test_ids)
    write_batches(scores, top.schema, [top], costs)


def read_part(scores: Path, sums: Path, tests: int, subsets: int) -> PartScores:
    """Read what `write_part` wrote, for the same numbers of `tests` and `subsets`."""
    table = read_table(sums)
    members, *arrays = (table[name].to_numpy().reshape(tests, subsets) for name in GroupSums._fields)
    top = read_table(scores, ["sign", "example_id", "score"])
    found = {}
    for sign in SIGNS:
        rows = top.filter(pc.equal(top["sign"], sign))
        ids, values = rows["example_id"].to_numpy(), rows["score"].to_numpy()
        found[sign] = (ids.reshape(tests, -1), values.reshape(tests, -1))
    return PartScores(**found, sums=GroupSums(members[0], *(array.T for array in arrays)))


def _pairs(test_ids: np.ndarray, subsets: np.ndarray) -> dict[str, pa.Array]:
    return {
        "test_id": pa.array(np.repeat(test_ids, len(subsets)), pa.int32()),
        "subset": pa.array(np.tile(subsets, len(test_ids)), pa.int32()),
    }


def _top_table(found: dict[Sign, tuple[np.ndarray, np.ndarray]], test_ids: np.ndarray) -> pa.Table:
    tables = []
    for sign, (example_ids, scores) in found.items():
        tests, top = example_ids.shape
        columns = {
            "test_id": pa.array(np.repeat(test_ids, top), pa.int32()),
            "sign": pa.array([sign] * (tests * top), pa.string()),
            "rank": pa.array(np.tile(np.arange(1, top + 1), tests), pa.int32()),
            "example_id": pa.array(example_ids.ravel(), pa.int32()),
            "score": pa.array(scores.ravel(), pa.float32()),
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)
