"""Processor time of importing each stage, beside that of Python and of torch alone.

Run: python benchmarks/startup.py [--against CHECKOUT]  (two minutes; CHECKOUT is the project at another commit)
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

from harness import report

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 3


def stages(checkout: Path) -> list[str]:
    """Return the modules that the rules of a checkout run."""
    rules = "".join(path.read_text(encoding="utf-8") for path in (checkout / "rules").glob("*.smk"))
    scripts = re.findall(r'"\.\./(workflow_scripts/\S+)\.py"', rules)
    return sorted({script.replace("/", ".") for script in scripts})


def seconds(code: str, checkout: Path) -> float:
    """Return the processor time of a new Python that runs `code` in a checkout."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=checkout, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print and store the least of `ROUNDS` measurements of each stage, in turn in each checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, default=None)
    against = parser.parse_args().against
    places = {"seconds": ROOT} | ({"seconds_against": against.resolve()} if against else {})
    modules = {name: stages(checkout) for name, checkout in places.items()}
    rows = []
    for code in ["pass", "import torch", *(f"import {stage}" for stage in modules["seconds"])]:
        # A stage of one checkout may not be in the other.
        there = [name for name in places if code.removeprefix("import ") in ("pass", "torch", *modules[name])]
        rounds = [{name: seconds(code, places[name]) for name in there} for _ in range(ROUNDS)]
        least = {name: min(found[name] for found in rounds) for name in there}
        rows.append({"code": code.removeprefix("import "), **least})
    report("startup", rows)


if __name__ == "__main__":
    main()
