"""A study whose corpora are on the hub: one commit for all, whatever becomes of `main`."""

from __future__ import annotations

import pyarrow.parquet as pq
from hub_presets import json_lines

DATA = "owner/data"
# Without a revision, it is the main branch too.
CHANGES = {
    "corpora__train": {"source": DATA, "revision": "main"},
    "corpora__tests": {"source": DATA, "split": "test"},
}
RESOLVED = "results/smoke/datasets/owner--data@main.json"


def test_make_fetch_reads_all_of_the_hub_at_one_commit(fresh, hub):
    rows = json_lines({"prompt": f"What is {one}?", "response": f"{one}."} for one in range(9))
    commit = hub.commit_files(f"datasets/{DATA}", {"train.jsonl": rows, "test.jsonl": rows})
    done = fresh.smoke("fetch", **CHANGES)
    assert done.returncode == 0, done.stdout
    # A lost file comes back as it was: of the commit that the others are of, which is told.
    moved = hub.commit_files(f"datasets/{DATA}", {"train.jsonl": b"", "test.jsonl": b""})
    (fresh.folder / RESOLVED).unlink()
    (fresh.results / "corpora/tests.parquet").unlink()
    hub.requests.clear()
    done = fresh.smoke("fetch", **CHANGES)
    assert done.returncode == 0, done.stdout
    assert f"main is at {moved} now, and this study keeps {commit}" in done.stdout
    assert hub.downloads() == []
    for corpus in ("train", "tests"):
        metadata = pq.read_metadata(fresh.results / f"corpora/{corpus}.parquet").metadata
        assert metadata[b"airrep.commit"].decode() == commit
    # What is left asks nothing of the hub, and the provenance names the commit.
    left = fresh.planned(**CHANGES)
    assert not {"resolve_dataset", "fetch_model"} & left.keys()
    assert left["prepare_corpus"] == 2
    shown = fresh.smoke("results/smoke/provenance.json", "--dry-run", **CHANGES).stdout
    assert RESOLVED in shown[shown.index("rule resolve_config:") :]


def test_local_corpora_ask_nothing_of_the_hub(unrun):
    assert "resolve_dataset" not in unrun.planned()
