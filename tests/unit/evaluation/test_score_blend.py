"""Top lists of a blend, through the stage."""

import numpy as np
import pyarrow as pa
import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, read_table, write_table
from workflow_scripts.evaluation.blends import Blend, write_blend
from workflow_scripts.evaluation.score_blend import score_blend
from workflow_scripts.methods.loading import load_text_method
from workflow_scripts.methods.text_scorer import Texts

EXAMPLES, TESTS, TEST_IDS, TOP = 30, 6, [4, 1], 5
WORDS = ["red", "green", "blue", "cat", "dog", "sun"]


def write_corpus(path, rows):
    random = np.random.default_rng(rows)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 9))) for _ in range(rows)]
    columns = {"example_id": pa.array(range(rows), pa.int64()), "prompt": texts, "response": texts[::-1]}
    write_table(path, pa.table({**columns, "source_row": range(1, rows + 1), "source_file": ["a.jsonl"] * rows}))


def write_vectors(path, rows, dimension, seed):
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dimension)
    write_table(path, pa.table({"example_id": pa.array(range(rows), pa.int32()), "embedding": column}))
    return vectors


@pytest.fixture
def files(tmp_path):
    write_corpus(tmp_path / "train.parquet", EXAMPLES)
    write_corpus(tmp_path / "test.parquet", TESTS)
    validation = {"fold": pa.array([0], pa.int32()), "example_ids": pa.array([TEST_IDS], pa.list_(pa.int32()))}
    write_table(tmp_path / "validation.parquet", pa.table(validation))
    return {name: tmp_path / f"{name}.parquet" for name in ("train", "test", "validation", "weights", "scores")}


def run(files, blend, weight=0.25, scales=(2.0, 0.5), **embeddings):
    methods = blend.split("+")
    write_blend(files["weights"], [Blend(methods, ["mean", "mean"], weight, scales)], [0.5], 0)
    values = {"first_train": None, "second_train": None, "first_test": [], "second_test": [], **embeddings}
    settings = {"blend": blend, "evaluation": "heldout", "seed": 1, "top": TOP, "tile_examples": 7}
    score_blend(**files, **values, **settings)
    return read_table(files["scores"]).to_pandas()


def assert_top_lists(found, dense):
    for column, test in enumerate(TEST_IDS):
        for sign, order in (("helpful", -dense[:, column]), ("harmful", dense[:, column])):
            rows = found[(found["test_id"] == test) & (found["sign"] == sign)]
            best = np.argsort(order, kind="stable")[:TOP]
            assert rows["example_id"].tolist() == best.tolist()
            np.testing.assert_allclose(rows["score"], dense[best, column], rtol=1e-4, atol=1e-5)
            assert rows["example_row"].tolist() == (best + 1).tolist()


def test_two_methods_that_embed(files, tmp_path):
    paths = {f"{place}_{role}": tmp_path / f"{place}_{role}.parquet" for place in ("first", "second") for role in "ab"}
    a, b = (write_vectors(paths[f"{place}_a"], EXAMPLES, size, size) for place, size in (("first", 4), ("second", 6)))
    c, d = (write_vectors(paths[f"{place}_b"], TESTS, size, size + 1) for place, size in (("first", 4), ("second", 6)))
    files_of = {"first_train": paths["first_a"], "first_test": [paths["first_b"]]}
    files_of |= {"second_train": paths["second_a"], "second_test": [paths["second_b"]]}
    found = run(files, "airrep+tracin", **files_of)
    assert_top_lists(found, 0.25 / 2 * (a @ c[TEST_IDS].T) + 0.75 / 0.5 * (b @ d[TEST_IDS].T))
    assert read_metadata(files["scores"])["bytes_per_example"] == "40.0"


@pytest.mark.parametrize("blend", ["tfidf+airrep", "airrep+tfidf"])
def test_one_that_embeds_and_one_of_texts(files, tmp_path, blend):
    a = write_vectors(tmp_path / "a.parquet", EXAMPLES, 4, 0)
    b = write_vectors(tmp_path / "b.parquet", TESTS, 4, 1)
    place = "first" if blend.startswith("airrep") else "second"
    embeddings = {f"{place}_train": tmp_path / "a.parquet", f"{place}_test": [tmp_path / "b.parquet"]}
    found = run(files, blend, **embeddings)
    train, tests = Texts.read(files["train"]), Texts.read(files["test"]).take(np.array(TEST_IDS))
    texts = load_text_method("tfidf")(train, tests, 1).score(slice(0, EXAMPLES), slice(None))
    parts = {"airrep": a @ b[TEST_IDS].T, "tfidf": texts}
    first, second = (parts[method] for method in blend.split("+"))
    assert_top_lists(found, 0.25 / 2 * first + 0.75 / 0.5 * second)


def test_a_damaged_embedding_is_an_error(files, tmp_path):
    vectors = write_vectors(tmp_path / "a.parquet", EXAMPLES, 4, 0)
    vectors[3, 1] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4)
    write_table(
        tmp_path / "a.parquet", pa.table({"example_id": pa.array(range(EXAMPLES), pa.int32()), "embedding": column})
    )
    write_vectors(tmp_path / "b.parquet", TESTS, 4, 1)
    with pytest.raises(StudyError, match="not a finite number"):
        run(files, "airrep+tfidf", first_train=tmp_path / "a.parquet", first_test=[tmp_path / "b.parquet"])
