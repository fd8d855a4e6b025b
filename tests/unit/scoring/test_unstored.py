"""Scores by embeddings that are computed meanwhile: the same as by stored ones, in one piece and in parts."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_study import FINETUNING

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.parquet import read_metadata, read_table, write_batches, write_table
from workflow_scripts.methods.embed_by_method import embed_by_method
from workflow_scripts.methods.fit_method import fit_method
from workflow_scripts.scoring import unstored
from workflow_scripts.scoring.gpu_scores import score_on_device
from workflow_scripts.scoring.group_scores import Weighting
from workflow_scripts.scoring.merge_scores import merge_scores
from workflow_scripts.scoring.score_pairs import score_pairs
from workflow_scripts.scoring.score_part import score_part
from workflow_scripts.scoring.sources import read_evaluation
from workflow_scripts.study.sections import Finetuning

SOURCE = {"model": "builtin:tiny", "revision": None, "trust_remote_code": False}
UNSTORED = {"module": "ekfac", "settings": {}, "lm_source": SOURCE, "batch_tokens": 512, "precision": "float32"}
SETTINGS = {"method": "ekfac", "poolings": ["mean", "attention"], "top": 5}
TEST_IDS = [7, 3, 32]


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """Paths of a tiny study by name, with what EK-FAC was fitted to."""
    folder = tmp_path_factory.mktemp("unstored")
    names = ("subsets", "validation", "fitted", "embeddings")
    paths = {name: folder / f"{name}.parquet" for name in names} | {"corpus": tiny.corpus, "tokens": tiny.tokens}
    ids = pa.list_(pa.int32())
    subsets = {"fold": [0, 0], "subset": [0, 1], "example_ids": pa.array([[3, 54, 70], [9, 3, 88]], ids)}
    write_table(paths["subsets"], pa.table(subsets))
    write_table(paths["validation"], pa.table({"fold": [0], "example_ids": pa.array([TEST_IDS], ids)}))
    lm = {"language_model": tiny.language_model}
    values = {"examples": 60, "measured_examples": 30, "finetuning": Finetuning(**FINETUNING), "seed": 1}
    fit_method(tiny.tokens, paths["fitted"], **lm, **SOURCE, module="ekfac", settings={}, **values)
    embed_by_method(
        tiny.tokens,
        paths["embeddings"],
        fitted=paths["fitted"],
        **lm,
        **{name: UNSTORED[name] for name in UNSTORED},
        for_tests=False,
        prompt_words=256,
        embedding_precision="float32",
    )
    return paths | lm


def inputs(files, tmp_path, stored, part=""):
    values = {name: files[name] for name in ("subsets", "validation")}
    values |= {name: tmp_path / f"{name}{part}{stored}.parquet" for name in ("scores", "groups")}
    if stored:
        return {**values, "train_embeddings": files["embeddings"], "test_embeddings": [files["embeddings"]]}
    given = {"train_tokens": files["tokens"], "test_tokens": files["tokens"], "unstored": UNSTORED}
    given |= {name: files[name] for name in ("language_model", "fitted")}
    return {**values, **given, "train_embeddings": None, "test_embeddings": []}


def run(files, tmp_path, stored):
    paths = inputs(files, tmp_path, stored)
    corpora = {"train": files["corpus"], "test": files["corpus"]}
    score_pairs(**corpora, **paths, **SETTINGS, evaluation="heldout", seed=1, tile_examples=16)
    return read_table(paths["scores"]), read_table(paths["groups"]), read_metadata(paths["scores"])


def assert_same(found, expected):
    for table, other in zip(found, expected, strict=True):
        assert table.drop_columns("score").equals(other.drop_columns("score"))
        size = np.abs(other["score"].to_numpy()).max()
        np.testing.assert_allclose(table["score"], other["score"], rtol=1e-3, atol=1e-4 * size)


@pytest.mark.parametrize("tile", [2**26, 100_000], ids=["one tile", "many tiles"])
def test_scores_are_those_of_stored_embeddings(files, tmp_path, monkeypatch, tile):
    monkeypatch.setattr(unstored, "TILE_NUMBERS", tile)
    *expected, _ = run(files, tmp_path, stored=True)
    *found, metadata = run(files, tmp_path, stored=False)
    assert_same(found, expected)
    numbers = read_table(files["embeddings"]).schema.field("embedding").type.list_size
    # What would have to be stored.
    assert float(metadata["bytes_per_example"]) == 4 * numbers
    assert float(metadata["embedding_seconds"]) == 0
    assert float(metadata["scoring_seconds"]) > 0


def test_parts_give_the_same_scores(files, tmp_path):
    *expected, _ = run(files, tmp_path, stored=False)
    tokens = tmp_path / "tokens.parquet"
    table = read_table(files["tokens"])
    write_batches(tokens, table.schema, [table.slice(first, 17) for first in range(0, len(table), 17)])
    parts = []
    for number in (1, 2, 3):
        given = inputs(files, tmp_path, False, part=number) | {"train_tokens": tokens}
        given["sums"] = given.pop("groups")
        score_part(**given, **SETTINGS, part_numbers=[number, 3], part=f"heldout {number}of3", tile_examples=16)
        parts.append(given)
    merged = [tmp_path / f"merged.{name}.parquet" for name in ("scores", "groups")]
    read = [[one[name] for one in parts] for name in ("scores", "sums")]
    ours = [files[name] for name in ("corpus", "corpus", "subsets", "validation")]
    merge_scores(*ours, *read, *merged, **SETTINGS, evaluation="heldout")
    assert_same([read_table(path) for path in merged], expected)


def test_gradients_are_computed_where_a_gpu_scores_in_inference_mode(files, tmp_path):
    """On the CPU, as on a GPU: within the function that scores there."""
    test_ids, _, membership = read_evaluation(files["subsets"], files["validation"])
    settings = {"language_model": files["language_model"], "fitted": files["fitted"], "tests": 3, "method": "ekfac"}
    embedder = unstored.load_unstored(UNSTORED, **settings)
    source = unstored.open_unstored(embedder, files["tokens"], files["tokens"], test_ids)
    rows = read_table(files["embeddings"])
    tests = np.stack([rows["embedding"][rows["example_id"].to_pylist().index(one)].values for one in TEST_IDS])
    found = score_on_device(source.tiles, tests, 5, membership, torch.device("cpu"), Weighting())
    expected = run(files, tmp_path, stored=True)[0].to_pandas()
    helpful = expected[expected.sign == "helpful"].example_id.to_numpy().reshape(3, 5)
    np.testing.assert_array_equal(found.helpful[0], helpful)


def test_tests_that_do_not_fit_are_refused_before_any_gradient(files, monkeypatch):
    monkeypatch.setattr(unstored, "available_memory", lambda device: 10**6)
    monkeypatch.setattr(unstored, "open_unstored", None)
    settings = {"language_model": files["language_model"], "fitted": files["fitted"], "tests": 500, "method": "ekfac"}
    message = r"500 tests x [\d,]+ parameters x 4 bytes are [\d.]+ GB, and the job has 0.0 GB. Write ekfac_16384"
    with pytest.raises(StudyError, match=message):
        unstored.load_unstored(UNSTORED, **settings)


def test_a_test_without_tokens_is_named(files):
    embedder = unstored.Embedder(2, lambda examples: np.zeros((len(examples), 2), np.float32))
    with pytest.raises(StudyError, match="lacks 1 of the test examples"):
        unstored.open_unstored(embedder, files["tokens"], files["tokens"], np.array([7, 1, 3]))


def test_the_memory_of_a_job_is_known():
    assert 10**7 < unstored.available_memory(torch.device("cpu")) < 10**15


def test_a_gradient_that_is_not_finite_is_named(files):
    embedder = unstored.Embedder(2, lambda examples: np.full((len(examples), 2), np.nan, np.float32))
    with pytest.raises(StudyError, match="gradient of example_id 7 is not a finite number"):
        unstored.open_unstored(embedder, files["tokens"], files["tokens"], np.array(TEST_IDS))
