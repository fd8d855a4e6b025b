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
from forked_snakemake import run_forked

from workflow_scripts import attribute
from workflow_scripts.corpora.row_formats import read_example
from workflow_scripts.methods.text_scorer import Texts
from workflow_scripts.serve import __main__ as serve
from workflow_scripts.study.config import load_study
from workflow_scripts.study.document_config import ROOT

NAMED = ("README.md", "slurm/README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md")
PAGES = [*(ROOT / name for name in NAMED), *sorted((ROOT / "docs").rglob("*.md"))]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
TARGETS = ("all", "targets", "encoder", "scores", "lds", "release", "report", "plan")
PRESETS = ("paper_flan", "paper_ultrachat", "released_flan")
# What these do is the shell's or Slurm's affair; the names in angle brackets are the reader's.
SHELL = ("cp", "export", "mkdir", "cat", "find", "grep", "salloc", "scancel", "source")


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _commands() -> list[list[str]]:
    """Return every command of the docs once, split into words: of bash blocks, and in the running text."""
    lines = []
    for page in PAGES:
        for block in _blocks(page, "bash"):
            lines += re.sub(r"<< 'END'\n.*?^END$", "", block, flags=re.DOTALL | re.MULTILINE).splitlines()
        lines += re.findall(r"`((?:snakemake|make|python -m) [^`…]*)`", page.read_text(encoding="utf-8"))
    # A variable before a command is the shell's affair.
    lines = [re.sub(r"^(\w+=\S* )+", "", line) for line in lines]
    commands = [shlex.split(line, comments=True) for line in lines]
    return [list(words) for words in dict.fromkeys(map(tuple, commands)) if words]


COMMANDS = [[words[0].removeprefix(".venv/bin/"), *words[1:]] for words in _commands()]
# All run dry here, so those that say so are the same as those that don't.
SNAKEMAKE = list(
    dict.fromkeys(tuple(word for word in words if word != "-n") for words in COMMANDS if words[0] == "snakemake")
)
MAKE = [words for words in COMMANDS if words[0] == "make"]
PYTHON = [words for words in COMMANDS if words[0] == "python"]
BENCHMARKS = [words for words in PYTHON if words[1].startswith("benchmarks/")]
SCRIPTS = [words for words in PYTHON if words[1] != "-m" and words not in BENCHMARKS]
PYTEST = [words for words in COMMANDS if words[0] == "pytest"]
PIP = [words for words in COMMANDS if words[0] == "pip"]
PARSERS = {
    "workflow_scripts.attribute": attribute.arguments_parser,
    "workflow_scripts.serve": serve.arguments_parser,
}
# What each of these writes is in the tree, so that a run in a copy must give it again.
WRITERS = {
    ("-m", "workflow_scripts.study.document_config"): ("docs/config.md", "configs/schema.json"),
    ("tests/unit/study/test_specs.py",): ("tests/unit/study/stage_hashes.json",),
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder to run dry in, with what the docs take for granted; nothing in the checkout is touched."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "docs", "envs", "profiles", "rules", "slurm", "tests/configs", "tests/unit/study"):
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
    ended = run_forked(words, folder, environment)
    assert ended.returncode == 0, f"{' '.join(words)}:\n{ended.stdout}"
    return ended.stdout


@pytest.mark.parametrize("words", SNAKEMAKE, ids=" ".join)
def test_a_snakemake_command_runs_dry(clone, words):
    dry = [] if {"--unlock", "--list-target-rules"} & set(words) else ["-n"]
    _snakemake(clone, *words[1:], *dry)


@pytest.mark.parametrize("words", MAKE, ids=" ".join)
def test_a_make_command_names_a_target(words):
    _, target, *settings = words
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for setting in settings:
        name, value = setting.split("=")
        assert name == "CONFIG"
        assert (ROOT / value).exists()


@pytest.mark.parametrize("words", BENCHMARKS, ids=" ".join)
def test_a_benchmark_is_there_and_knows_its_options(words):
    _, script, *arguments = words
    source = (ROOT / script).read_text()
    assert all(f'"{word}"' in source for word in arguments if word.startswith("--"))


@pytest.mark.parametrize("words", SCRIPTS, ids=" ".join)
def test_a_script_is_there_and_runs_by_itself(words):
    _, script = words
    assert '__name__ == "__main__"' in (ROOT / script).read_text(encoding="utf-8")


@pytest.mark.parametrize(("words", "files"), WRITERS.items(), ids=lambda one: one[-1])
def test_what_a_contributor_is_told_to_write_is_up_to_date(clone, words, files):
    assert ["python", *words] in COMMANDS
    for file in files:
        (clone / file).unlink()
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    subprocess.run([sys.executable, *words], cwd=clone, env=environment, check=True)
    for file in files:
        assert (clone / file).read_text(encoding="utf-8") == (ROOT / file).read_text(encoding="utf-8"), file


@pytest.mark.parametrize("words", PYTEST, ids=" ".join)
def test_a_pytest_command_names_tests(words):
    _, path = words
    files = sorted((ROOT / path).rglob("test_*.py")) or [ROOT / path]
    assert all(re.search(r"^def test_", file.read_text(encoding="utf-8"), re.MULTILINE) for file in files)


@pytest.mark.parametrize("words", [words for words in PYTHON if words[1] == "-m"], ids=" ".join)
def test_a_python_command_names_a_module_and_its_arguments(words):
    _, flag, module, *arguments = words
    assert flag == "-m"
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
    if module in PARSERS:
        PARSERS[module]().parse_args(arguments)
    else:
        assert all((ROOT / argument).exists() for argument in arguments)


@pytest.mark.parametrize("words", PIP, ids=" ".join)
def test_a_pip_command_installs_a_lock_or_what_is_no_dependency(words):
    _, install, *arguments = words
    assert install == "install"
    if arguments[0] == "-r":
        assert [(ROOT / lock).exists() for lock in arguments[1:]] == [True]
    else:
        locked = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "envs").glob("*.lock"))
        assert not [name for name in arguments if re.search(rf"^{name}==", locked, re.MULTILINE)]


def test_there_is_no_other_kind_of_command():
    assert {words[0] for words in COMMANDS} <= {"snakemake", "make", "python", "pytest", "pip", *SHELL}


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


def test_the_tree_in_contributing_is_that_of_the_package():
    (tree,) = (block for block in _blocks(CONTRIBUTING, "") if block.startswith("Snakefile"))
    outer, inner = (re.findall(rf"^{indent}([\w.]+)/  ", tree, re.MULTILINE) for indent in ("", "  "))
    assert sorted(inner) == sorted(path.parent.name for path in (ROOT / "workflow_scripts").glob("*/__init__.py"))
    assert all((ROOT / name).is_dir() for name in outer)
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and list(path.glob("*.*"))}
    assert {name for name in top if name[0].isalpha() and not name.endswith("egg-info")} - {"logs", "models"} <= set(
        outer
    )


def test_files_in_contributing_are_there():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    files = re.findall(r"`((?:tests|workflow_scripts|rules|docs|slurm)/[\w./]+)`", text)
    assert len(files) > 5
    assert [name for name in files if not (ROOT / name).exists()] == []
    for name in ("STAGE_VERSIONS", "FINE_TUNED", "EXPERIMENT_TABLES", "gather_experiments", "CONTRACT", "Experiments"):
        assert f"`{name}`" in text
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow_scripts").rglob("*.py"))
    assert all(name in sources for name in ("STAGE_VERSIONS", "FINE_TUNED", "EXPERIMENT_TABLES", "gather_experiments"))


def test_the_study_on_pretrained_models_in_contributing_is_valid():
    (code,), (models,) = _blocks(CONTRIBUTING, "python"), _blocks(CONTRIBUTING, "yaml")
    named = yaml.safe_load(models)
    own = yaml.safe_load((ROOT / "configs/own_corpus.yaml").read_text(encoding="utf-8"))
    load_study({**own, **named})
    strings = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    # Written as a path, so that nobody takes it for a model of the hub.
    folders = {named["language_model"]["model"], named["encoder"]["model"]}
    assert {folder.removeprefix("./") for folder in folders if folder.startswith("./")} <= strings


def test_pre_commit_runs_the_checks_of_make_lint_and_fetches_nothing():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (hook,) = repository["hooks"]
    assert (repository["repo"], hook["language"]) == ("local", "system")
    assert shlex.split(hook["entry"])[0] == "make"
    assert shlex.split(hook["entry"])[-1] == "lint"
    # It checks the tree, whatever files a commit names.
    assert (hook["pass_filenames"], hook["always_run"]) == (False, True)


def test_the_hosted_ci_is_the_one_script():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    ((_, job),) = workflow["jobs"].items()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert (ROOT / ".ci/run").exists()


def test_git_tracks_the_readme_of_results_alone(tmp_path):
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    names = ["results/README.md", "results/mini/report.html", "results/plan.json", "docs/results/README.md"]
    ignored = subprocess.run(
        ["git", "check-ignore", *names], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=False
    ).stdout.split()
    assert ignored == names[1:3]
    assert (ROOT / "results/README.md").exists()


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


def test_the_files_of_the_curation_walk_suffice_for_its_study(tmp_path, monkeypatch):
    (code,) = _blocks(ROOT / "docs/curate.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "curate.md", "exec"), {})
    rows, tests = (
        [json.loads(line) for line in Path(f"my_{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("corpus", "tests")
    )
    values = yaml.safe_load((ROOT / "configs/curate.yaml").read_text(encoding="utf-8"))
    study = load_study(values)
    assert (len(rows), len(tests)) == (4000, 240)
    assert {row["topic"] for row in tests} < {row["topic"] for row in rows}
    assert not {row["prompt"] for row in tests} & {row["prompt"] for row in rows}
    assert len(tests) > study.evaluations["trusted"].tests
    places = [read_example(row, {}, "last").place for row in rows]
    train = study.corpora["train"].part
    fold = study.targets.pool_examples + study.targets.validation_examples
    assert sum(train[0] <= place < train[1] for place in places) >= fold
    # What the page shows of the config is what it says, and what it tells to add is valid.
    shown, dropping = (yaml.safe_load(block)["curation"] for block in _blocks(ROOT / "docs/curate.md", "yaml"))
    assert shown == values["curation"]
    load_study({**values, "curation": {**shown, **dropping}})


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
