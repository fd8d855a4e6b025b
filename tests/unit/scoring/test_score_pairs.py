"""The stage's files against a dense computation on a small corpus."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, read_table, write_table
from workflow_scripts.core.timing import Seconds
from workflow_scripts.scoring.merge_scores import merge_scores
from workflow_scripts.scoring.score_pairs import score_pairs
from workflow_scripts.scoring.score_part import score_part
from workflow_scripts.study.methods import METHODS

EXAMPLES, TESTS, DIMENSION, TOP = 60, 8, 6, 5
TEST_IDS = [6, 1, 4]
ROOT = Path(__file__).parents[3]
SUBSETS = {0: [3, 50, 7, 22], 1: [9, 3, 59, 0], 2: [30, 31, 32, 33]}


def _embeddings(path, rows, seed, seconds, kind=np.float16):
    values = np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(kind)
    table = pa.table(
        {
            "example_id": pa.array(np.arange(rows), pa.int32()),
            "hash": ["0" * 16] * rows,
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), DIMENSION),
        }
    )
    costs = {"seconds": seconds, "cpu_seconds": 4 * seconds, "start_up_seconds": 100, "start_up_cpu_seconds": 50}
    write_table(path, table, **{name: str(value) for name, value in costs.items()})
    return values.astype(np.float32)


def _corpus(path, rows):
    words = ["red", "green", "blue", "cat", "dog", "sun"]
    generator = np.random.default_rng(rows)
    texts = [" ".join(generator.choice(words, generator.integers(1, 9))) for _ in range(rows)]
    columns = {
        "example_id": pa.array(range(rows), pa.int64()),
        "prompt": texts,
        "response": texts[::-1],
        # Some rows of the source were refused.
        "source_row": pa.array(range(3, rows + 3), pa.int64()),
        "source_file": ["a.jsonl"] * (rows // 2) + ["b.jsonl"] * (rows - rows // 2),
    }
    write_table(path, pa.table(columns))


@pytest.fixture
def files(tmp_path):
    _corpus(tmp_path / "train.parquet", EXAMPLES)
    _corpus(tmp_path / "test.parquet", TESTS)
    ids = pa.list_(pa.int32())
    subsets = {
        "fold": pa.array([0] * len(SUBSETS), pa.int32()),
        "subset": pa.array(list(SUBSETS), pa.int32()),
        "example_ids": pa.array(list(SUBSETS.values()), ids),
    }
    write_table(tmp_path / "subsets.parquet", pa.table(subsets))
    validation = {"fold": pa.array([0], pa.int32()), "example_ids": pa.array([TEST_IDS], ids)}
    write_table(tmp_path / "validation.parquet", pa.table(validation))
    names = ("train", "test", "subsets", "validation", "scores", "groups")
    return {name: tmp_path / f"{name}.parquet" for name in names}


def _as_given(paths):
    """Embeddings as the rules give them: those of the tests are a list."""
    return {**paths, "test_embeddings": [paths["test_embeddings"]]}


def _poolings(method):
    """Poolings of a study without held-back folds."""
    return ["attention" if pooling == "chosen" else pooling for pooling in METHODS[method].poolings]


def _run(files, method, **changes):
    values = {"evaluation": "mini", "seed": 0, "top": TOP, "tile_examples": 16}
    files = {"train_embeddings": None, "test_embeddings": [], **files}
    values["poolings"] = _poolings(method)
    score_pairs(**{**files, **values, "method": method, **changes})
    return read_table(files["scores"]), read_table(files["groups"])


def test_embeddings_give_the_dense_numbers(files, tmp_path):
    paths = {name: tmp_path / f"{name}.parquet" for name in ("train_embeddings", "test_embeddings")}
    examples = _embeddings(paths["train_embeddings"], EXAMPLES, 1, 2.5)
    tests = _embeddings(paths["test_embeddings"], TESTS, 2, 0.25)[TEST_IDS]
    scores, groups = _run(files | _as_given(paths), "untrained")
    dense = tests @ examples.T

    assert scores.schema.names[:5] == ["test_id", "sign", "rank", "example_id", "score"]
    assert scores["test_row"].to_pylist() == [test + 3 for test in scores["test_id"].to_pylist()]
    assert scores["example_row"].to_pylist() == [example + 3 for example in scores["example_id"].to_pylist()]
    halves = ["a.jsonl" if example < EXAMPLES // 2 else "b.jsonl" for example in scores["example_id"].to_pylist()]
    assert scores["example_file"].to_pylist() == halves
    assert scores.num_rows == 2 * len(TEST_IDS) * TOP
    table = scores.to_pandas()
    for row, test_id in enumerate(TEST_IDS):
        for sign, order in (("helpful", -1), ("harmful", 1)):
            found = table[(table.test_id == test_id) & (table.sign == sign)].sort_values("rank")
            expected = np.argsort(order * dense[row], kind="stable")[:TOP]
            assert found["rank"].tolist() == [1, 2, 3, 4, 5]
            assert found.example_id.tolist() == expected.tolist()
            np.testing.assert_allclose(found.score, dense[row][expected], rtol=1e-5)

    table = groups.to_pandas().set_index(["test_id", "subset", "pooling"]).score
    assert len(table) == len(TEST_IDS) * len(SUBSETS) * 2
    for row, test_id in enumerate(TEST_IDS):
        for subset, ids in SUBSETS.items():
            members = dense[row, ids]
            weights = np.exp(np.abs(members))
            expected = (weights * members).sum() / weights.sum()
            assert table[test_id, subset, "attention"] == pytest.approx(expected, rel=1e-5, abs=1e-5)
            assert table[test_id, subset, "mean"] == pytest.approx(members.mean(), rel=1e-5, abs=1e-5)

    metadata = read_metadata(files["scores"])
    assert float(metadata["embedding_seconds"]) == 2.75
    assert float(metadata["embedding_cpu_seconds"]) == 4 * 2.75
    assert float(metadata["bytes_per_example"]) == 2 * DIMENSION
    assert float(metadata["scoring_seconds"]) >= 0


@pytest.mark.parametrize("method", ["airrep", "untrained"])
@pytest.mark.parametrize("sizes", [[60], [20, 3, 9, 9, 9, 9, 1, 0]], ids=["one", "eight"])
def test_parts_give_the_same_files(files, tmp_path, method, sizes):
    paths = {name: tmp_path / f"{name}.parquet" for name in ("train_embeddings", "test_embeddings")}
    _embeddings(paths["train_embeddings"], EXAMPLES, 1, 2.5)
    _embeddings(paths["test_embeddings"], TESTS, 2, 0.25)
    scores, groups = _run(files | _as_given(paths), method)

    table = read_table(paths["train_embeddings"])
    part_scores, part_sums = [], []
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    for part in range(len(sizes)):
        rows = np.flatnonzero(owners == part)
        path = tmp_path / f"train.{part}.parquet"
        costs = {"seconds": "0.5", "cpu_seconds": "0.75", "start_up_seconds": "100", "start_up_cpu_seconds": "50"}
        write_table(path, table.take(pa.array(rows, pa.int32())), **costs)
        part_scores.append(tmp_path / f"scores.{part}.parquet")
        part_sums.append(tmp_path / f"sums.{part}.parquet")
        score_part(
            files["subsets"],
            files["validation"],
            path,
            [paths["test_embeddings"]],
            part_scores[-1],
            part_sums[-1],
            method=method,
            poolings=_poolings(method),
            part=f"{part}",
            top=TOP,
            tile_examples=4,
        )
    merged = tmp_path / "merged.parquet", tmp_path / "merged_groups.parquet"
    merge_scores(
        files["train"],
        files["test"],
        files["subsets"],
        files["validation"],
        part_scores,
        part_sums,
        *merged,
        method=method,
        poolings=_poolings(method),
        evaluation="mini",
        top=TOP,
    )
    assert read_table(merged[0]).drop_columns("score").equals(scores.drop_columns("score"))
    np.testing.assert_allclose(read_table(merged[0])["score"], scores["score"], rtol=1e-6)
    assert read_table(merged[1]).drop_columns("score").equals(groups.drop_columns("score"))
    np.testing.assert_allclose(read_table(merged[1])["score"], groups["score"], rtol=1e-6, atol=1e-6)
    metadata = read_metadata(merged[0])
    assert Seconds.read(metadata, "embedding") == Seconds(0.5 * len(sizes) + 0.25, 0.75 * len(sizes) + 1)
    of_parts = [read_metadata(path) for path in part_scores]
    for name in ("scoring", "start_up"):
        # What merging itself takes is added.
        assert Seconds.read(metadata, name).clock >= sum(Seconds.read(part, name).clock for part in of_parts)
    assert float(metadata["bytes_per_example"]) == 2 * DIMENSION


def test_parts_without_subsets_give_top_scores(files, tmp_path):
    paths = {name: tmp_path / f"{name}.parquet" for name in ("train_embeddings", "test_embeddings")}
    for seed, (name, rows) in enumerate({"train_embeddings": EXAMPLES, "test_embeddings": TESTS}.items()):
        _embeddings(paths[name], rows, seed, 0)
    write_table(files["subsets"], read_table(files["subsets"]).slice(0, 0))
    expected, _ = _run(files | _as_given(paths), "airrep")
    outputs = [tmp_path / f"{name}.parquet" for name in ("part_scores", "part_sums")]
    ours = files["subsets"], files["validation"]
    settings = {"method": "airrep", "poolings": ["attention"], "top": TOP}
    score_part(*ours, *_as_given(paths).values(), *outputs, part="1", tile_examples=16, **settings)
    merged = [[outputs[0]], [outputs[1]], files["scores"], files["groups"]]
    merge_scores(files["train"], files["test"], *ours, *merged, evaluation="mini", **settings)
    assert read_table(files["scores"]).equals(expected)
    assert read_table(files["groups"]).num_rows == 0


def test_a_part_that_is_missing_is_noticed(files, tmp_path):
    paths = {name: tmp_path / f"{name}.parquet" for name in ("train_embeddings", "test_embeddings")}
    for name, rows in (("train_embeddings", 40), ("test_embeddings", TESTS)):
        _embeddings(paths[name], rows, 1, 0)
    outputs = [tmp_path / f"{name}.parquet" for name in ("part_scores", "part_sums")]
    ours = files["subsets"], files["validation"]
    score_part(
        *ours,
        *_as_given(paths).values(),
        *outputs,
        method="airrep",
        poolings=["attention"],
        part="1",
        top=TOP,
        tile_examples=16,
    )
    merged = [[outputs[0]], [outputs[1]], files["scores"], files["groups"]]
    corpora = files["train"], files["test"]
    with pytest.raises(StudyError, match="2 members of subsets"):
        merge_scores(*corpora, *ours, *merged, method="airrep", poolings=["attention"], evaluation="mini", top=TOP)


def test_embeddings_of_the_tests_may_stand_in_several_files(files, tmp_path):
    train, test = tmp_path / "a.parquet", tmp_path / "b.parquet"
    _embeddings(train, EXAMPLES, 1, 0)
    _embeddings(test, TESTS, 2, 1)
    expected, _ = _run(files, "airrep", train_embeddings=train, test_embeddings=[test])
    halves = [tmp_path / "b1.parquet", tmp_path / "b2.parquet"]
    for half, rows in zip(halves, ([0, 1, 4, 5], [2, 3, 6, 7]), strict=True):
        write_table(half, read_table(test).take(pa.array(rows)), seconds="0.5")
    found, _ = _run(files, "airrep", train_embeddings=train, test_embeddings=halves)
    assert found.equals(expected)
    assert float(read_metadata(files["scores"])["embedding_seconds"]) == 1


@pytest.mark.parametrize("method", ["tfidf", "bm25", "length", "random"])
def test_text_methods_score_and_tiles_change_nothing(files, method):
    scores, groups = _run(files, method)
    assert scores.num_rows == 2 * len(TEST_IDS) * TOP
    assert set(groups["pooling"].to_pylist()) == {"mean"}
    assert np.isfinite(groups["score"].to_numpy()).all()
    again, groups_again = _run(files, method, tile_examples=1000)
    assert scores.drop_columns("score").equals(again.drop_columns("score"))
    np.testing.assert_allclose(groups["score"].to_numpy(), groups_again["score"].to_numpy(), rtol=1e-6)


def test_two_encoders_are_refused(files, tmp_path):
    train, test = tmp_path / "a.parquet", tmp_path / "b.parquet"
    _embeddings(train, EXAMPLES, 1, 0)
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(TESTS * 3, np.float32)), 3)
    write_table(test, pa.table({"example_id": pa.array(range(TESTS), pa.int32()), "embedding": values}))
    with pytest.raises(StudyError, match="two encoders"):
        _run(files, "airrep", train_embeddings=train, test_embeddings=[test])


def test_a_missing_test_embedding_is_refused(files, tmp_path):
    train, test = tmp_path / "a.parquet", tmp_path / "b.parquet"
    _embeddings(train, EXAMPLES, 1, 0)
    _embeddings(test, 5, 1, 0)
    with pytest.raises(StudyError, match=r"lacks 1 of the test examples, e.g. example_id 6"):
        _run(files, "airrep", train_embeddings=train, test_embeddings=[test])


def test_subsets_of_a_longer_corpus_are_refused(files, tmp_path):
    train, test = tmp_path / "a.parquet", tmp_path / "b.parquet"
    _embeddings(train, EXAMPLES - 5, 1, 0)
    _embeddings(test, TESTS, 1, 0)
    with pytest.raises(StudyError, match="1 members of subsets"):
        _run(files, "airrep", train_embeddings=train, test_embeddings=[test])


def test_damaged_embeddings_are_refused(files, tmp_path):
    train, test = tmp_path / "a.parquet", tmp_path / "b.parquet"
    _embeddings(train, EXAMPLES, 1, 0)
    table = read_table(train)
    values = table["embedding"].combine_chunks().flatten().to_numpy().copy()
    values[17] = np.inf
    broken = pa.FixedSizeListArray.from_arrays(pa.array(values), DIMENSION)
    write_table(train, table.set_column(2, "embedding", broken))
    _embeddings(test, TESTS, 1, 0)
    with pytest.raises(StudyError, match="not a finite number"):
        _run(files, "airrep", train_embeddings=train, test_embeddings=[test])
    train.write_bytes(b"PAR1 cut off")
    with pytest.raises(StudyError, match=r"a\.parquet can't be read"):
        _run(files, "airrep", train_embeddings=train, test_embeddings=[test])


def test_embeddings_out_of_order_are_refused(files, tmp_path):
    train, test = tmp_path / "a.parquet", tmp_path / "b.parquet"
    _embeddings(train, EXAMPLES, 1, 0)
    write_table(train, read_table(train).take(pa.array(range(EXAMPLES - 1, -1, -1))))
    _embeddings(test, TESTS, 1, 0)
    with pytest.raises(StudyError, match="doesn't ascend"):
        _run(files, "airrep", train_embeddings=train, test_embeddings=[test])


@pytest.mark.parametrize("method", ["untrained", "tfidf"])
def test_without_subsets_the_same_scores_and_no_groups(files, tmp_path, method):
    paths = {name: tmp_path / f"{name}.parquet" for name in ("train_embeddings", "test_embeddings")}
    for seed, (name, rows) in enumerate(zip(paths, (EXAMPLES, TESTS), strict=True)):
        _embeddings(paths[name], rows, seed, 0)
    with_subsets, groups = _run(files | _as_given(paths), method)
    write_table(files["subsets"], read_table(files["subsets"]).slice(0, 0))
    scores, none = _run(files | _as_given(paths), method)
    assert scores.equals(with_subsets)
    assert none.num_rows == 0
    assert none.schema.equals(groups.schema)


LOADS_TORCH = """
import json, sys
from pathlib import Path
from workflow_scripts.scoring.score_pairs import score_pairs

paths, values = json.loads(sys.argv[1])
paths = {name: [Path(one) for one in path] if isinstance(path, list) else Path(path) for name, path in paths.items()}
score_pairs(**paths, **values)
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("visible", ["", "0"])
def test_stored_embeddings_are_scored_without_torch_unless_there_may_be_a_gpu(visible, files, tmp_path):
    paths = files | {name: tmp_path / f"{name}.parquet" for name in ("train_embeddings", "test_embeddings")}
    _embeddings(paths["train_embeddings"], EXAMPLES, 1, 2.5)
    _embeddings(paths["test_embeddings"], TESTS, 2, 0.25)
    values = {"method": "airrep", "poolings": ["attention"], "evaluation": "mini", "seed": 0, "top": TOP}
    arguments = json.dumps([_as_given(paths), values | {"tile_examples": 16}], default=str)
    command = [sys.executable, "-c", LOADS_TORCH, arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible}
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert found.stdout.split()[-1] == str(bool(visible))
