"""Write the pinned environments of this folder from what is installed: `python envs/lock.py`.

`requirements.lock` pins what the workflow needs besides torch, `requirements-torch.lock` torch itself,
`requirements-deepspeed.lock` what LMs that don't fit one GPU need on top, `requirements-serve.lock` what the page and
the API need, and `requirements-test.lock` what the tests need beyond all of them. Each line carries the hashes of all
files of its version, asked of the package index (by uv), and pip takes no other file. torch goes without: its builds
for a CPU and for each CUDA share a version, and bring packages of their own.

`airrep.yaml` is all but the server's and the tests' together, because nothing can be added to the environments that
`snakemake --sdm conda` makes; without hashes, since pip wants them for all lines of a file or for none.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
TORCH = "torch"
# A CUDA build of torch pins these itself, and a CPU build does without.
LEFT_TO_TORCH = ("nvidia-", "cuda-", "triton")
# Every environment comes with its own, and the installer should not replace itself.
LEFT_TO_THE_ENVIRONMENT = {"pip"}
HEADER = "# Made by envs/lock.py from the environment that the tests passed in; don't edit.\n"


def project_requirements() -> tuple[list[str], list[str], list[str], list[str]]:
    """Return the requirements that pyproject.toml states: the workflow's, DeepSpeed, the server's, and the tests'."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return project["dependencies"], extras["deepspeed"], extras["serve"], extras["test"]


def installed_pins(requirements: Iterable[str]) -> dict[str, str]:
    """Return name -> installed version of everything that `requirements` need, directly or not."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in requirements]
    while waiting:
        requirement, extra_of_parent = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra_of_parent}):
            continue
        if name.startswith(LEFT_TO_TORCH) or name in LEFT_TO_THE_ENVIRONMENT:
            continue
        installed = distribution(name)
        # torch 2.13.0+cpu and 2.13.0+cu130 are the same pin
        pins[name] = installed.version.partition("+")[0]
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(Requirement(line), extra) for line in installed.requires or []]
    return dict(sorted(pins.items()))


def write_environments() -> None:
    """Write the six files."""
    workflow, deepspeed, serve, test = map(installed_pins, project_requirements())
    torch = {TORCH: workflow.pop(TORCH)}
    deepspeed = _without(deepspeed, workflow, torch)
    serve = _without(serve, workflow, torch, deepspeed)
    test = _without(test, workflow, torch, deepspeed, serve)
    (FOLDER / "requirements.lock").write_text(HEADER + hashed_lines(workflow))
    (FOLDER / "requirements-torch.lock").write_text(HEADER + _lines(torch))
    (FOLDER / "requirements-deepspeed.lock").write_text(HEADER + hashed_lines(deepspeed))
    (FOLDER / "requirements-serve.lock").write_text(HEADER + hashed_lines(serve))
    (FOLDER / "requirements-test.lock").write_text(HEADER + hashed_lines(test))
    environment = {
        "channels": ["conda-forge", "nodefaults"],
        "dependencies": [
            f"python={sys.version_info.major}.{sys.version_info.minor}",
            "pip",
            {"pip": _lines(dict(sorted((workflow | torch | deepspeed).items()))).splitlines()},
        ],
    }
    (FOLDER / "airrep.yaml").write_text(HEADER + yaml.safe_dump(environment, sort_keys=False))


def hashed_lines(pins: dict[str, str]) -> str:
    """Return the lines of a lock, each with the SHA-256 of every file of its version, for all machines."""
    compile_lock = ["uv", "--quiet", "pip", "compile", "--no-config", "--no-deps", "--universal", "--generate-hashes"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(_lines(pins))
        file.flush()
        plain = ["--no-header", "--no-annotate", file.name]
        return subprocess.run(
            [sys.executable, "-m", *compile_lock, *plain], stdout=subprocess.PIPE, text=True, check=True
        ).stdout


def _without(pins: dict[str, str], *others: dict[str, str]) -> dict[str, str]:
    return {name: pin for name, pin in pins.items() if not any(name in other for other in others)}


def _lines(pins: dict[str, str]) -> str:
    return "".join(f"{name}=={version}\n" for name, version in pins.items())


if __name__ == "__main__":
    write_environments()
