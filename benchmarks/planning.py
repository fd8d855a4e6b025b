"""Planning the paper's study: a dry run from nothing, and of a results folder of full size that is finished.

The finished folder is made by a stub of every stage: empty outputs, then `snakemake --touch`.
Run: python benchmarks/planning.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import report

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = "configs/paper_flan.yaml"


def snakemake(folder: str, *arguments: str) -> tuple[float, str]:
    """Run Snakemake on the paper's study in `folder`; return the seconds and what it printed."""
    command = [sys.executable, "-m", "snakemake", "--configfile", CONFIG, "--cores", "1", *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout + done.stderr


def make_outputs(folder: str, summary: str) -> int:
    """Write an empty file, or a folder, for each output that `--summary` lists; return their number."""
    paths = [Path(folder) / line.split("\t")[0] for line in summary.splitlines() if line.startswith("results/")]
    for path in paths:
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            path.mkdir(parents=True, exist_ok=True)
    return len(paths)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("Snakefile", "rules", "profiles", "configs", "workflow_scripts", "docs", "envs"):
            (Path(folder) / name).symlink_to(REPOSITORY / name)
        fresh, _ = snakemake(folder, "--dry-run", "--quiet")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        outputs = make_outputs(folder, snakemake(folder, "--summary")[1])
        snakemake(folder, "--touch", "--quiet")
        finished, said = snakemake(folder, "--dry-run")
        if "Nothing to be done" not in said:
            raise SystemExit(f"the finished study was not found up to date:\n{said[-2000:]}")
    rows = [
        {"case": "from nothing", "seconds": fresh, "peak MiB": peak},
        {"case": f"finished, {outputs} outputs", "seconds": finished},
    ]
    report("planning", rows, study=CONFIG)


if __name__ == "__main__":
    main()
