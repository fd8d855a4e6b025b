"""Write down what makes the results what they are: every value in force, versions, hardware, data."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
import yaml

from workflow_scripts.core.parquet import atomic_path, file_hash
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


def resolve_config(corpora: Sequence[Path], config: Path, provenance: Path, *, study: dict[str, Any]) -> None:
    """Write the study's values to `config` (YAML), and what they met to `provenance` (JSON).

    The provenance holds the time, the git commit (with `+changes` if the tree was not clean), versions of
    Python and of the libraries, the hardware, and a hash of every prepared corpus.
    """
    with atomic_path(config) as temporary:
        temporary.write_text(yaml.safe_dump(study, sort_keys=False, allow_unicode=True), encoding="utf-8")
    installed = {item.name: item.version for item in distributions()}
    facts = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: installed[name] for name in VERSIONS if name in installed},
        },
        "hardware": hardware(),
        "data": {path.stem: file_hash(path) for path in corpora},
    }
    with atomic_path(provenance) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def git_commit() -> str | None:
    """Return the commit of the workflow's code, or None outside a git checkout."""
    try:
        here = Path(__file__).parent
        run = {"cwd": here, "capture_output": True, "text": True, "check": True, "timeout": 10}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **run).stdout
        return commit + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """Return processor, cores, memory and GPUs of this machine."""
    model = ""
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else ""
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


if __name__ == "__main__":
    run_stage(snakemake, resolve_config)  # noqa: F821
