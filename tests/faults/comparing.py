"""A study's results beside those of a straight run."""

from __future__ import annotations

import hashlib
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
from workspace import Workspace

from workflow_scripts.evaluation.evaluate_lds import COST_PARTS

MEASURED = {
    "seconds",
    "cpu_seconds",
    *(f"{part}_{kind}" for part in COST_PARTS for kind in ("seconds", "cpu_seconds")),
    "fixed_seconds",
    "seconds_per_example",
    "rival_fixed_seconds",
    "rival_seconds_per_example",
    "crossover_examples",
}


def results_of(workspace: Workspace) -> dict[str, pa.Table | str]:
    """Return everything that a study computes, but for measured times: tables, and hashes of the models' weights."""
    found: dict[str, pa.Table | str] = {}
    for path in sorted(workspace.results.rglob("*")):
        name = str(path.relative_to(workspace.results))
        if "/." in f"/{name}":
            continue
        if path.suffix == ".parquet":
            table = pq.read_table(path).replace_schema_metadata(None)
            found[name] = table.drop_columns([column for column in table.column_names if column in MEASURED])
        elif path.suffix == ".safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def wrong_results(workspace: Workspace, straight: Workspace) -> int:
    """Return how many results differ from those of a straight run; every one must be there, and no other."""
    expected, found = results_of(straight), results_of(workspace)
    assert expected.keys() == found.keys()
    return sum(found[name] != expected[name] for name in expected)


def delete(workspace: Workspace, *names: str) -> None:
    """Delete files and folders of the results."""
    for name in names:
        path = workspace.results / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
