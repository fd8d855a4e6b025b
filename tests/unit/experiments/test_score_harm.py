"""Scores of rows for trusted tests: over all, over those of its label, over the nearest prompts; and for itself."""

import numpy as np
import pytest
from curated_study import read_corpus, write_embeddings, write_lines, write_validation

from workflow_scripts.core.parquet import read_table
from workflow_scripts.experiments.score_harm import score_harm
from workflow_scripts.methods.text_scorer import Texts
from workflow_scripts.methods.tfidf import open_scorer

WORDS = ["river", "stone", "lamp", "wheel", "bread", "north", "glass", "paper", "cloud", "spoon"]
TESTS = [8, 1, 0, 3, 4, 6, 9]
LABELS = ["old", "new", None]
ROW_LABELS = ["old", "new", "other", None]


@pytest.fixture
def folder(tmp_path):
    rows = [
        {
            "prompt": f"Of {WORDS[n % 10]}, year {n}",
            "response": f"No {n}.",
            "label": ROW_LABELS[n % 4],
        }
        for n in range(30)
    ]
    tests = [{"prompt": f"Of {word}?", "response": "Yes.", "label": LABELS[n % 3]} for n, word in enumerate(WORDS)]
    for name, listed in {"train": rows, "test": tests}.items():
        read_corpus(str(write_lines(tmp_path / f"{name}.jsonl", listed)), tmp_path / f"{name}.parquet")
    write_validation(tmp_path / "validation.parquet", TESTS)
    rng = np.random.default_rng(2)
    write_embeddings(tmp_path / "train_embeddings.parquet", rng.normal(size=(30, 6)))
    write_embeddings(tmp_path / "test_embeddings.parquet", rng.normal(size=(10, 6)))
    return tmp_path


def harm(folder, method="airrep", tile_examples=8):
    by_embeddings = method == "airrep"
    score_harm(
        folder / "train.parquet",
        folder / "test.parquet",
        folder / "validation.parquet",
        folder / "train_embeddings.parquet" if by_embeddings else None,
        [folder / "test_embeddings.parquet"] if by_embeddings else [],
        folder / "harm.parquet",
        method=method,
        seed=1,
        tile_examples=tile_examples,
    )
    return {name: column.to_numpy(zero_copy_only=False) for name, column in zip(*columns(folder), strict=True)}


def columns(folder):
    table = read_table(folder / "harm.parquet")
    return table.column_names, [column.combine_chunks() for column in table.columns]


def vectors(path):
    return np.stack(read_table(path)["embedding"].to_numpy()).astype(np.float32)


def expected(folder, scores):
    """`scores` float [30, 10], of all tests."""
    chosen = scores[:, TESTS]
    labels = [LABELS[test % 3] for test in TESTS]
    by_label = [
        chosen[row, [label == wanted for label in labels]].mean() if wanted in ("old", "new") else np.nan
        for row, wanted in enumerate(ROW_LABELS[n % 4] for n in range(30))
    ]
    return chosen.mean(axis=1), np.array(by_label)


def test_means_of_embeddings(folder):
    train, test = (vectors(folder / f"{role}_embeddings.parquet") for role in ("train", "test"))
    found = harm(folder)
    over_all, by_label = expected(folder, train @ test.T)
    assert found["example_id"].tolist() == list(range(30))
    np.testing.assert_allclose(found["all_tests"], over_all, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["same_label"], by_label, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["self_influence"], (train**2).sum(axis=1), rtol=1e-4)


def test_the_nearest_tests_are_those_that_ask_the_same(folder):
    train, test = (vectors(folder / f"{role}_embeddings.parquet") for role in ("train", "test"))
    scores = train @ test.T
    found = harm(folder)["nearest_tests"]
    for row in range(30):
        # The test of the row's own word is nearest, and of the others, all alike, the first.
        own = [row % 10] if row % 10 in TESTS else []
        nearest = [*own, *(test for test in TESTS if test not in own)][:5]
        assert found[row] == pytest.approx(scores[row, nearest].mean(), abs=1e-4)


def test_text_methods_have_no_self_influence_and_tiles_change_nothing(folder):
    found, in_one = harm(folder, "tfidf"), harm(folder, "tfidf", tile_examples=100)
    examples, tests = Texts.read(folder / "train.parquet"), Texts.read(folder / "test.parquet")
    over_all, by_label = expected(folder, open_scorer(examples, tests, 1).score(slice(0, 30), slice(0, 10)))
    np.testing.assert_allclose(found["all_tests"], over_all, atol=1e-6)
    np.testing.assert_allclose(found["same_label"], by_label, atol=1e-6)
    assert np.isnan(found["self_influence"].astype(float)).all()
    for name in ("all_tests", "same_label", "nearest_tests"):
        np.testing.assert_allclose(found[name], in_one[name], atol=1e-6)
