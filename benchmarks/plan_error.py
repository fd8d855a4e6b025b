"""How far a plan is off: plan a study, run it, set both side by side; several times in a row.

Each round takes a folder of its own, so that nothing is reused of the one before. What is compared is the wall
time, and the seconds of each stage's jobs.
Run: python benchmarks/plan_error.py [--config config.yaml] [--rounds 3] [--cores 2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from harness import report

from workflow_scripts.report.results import gather_costs
from workflow_scripts.study.config_files import read_study

REPOSITORY = Path(__file__).resolve().parent.parent
PARTS = ("Snakefile", "config.yaml", "rules", "profiles", "configs", "workflow_scripts", "docs", "envs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="config.yaml", help="the study (default: config.yaml)")
    parser.add_argument("--rounds", type=int, default=3, help="plans and runs (default: 3)")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="as for snakemake (default: all)")
    given = parser.parse_args()
    run = yaml.safe_load((REPOSITORY / given.config).read_text(encoding="utf-8"))["run"]
    rows, stages = [], []
    for number in range(1, given.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            row, by_stage = one_round(Path(folder), given.config, run, given.cores)
        rows.append({"round": number, **row})
        stages.append(by_stage)
        print(json.dumps(rows[-1]), flush=True)
    report("plan_error", rows, study=given.config, cores=given.cores, seconds_by_stage=stages)


def one_round(folder: Path, config: str, run: str, cores: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return planned and real wall seconds of one plan and run, and the seconds of each stage's jobs."""
    for name in PARTS:
        (folder / name).symlink_to(REPOSITORY / name)
    plan_took = snakemake(folder, config, cores, "plan")
    run_took = snakemake(folder, config, cores)
    results = folder / "results" / run
    costs = gather_costs(results / "benchmarks", results / "plan.json", read_study(REPOSITORY / config))
    by_stage = {cost.stage: {"planned": cost.planned_seconds or 0.0, "took": cost.seconds} for cost in costs.stages}
    row = {
        "plan took": plan_took,
        "planned": costs.planned_wall_seconds,
        "jobs ran for": costs.wall_seconds,
        "error": costs.planned_wall_seconds / costs.wall_seconds - 1,
        "command took": run_took,
    }
    return row, by_stage


def snakemake(folder: Path, config: str, cores: int, *targets: str) -> float:
    """Run Snakemake in `folder`; return the seconds it took."""
    command = [sys.executable, "-m", "snakemake", *targets, "--configfile", config, "--cores", str(cores)]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
