"""Record what the results depend on: every config value in force, versions, hardware, data."""

import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml

from workflow_scripts.core.files import SNAPSHOT, atomic_path, file_hash
from workflow_scripts.core.hardware import hardware
from workflow_scripts.core.model_contents import local_models, resolved_content
from workflow_scripts.core.redaction import redacted
from workflow_scripts.core.stage import run_stage

VERSIONS = (
    "airrep-workflow",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "pyarrow",
    "numpy",
    "scipy",
    "scikit-learn",
    "bm25s",
    "snakemake",
)


def resolve_config(
    corpora: Sequence[Path],
    config: Path,
    provenance: Path,
    *,
    snapshots: Sequence[Path] = (),
    datasets: Sequence[Path] = (),
    study: dict[str, Any],
    stages: dict[str, int],
) -> None:
    """Write the study's values in force, and its provenance.

    The provenance has the time, the git commit (with `+changes` if the tree was not clean), versions of stages, of
    Python and of the libraries, the hardware, a hash of every prepared corpus, id, revision and commit of every hub
    model and data set, and the content hash of every local model.

    Parameters
    ----------
    corpora: `corpora/` files of the study.
    config: YAML file to write.
    provenance: JSON file to write.
    snapshots: folders that hub models were fetched to.
    datasets: JSON files with the commits of hub datasets.
    study: the study's values in force.
    stages: version of each stage, which rises where it computes something else.
    """
    with atomic_path(config) as temporary:
        values = yaml.safe_dump(study, sort_keys=False, allow_unicode=True)
        temporary.write_text(redacted(values), encoding="utf-8")
    installed = {item.name: item.version for item in distributions()}
    facts: dict[str, object] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "stages": stages,
        "versions": {
            "python": platform.python_version(),
            **{name: installed[name] for name in VERSIONS if name in installed},
        },
        "hardware": hardware(),
        "data": {path.stem: file_hash(path) for path in corpora},
    }
    models = [json.loads((folder / SNAPSHOT).read_text(encoding="utf-8")) for folder in snapshots]
    models += [{"model": model, "content": resolved_content(model)} for model in local_models(study)]
    if models:
        facts["models"] = models
    if datasets:
        facts["datasets"] = [json.loads(path.read_text(encoding="utf-8")) for path in datasets]
    with atomic_path(provenance) as temporary:
        temporary.write_text(redacted(json.dumps(facts, indent=2)) + "\n", encoding="utf-8")


def git_commit() -> str | None:
    """Return the git commit of the workflow's code, `+changes` added if files differ; None outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        changes = _git("status", "--porcelain", "--untracked-files=no")
        return commit + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout


if __name__ == "__main__":
    run_stage(resolve_config)
