"""Write the pinned environments of this folder from what is installed: `python envs/lock.py`.

`requirements.lock` pins what the workflow needs, `requirements-deepspeed.lock` what LMs that don't fit one GPU need
on top, and `requirements-test.lock` what the tests need beyond both. `airrep.yaml` is the first two together, because
nothing can be added to the environments that `snakemake --sdm conda` makes.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
LOCKS = ("requirements.lock", "requirements-deepspeed.lock", "requirements-test.lock")
# A CUDA build of torch pins these itself, and a CPU build does without.
LEFT_TO_TORCH = ("nvidia-", "cuda-", "triton")
HEADER = "# Made by envs/lock.py from the environment that the tests passed in; don't edit.\n"


def project_requirements() -> tuple[list[str], list[str], list[str]]:
    """Return the requirements that pyproject.toml states: the workflow's, DeepSpeed, and the tests'."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return project["dependencies"], extras["deepspeed"], extras["test"]


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
        if name.startswith(LEFT_TO_TORCH):
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
    """Write the four files."""
    locks: list[dict[str, str]] = []
    for file, requirements in zip(LOCKS, project_requirements(), strict=True):
        earlier = {name for lock in locks for name in lock}
        locks.append({name: pin for name, pin in installed_pins(requirements).items() if name not in earlier})
        (FOLDER / file).write_text(HEADER + _lines(locks[-1]))
    needed, deepspeed, _ = locks
    environment = {
        "channels": ["conda-forge", "nodefaults"],
        "dependencies": [
            f"python={sys.version_info.major}.{sys.version_info.minor}",
            "pip",
            {"pip": _lines(dict(sorted((needed | deepspeed).items()))).splitlines()},
        ],
    }
    (FOLDER / "airrep.yaml").write_text(HEADER + yaml.safe_dump(environment, sort_keys=False))


def _lines(pins: dict[str, str]) -> str:
    return "".join(f"{name}=={version}\n" for name, version in pins.items())


if __name__ == "__main__":
    write_environments()
