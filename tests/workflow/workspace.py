"""A copy of the workflow in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import yaml
from forked_jobs import forking_python
from forked_snakemake import run_forked

from workflow_scripts.core.gpus import visible_gpus

# A fork can't use a GPU that the process before it has looked for.
FORKS_JOBS = sys.platform == "linux" and not visible_gpus()
# Nobody may find it in what a study leaves, in any form. Mounted secrets end in a line's end.
TOKEN = 'hf_"marker\\of=the/tests'
ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "config.yaml", "rules", "configs", "profiles", "slurm", "workflow_scripts", "envs", "docs")


@dataclass(frozen=True)
class Workspace:
    """A working directory with the workflow in it.

    Attributes
    ----------
    folder: the directory.
    forks_jobs: whether Snakemake and the job scripts are run in forks of processes that have imported their libraries
        (`forked_snakemake`, `forked_jobs`); if not, each is a new process, as when a user runs the workflow. Dry runs
        are forks in any case.
    """

    folder: Path
    forks_jobs: bool = False

    @property
    def results(self) -> Path:
        return self.folder / "results" / "smoke"

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run snakemake here; its standard error follows its standard output."""
        words = ["--cores", "2", *arguments]
        environment = {**os.environ, "HF_TOKEN": TOKEN + "\n"}
        if {"--dry-run", "--lint"} & set(arguments):
            return run_forked(words, self.folder, environment)
        if self.forks_jobs:
            return run_forked(words, self.folder, environment, forking_python())
        return subprocess.run(
            [sys.executable, "-m", "snakemake", *words],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def smoke(self, *targets: str, **changes: object) -> subprocess.CompletedProcess[str]:
        """Run the smoke study, with `changes` (`section__key=value`) to its values."""
        return self.snakemake(*targets, "--configfile", str(self.study(changes)))

    def planned(self, config: str | Path | None = None, **changes: object) -> Counter[str]:
        """Return how many jobs of each rule a run would do now."""
        done = self.snakemake("--dry-run", "--configfile", str(config or self.study(changes)))
        assert done.returncode == 0, done.stdout
        jobs = re.search(r"^Job stats:\n.*?\n-.*?\n(.*?)^total", done.stdout, re.DOTALL | re.MULTILINE)
        counts = (
            Counter({rule: int(count) for rule, count in map(str.split, jobs[1].splitlines())}) if jobs else Counter()
        )
        del counts["all"]
        return counts

    def study(self, changes: Mapping[str, object]) -> Path:
        """Write the smoke study with `changes` to a file."""
        values = yaml.safe_load((self.folder / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
        for key, value in changes.items():
            *sections, last = key.split("__")
            section = values
            for name in sections:
                section = section.setdefault(name, {})
            section[last] = value
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    def files_with_the_token(self) -> list[Path]:
        """Return the files, logs and records of Snakemake included, that hold the token of the hub in any form."""
        forms = {TOKEN, json.dumps(TOKEN)[1:-1], repr(TOKEN)[1:-1], repr(TOKEN.encode())[2:-1], quote(TOKEN, safe="")}
        written = [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return [path for path in written if any(form.encode() in path.read_bytes() for form in forms)]

    def copy(self, folder: Path) -> Workspace:
        """Copy everything, with the times and records that decide what is done again."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)


def new_workspace(folder: Path, *, forks_jobs: bool = False) -> Workspace:
    """A copy of the workflow without results."""
    folder.mkdir()
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    return Workspace(folder, forks_jobs)


def finished_workspace(folder: Path) -> Workspace:
    """The smoke study in a folder of its own, done without a fault."""
    workspace = new_workspace(folder)
    done = workspace.smoke()
    assert done.returncode == 0, done.stdout
    return workspace
