"""Every method through Snakemake, each job in a process of its own, where warm-up, fit, embeddings and scores meet."""

from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from workflow_scripts.core.parquet import read_metadata, read_table
from workflow_scripts.study.methods import METHODS

pytestmark = pytest.mark.slow
CHOSEN = ("ekfac", "logra_4", "less", "tfidf", "untrained")
CHANGES = {
    "scoring__methods": list(METHODS),
    "scoring__poolings": {name: ["mean", "chosen"] for name in CHOSEN},
    "warmup": {"examples": 64, "epochs": 1, "measured_examples": 32},
}
PREDICTED = {
    "targets__surrogate": {"method": "ekfac", "folds": 2, "subsets_per_fold": 12},
    "encoder_variants": {"predicted": {"encoder_training": {"surrogate_share": 1.0}}},
}


@pytest.fixture(scope="module")
def judged(finished, tmp_path_factory):
    # In new processes: a method must not rely on what another one has imported.
    workspace = replace(finished.copy(tmp_path_factory.mktemp("methods") / "copy"), forks_jobs=False)
    done = workspace.smoke("lds", **CHANGES)
    assert done.returncode == 0, done.stdout
    return workspace


@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_from_the_warmup_to_its_scores(judged, method):
    groups = pq.read_table(judged.results / "groups" / method / "heldout.parquet")
    assert set(groups["pooling"].to_pylist()) == (
        {"mean", "chosen"} if method in CHOSEN else set(METHODS[method].poolings)
    )
    assert groups.num_rows == 20 * 8 * len(set(groups["pooling"].to_pylist()))
    assert np.ptp(groups["score"].to_numpy()) > 0


def test_gradients_that_are_not_stored_are_scored_in_parts_too(judged, tmp_path):
    """One file is fitted for EK-FAC and its sketches, whose scores are near those of the whole gradients."""

    def scores(folder, method):
        table = pq.read_table(folder / "groups" / method / "heldout.parquet")
        return table.filter(pc.equal(table["pooling"], "mean"))["score"].to_numpy()

    fitted = [path.name for path in (judged.results / "fitted").iterdir()]
    assert [name for name in fitted if name.startswith("ekfac")] == ["ekfac.safetensors"]
    assert not (judged.results / "embeddings" / "ekfac").exists()
    whole = scores(judged.results, "ekfac")
    assert np.corrcoef(whole, scores(judged.results, "ekfac_16384"))[0, 1] > 0.9
    for bits in (16384, 65536):
        assert np.corrcoef(whole, scores(judged.results, f"ekfac_{bits}_binary"))[0, 1] > 0.9
        metadata = read_metadata(judged.results / "scores" / f"ekfac_{bits}_binary" / "heldout.parquet")
        assert float(metadata["bytes_per_example"]) == bits / 8 + 4
    parts = judged.copy(tmp_path / "parts")
    done = parts.smoke("results/smoke/groups/ekfac/heldout.parquet", **CHANGES, scoring__parts=2)
    assert done.returncode == 0, done.stdout
    np.testing.assert_allclose(scores(parts.results, "ekfac"), whole, rtol=1e-3, atol=1e-4 * np.abs(whole).max())
    sizes = [
        float(read_metadata(judged.results / "scores" / method / "heldout.parquet")["bytes_per_example"])
        for method in ("ekfac", "ekfac_16384")
    ]
    assert sizes[0] > sizes[1] > 0


@pytest.mark.parametrize("teacher", ["ekfac", "ekfac_2048", "bm25"])
def test_an_encoder_learns_from_what_a_method_predicts(judged, tmp_path, teacher):
    """One whose pooling is chosen and whose gradients aren't stored, one that is stored, one that reads texts."""
    workspace = judged.copy(tmp_path / "copy")
    changes = {**CHANGES, **PREDICTED, "targets__surrogate": {**PREDICTED["targets__surrogate"], "method": teacher}}
    changes["scoring__methods"] = ["airrep", "airrep@predicted", "untrained", teacher]
    changes["scoring__poolings"] = {"ekfac": ["chosen"]} if teacher == "ekfac" else {}
    done = workspace.smoke("lds", **changes)
    assert done.returncode == 0, done.stdout
    targets = pq.read_table(workspace.results / "targets" / "surrogate.parquet")
    assert targets.num_rows == 2 * 12 * 10
    rows = {row["method"]: row for row in read_table(workspace.results / "evaluation" / "lds.parquet").to_pylist()}
    assert rows["airrep@predicted"]["lds"] != rows["airrep"]["lds"]


def test_the_size_of_projected_gradients(judged):
    paths = sorted((judged.results / "embeddings" / "logra_4").glob("*.parquet"))
    # Of the corpus of the targets too, because its pooling is chosen there.
    assert [path.stem for path in paths] == ["pool", "tests", "train"]
    sizes = {pq.read_schema(path).field("embedding").type.list_size for path in paths}
    assert sizes == {3 * 4 * 4}  # three layers of the one block's MLP


def test_the_table_says_which_pooling_was_chosen(judged):
    rows = read_table(judged.results / "evaluation" / "lds.parquet").to_pylist()
    assert {row["method"] for row in rows if row["chosen"]} == set(CHOSEN)
    for row in rows:
        assert (row["chosen"] is not None) == (row["pooling"] == "chosen")
    choices = read_table(judged.results / "poolings" / "logra_4.parquet").to_pylist()
    best = max(choices, key=lambda row: row["lds"])
    assert best["chosen"]
    assert sum(row["chosen"] for row in choices) == 1
