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


def _embeddings(workspace):
    paths = sorted((workspace.results / "embeddings" / "logra_4").glob("*.parquet"))
    assert [path.stem for path in paths] == ["pool", "tests"]
    return paths
