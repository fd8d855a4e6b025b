"""The pinned environments agree with each other, with pyproject.toml and with what is installed."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TORCH = "requirements-torch.lock"
LOCKS = [
    "requirements.lock",
    TORCH,
    "requirements-deepspeed.lock",
    "requirements-serve.lock",
    "requirements-test.lock",
]
ADVICE = "run: python envs/lock.py"


def pins(lines: list[str]) -> dict[str, str]:
    return dict(line.removesuffix(" \\").split("==") for line in lines if "==" in line)


def lock(name: str) -> dict[str, str]:
    return pins((ROOT / "envs" / name).read_text().splitlines())


@pytest.mark.parametrize(
    ("requirements", "files"),
    [
        (PROJECT["dependencies"], LOCKS[:2]),
        (EXTRAS["deepspeed"], LOCKS[:3]),
        (EXTRAS["serve"], LOCKS[:4]),
        (EXTRAS["test"], LOCKS),
    ],
)
def test_every_dependency_of_the_project_is_pinned_in_its_range(requirements, files):
    pinned = {name: pin for file in files for name, pin in lock(file).items()}
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is in pyproject.toml but not in {files}; {ADVICE}"
        assert requirement.specifier.contains(pinned[name]), f"{name}=={pinned[name]} is not {requirement}"


def test_conda_and_pip_pin_the_same_versions():
    environment = yaml.safe_load((ROOT / "envs" / "airrep.yaml").read_text())
    (from_pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pins(from_pip) == {name: pin for file in LOCKS[:3] for name, pin in lock(file).items()}, ADVICE


def test_no_package_is_pinned_twice_and_none_depends_on_the_machine():
    pinned = [(name, pin) for file in LOCKS for name, pin in lock(file).items()]
    assert len(dict(pinned)) == len(pinned)
    for name, pin in pinned:
        assert "+" not in pin, f"{name}=={pin}: only a build for one kind of machine has this version"
        assert not name.startswith(("nvidia-", "triton")), f"{name} is left to torch's own pins"


@pytest.mark.parametrize("file", LOCKS)
def test_every_version_but_that_of_torch_has_the_hashes_of_its_files(file):
    text = (ROOT / "envs" / file).read_text()
    hashed = re.findall(r"^(\S+)==\S+ \\\n    --hash=sha256:[0-9a-f]{64}\b", text, re.MULTILINE)
    assert hashed == ([] if file == TORCH else list(lock(file))), ADVICE


@pytest.mark.parametrize("file", LOCKS)
def test_tests_run_with_the_pinned_versions(file):
    differing = {name: pin for name, pin in lock(file).items() if version(name).partition("+")[0] != pin}
    assert not differing, f"installed otherwise than in envs/{file}: {differing}; {ADVICE}"
