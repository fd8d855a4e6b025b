"""A method that is fitted, through Snakemake: the only place where warm-up, fit, embedding and scores meet."""

import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow


def test_a_gradient_method_runs_from_the_warmup_to_its_scores(finished, tmp_path):
    workspace = finished.copy(tmp_path / "copy")
    wanted = "results/smoke/groups/logra_4/heldout.parquet"
    changes = {"scoring__methods": ["logra_4"], "warmup": {"examples": 64, "epochs": 1, "measured_examples": 32}}
    changes["scoring__poolings"] = {"logra_4": ["mean", "attention"]}
    done = workspace.smoke(wanted, **changes)
    assert done.returncode == 0, done.stdout
    groups = pq.read_table(workspace.folder / wanted)
    assert set(groups["pooling"].to_pylist()) == {"mean", "attention"}
    assert groups.num_rows == 20 * 8 * 2
    assert np.ptp(groups["score"].to_numpy()) > 0
    (embedding,) = {pq.read_schema(path).field("embedding").type.list_size for path in _embeddings(workspace)}
    assert embedding == 3 * 4 * 4  # three layers of the one block's MLP


def test_gradients_that_are_not_stored_are_scored_whole_and_in_parts(finished, tmp_path):
    """One file is fitted for EK-FAC and its sketch; the sketch's scores are near those of the whole gradients."""
    workspace = finished.copy(tmp_path / "copy")
    changes = {"scoring__methods": ["ekfac", "ekfac_16384"], "warmup": {"examples": 64, "measured_examples": 32}}
    wanted = [f"results/smoke/groups/{method}/heldout.parquet" for method in changes["scoring__methods"]]
    found = []
    for parts in (1, 2):
        done = workspace.smoke(*wanted, **changes, scoring__parts=parts)
        assert done.returncode == 0, done.stdout
        found.append([pq.read_table(workspace.folder / path)["score"].to_numpy() for path in wanted])
    assert [path.name for path in (workspace.results / "fitted").iterdir()] == ["ekfac.safetensors"]
    assert not (workspace.results / "embeddings" / "ekfac").exists()
    for whole, in_parts in zip(*found, strict=True):
        np.testing.assert_allclose(in_parts, whole, rtol=1e-3, atol=1e-4 * np.abs(whole).max())
    assert np.corrcoef(*found[0])[0, 1] > 0.9
    metadata = pq.read_schema(workspace.results / "scores" / "ekfac" / "heldout.parquet").metadata
    stored = pq.read_schema(workspace.results / "scores" / "ekfac_16384" / "heldout.parquet").metadata
    assert float(metadata[b"bytes_per_example"]) > float(stored[b"bytes_per_example"]) > 0


def _embeddings(workspace):
    paths = sorted((workspace.results / "embeddings" / "logra_4").glob("*.parquet"))
    assert [path.stem for path in paths] == ["pool", "tests"]
    return paths
