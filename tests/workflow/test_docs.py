"""Docs that hold: commands run dry, links lead somewhere, snippets work, quoted messages are in the code."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from workflow_scripts.attribute import arguments_parser
from workflow_scripts.corpora.row_formats import read_example
from workflow_scripts.methods.text_scorer import Texts
from workflow_scripts.study.config import load_study
from workflow_scripts.study.document_config import ROOT

PAGES = [ROOT / "README.md", ROOT / "slurm/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = ("all", "targets", "encoder", "scores", "lds", "release", "report", "plan")
PRESETS = ("paper_flan", "paper_ultrachat", "released_flan")
# What these do is the shell's or Slurm's affair; the names in angle brackets are the reader's.
SHELL = ("cp", "export", "mkdir", "cat", "find", "grep", "scancel", "source")


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _commands() -> list[list[str]]:
    """Return every command of the docs once, split into words: of bash blocks, and in the running text."""
    lines = []
    for page in PAGES:
        for block in _blocks(page, "bash"):
            lines += re.sub(r"<< 'END'\n.*?^END$", "", block, flags=re.DOTALL | re.MULTILINE).splitlines()
        lines += re.findall(r"`((?:snakemake|make|python -m) [^`…]*)`", page.read_text(encoding="utf-8"))
    commands = [shlex.split(line, comments=True) for line in lines]
    return [list(words) for words in dict.fromkeys(map(tuple, commands)) if words]


COMMANDS = [[words[0].removeprefix(".venv/bin/"), *words[1:]] for words in _commands()]
SNAKEMAKE = [words for words in COMMANDS if words[0] == "snakemake"]
MAKE = [words for words in COMMANDS if words[0] == "make"]
PYTHON = [words for words in COMMANDS if words[0] == "python"]
PIP = [words for words in COMMANDS if words[0] == "pip"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder to run dry in, with what the docs take for granted; nothing in the checkout is touched."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "docs", "envs", "profiles", "rules", "slurm"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "workflow_scripts").symlink_to(ROOT / "workflow_scripts")
    profiles = folder / ".config/snakemake"
    shutil.copytree(ROOT / "slurm", profiles / "slurm")
    (profiles / "mine").mkdir()
    (profiles / "mine/config.yaml").write_text(_own_profile())
    shutil.copy(ROOT / "config.yaml", folder / "configs/again.yaml")
    return folder


def _own_profile() -> str:
    return re.search(r"<< 'END'\n(.*?)^END$", PAGES[1].read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE).group(1)


def _snakemake(folder: Path, *words: str) -> str:
    environment = {
        **os.environ,
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / ".config"),
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "HF_HUB_OFFLINE": "1",
    }
    words = [word.replace("~", str(folder)) for word in words]
    command = [str(Path(sys.executable).parent / "snakemake"), *words]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{' '.join(words)}:\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("words", SNAKEMAKE, ids=" ".join)
def test_a_snakemake_command_runs_dry(clone, words):
    dry = [] if {"-n", "--unlock", "--list-target-rules"} & set(words) else ["-n"]
    _snakemake(clone, *words[1:], *dry)


@pytest.mark.parametrize("words", MAKE, ids=" ".join)
def test_a_make_command_names_a_target(words):
    _, target, *settings = words
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for setting in settings:
        name, value = setting.split("=")
        assert name == "CONFIG"
        assert (ROOT / value).exists()


@pytest.mark.parametrize("words", [words for words in PYTHON if words[1] != "-m"], ids=" ".join)
def test_a_benchmark_is_there_and_knows_its_options(words):
    _, script, *arguments = words
    assert script.startswith("benchmarks/")
    source = (ROOT / script).read_text()
    assert all(f'"{word}"' in source for word in arguments if word.startswith("--"))


@pytest.mark.parametrize("words", [words for words in PYTHON if words[1] == "-m"], ids=" ".join)
def test_a_python_command_names_a_module_and_its_arguments(words):
    _, flag, module, *arguments = words
    assert flag == "-m"
    assert (ROOT / f"{module.replace('.', '/')}.py").exists()
    if module == "workflow_scripts.attribute":
        arguments_parser().parse_args(arguments)
    else:
        assert all((ROOT / argument).exists() for argument in arguments)


@pytest.mark.parametrize("words", PIP, ids=" ".join)
def test_a_pip_command_installs_a_lock(words):
    _, install, flag, lock = words
    assert (install, flag) == ("install", "-r")
    assert (ROOT / lock).exists()


def test_there_is_no_other_kind_of_command():
    assert {words[0] for words in COMMANDS} <= {"snakemake", "make", "python", "pip", *SHELL}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_of_the_paper_runs_dry_without_a_network(clone, preset):
    plan = _snakemake(clone, "-n", "--quiet", "rules", "--configfile", f"configs/{preset}.yaml")
    study = load_study(yaml.safe_load((ROOT / f"configs/{preset}.yaml").read_text()))
    jobs = int(re.search(r"^finetune_shard +(\d+)$", plan, re.MULTILINE).group(1))
    assert jobs == 200 + 4 * len(study.evaluations)


def test_targets_are_listed_with_what_they_are(clone):
    listed = dict(re.findall(r"^(\w+) \((.+)\)$", _snakemake(clone, "--list-target-rules"), re.MULTILINE))
    assert set(TARGETS) <= set(listed)
    # Rules with wildcards can't be asked for by name.
    assert not {"prepare_corpus", "tokenize_corpus", "finetune_shard", "embed_corpus", "score_pairs"} & set(listed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"(?<!!)\[[^\[\]]*\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_studies_in_the_readme_are_valid():
    own, language_model = (yaml.safe_load(block) for block in _blocks(ROOT / "README.md", "yaml"))
    assert own == yaml.safe_load((ROOT / "configs/own_corpus.yaml").read_text(encoding="utf-8"))
    load_study({**own, **language_model})


def test_the_corpus_of_the_walkthrough_suffices_for_its_study(tmp_path, monkeypatch):
    (code,) = _blocks(ROOT / "docs/walkthrough.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "walkthrough.md", "exec"), {})
    rows = [json.loads(line) for line in Path("my_corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    study = load_study(yaml.safe_load((ROOT / "configs/small_corpus.yaml").read_text(encoding="utf-8")))
    places = [read_example(row, {}, "last").place for row in rows]
    sizes = {
        name: sum(corpus.part[0] <= place < corpus.part[1] for place in places)
        for name, corpus in study.corpora.items()
    }
    assert len(rows) == sum(sizes.values()) == 300
    assert sizes["train"] >= study.targets.pool_examples + study.targets.validation_examples
    assert sizes["pool"] > 2 * study.evaluations["heldout"].subset_examples
    assert sizes["tests"] >= 20


def test_the_method_of_the_docs_scores():
    (code,) = _blocks(ROOT / "docs/adding_a_method.md", "python")
    module = {}
    exec(compile(code, "adding_a_method.md", "exec"), module)
    train = Texts(np.arange(3), ["", "", ""], ["a b c", "b", "x"])
    test = Texts(np.arange(2), ["", ""], ["a b", "x y"])
    scorer = module["open_scorer"](train, test, 0)
    scores = scorer.score(slice(None), slice(None))
    assert scores.dtype == np.float32
    assert scores.tolist() == [[2, 0], [1, 0], [0, 1]]
    assert scorer.score(slice(1, 3), slice(1, 2)).tolist() == [[0], [1]]


def _texts_of_code() -> list[str]:
    """Return every string in the package, with `…` where a value is filled in."""
    texts = []
    for path in (ROOT / "workflow_scripts").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_messages_in_troubleshooting_are_those_of_the_code():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| (`+)(.+?)\1 \|", page, re.MULTILINE)
    assert len(messages) > 30
    texts = _texts_of_code()
    for _, message in messages:
        assert any(message.strip().replace("\\|", "|") in text for text in texts), message
