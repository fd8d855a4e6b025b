"""Results that don't belong to the config, and models that are replaced: refused, never silently kept or mixed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file
from tiny_study import make_tiny_study
from workspace import Workspace

from workflow_scripts.study.artifacts import artifacts, benchmark_stages
from workflow_scripts.study.config import load_study
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.specs import StageSpecs


def planned_outputs(workspace: Workspace, config: str) -> list[tuple[str, list[str]]]:
    """Rule and outputs of every job."""
    done = workspace.snakemake("--dry-run", "--configfile", str(workspace.folder / config))
    jobs = re.findall(r"^(?:local)?rule (\w+):\n(?:    input: .*\n)?    output: (.*)$", done.stdout, re.MULTILINE)
    return [(rule, [re.sub(r" \(\w+\)$", "", path) for path in outputs.split(", ")]) for rule, outputs in jobs]


@pytest.mark.parametrize("config", ["configs/methods_mini.yaml", "configs/score_only.yaml", "configs/paper_flan.yaml"])
def test_every_job_has_one_artifact(unrun, config):
    values = yaml.safe_load((unrun.folder / config).read_text(encoding="utf-8"))
    for corpus in values["corpora"].values():
        if corpus["source"].endswith(".jsonl"):
            (unrun.folder / corpus["source"]).touch()
    jobs = planned_outputs(unrun, config)
    found = {str(one.path): one.stage for one in artifacts(StageSpecs(StudyPlan(load_study(values))))}
    assert len(jobs) == len(found) > 10
    for rule, outputs in jobs:
        (path,) = set(outputs) & found.keys()
        rule = rule.removesuffix("_by_lm")
        assert found[path] == {"score_base": "score_pairs", "predict_held_back": "predict_targets"}.get(rule, rule)


def test_every_benchmark_file_of_a_finished_study_is_that_of_a_job(finished):
    values = yaml.safe_load((finished.folder / "study.yaml").read_text(encoding="utf-8"))
    folder = finished.folder / "results/smoke/benchmarks"
    written = {path.relative_to(folder) for path in folder.rglob("*.tsv")}
    assert written == benchmark_stages(StageSpecs(StudyPlan(load_study(values)))).keys()


def verify(workspace: Workspace) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workflow_scripts.provenance.verify", "study.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(workspace.folder)}
    return subprocess.run(command, cwd=workspace.folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def unrecorded(finished, tmp_path) -> Workspace:
    """The finished smoke study as it is when it was copied without `.snakemake`."""
    workspace = finished.copy(tmp_path / "copy")
    shutil.rmtree(workspace.folder / ".snakemake")
    return workspace


def test_results_without_records_are_finished_if_they_are_of_the_config(unrecorded):
    assert not unrecorded.planned()
    done = verify(unrecorded)
    assert (done.returncode, done.stdout) == (
        0,
        "results/smoke: 34 of 34 results are there, 0 don't belong to study.yaml\n",
    )


@pytest.mark.parametrize(
    ("changes", "artifact", "key"),
    [
        ({"finetuning__learning_rate": 2e-3}, "targets/train/f0000_s0000.parquet", "finetuning.learning_rate"),
        ({"encoder__layers": 0}, "encoder_untrained", "settings.layers"),
        ({"report__characters": 100}, "config.resolved.yaml", "study.report.characters"),
    ],
    ids=["learning rate", "layers", "report"],
)
def test_results_without_records_are_refused_if_the_config_says_otherwise(unrecorded, changes, artifact, key):
    done = unrecorded.smoke("--dry-run", **changes)
    assert done.returncode == 1
    assert f"don't belong to this config: results/smoke/{artifact} was made with spec " in done.stdout
    assert f"(other: {key})" in done.stdout
    assert "write another `run`" in done.stdout
    assert f"`make verify CONFIG={unrecorded.folder / 'study.yaml'}`" in done.stdout
    assert "Traceback" not in done.stdout
    listed = verify(unrecorded)
    assert listed.returncode == 1
    assert re.search(rf"^  results/smoke/{artifact}\n    \w+: made with spec \w{{16}}, .*{key}", listed.stdout, re.M)
    # The command that it prints makes them again, and what follows from them.
    rules = re.search(r"^  snakemake --cores all --configfile study.yaml --forcerun (.+)$", listed.stdout, re.M)[1]
    assert f"--forcerun {rules}`" in done.stdout
    again = unrecorded.smoke("--dry-run", "--forcerun", *rules.split(), **changes)
    assert again.returncode == 0, again.stdout
    assert {*rules.split(), "write_report"} <= set(re.findall(r"^(?:local)?rule (\w+):", again.stdout, re.M))


def test_results_without_records_that_the_study_does_not_read_are_let_be(unrecorded):
    assert unrecorded.smoke("--dry-run", "results/smoke/corpora/train.parquet", scoring__methods=["airrep"]).returncode
    for name in ("config.resolved.yaml", "report.html", "evaluation/lds.parquet", "evaluation/label_influence.parquet"):
        (unrecorded.results / name).unlink()
    assert unrecorded.planned(scoring__methods=["airrep"]).keys() <= {
        "resolve_config",
        "write_report",
        "evaluate_lds",
        "evaluate_label_influence",
        "package_encoder",
    }


def test_a_corpus_that_is_replaced_by_an_older_file_is_refused(finished, tmp_path):
    """Snakemake goes by times, so it would keep the rows of the earlier one."""
    workspace = finished.copy(tmp_path / "copy")
    source, corpus = workspace.folder / "mine.jsonl", "results/smoke/corpora/pool.parquet"

    def write(answer: str, seconds: int) -> None:
        rows = [json.dumps({"prompt": f"question {number}", "response": answer}) for number in range(3)]
        source.write_text("\n".join(rows), encoding="utf-8")
        os.utime(source, (seconds, seconds))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return workspace.smoke(corpus, *arguments, corpora__pool={"source": "mine.jsonl"})

    write("first", 2_000_000)
    assert run().returncode == 0
    write("other", 1_000_000)
    done = run()
    assert done.returncode == 1
    assert f"mine.jsonl was replaced by an older file since {corpus} was made from it" in done.stdout
    assert "To read it again, run `touch mine.jsonl`, or snakemake with `--forcerun prepare_corpus`" in done.stdout
    assert "was replaced by an older file" in run("-npk").stdout
    assert run("--forcerun", "prepare_corpus", "--dry-run").returncode == 0
    assert run("-nFp").returncode == 0
    assert run("--unlock").returncode == 0
    source.touch()
    assert run().returncode == 0
    assert set(pq.read_table(workspace.folder / corpus)["response"].to_pylist()) == {"other"}


@pytest.fixture(scope="module")
def of_local_models(finished, tmp_path_factory) -> Workspace:
    """The smoke study on an LM and an encoder from folders, as far as its tokens and its first encoder."""
    folder = tmp_path_factory.mktemp("local")
    workspace = finished.copy(folder / "copy")
    shutil.rmtree(workspace.results)
    shutil.rmtree(workspace.folder / ".snakemake")
    tiny = make_tiny_study(folder)
    tiny.language_model.rename(workspace.folder / "lm")
    tiny.untrained.rename(workspace.folder / "start")
    done = workspace.smoke(*MADE, **LOCAL)
    assert done.returncode == 0, done.stdout
    return workspace


LOCAL = {
    "language_model__model": "lm",
    "encoder__model": "start",
    "encoder__dimension": 16,
    "scoring__methods": ["airrep", "untrained"],
}
TOKENS = "results/smoke/tokens/train.parquet"
MADE = [TOKENS, "results/smoke/encoder_untrained", "results/smoke/provenance.json"]


def replace_weights(folder) -> None:
    """Put other weights of the same size and age in their place, as a copy or an archive that keeps times would."""
    file = folder / "model.safetensors"
    times = file.stat()
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_the_content_of_local_models_stands_in_every_artifact(of_local_models):
    results = of_local_models.results
    models = json.loads((results / "provenance.json").read_text())["models"]
    content = {one["model"]: one["content"] for one in models}
    assert content.keys() == {"lm", "start"}
    tokens = pq.read_schema(of_local_models.folder / TOKENS).metadata
    assert json.loads(tokens[b"airrep.contents"]) == {"lm": content["lm"]}
    stamp = json.loads((results / "encoder_untrained" / ".made_with").read_text())
    assert json.loads(stamp["contents"]) == {"start": content["start"]}
    recorded = [json.loads(path.read_text()) for path in (results / "models").glob("*.json")]
    assert {one["model"]: one["content"] for one in recorded} == content


@pytest.mark.parametrize("lost", [False, True], ids=["record", "no record"])
@pytest.mark.parametrize("model", ["lm", "start"])
def test_a_local_model_that_is_replaced_is_refused(of_local_models, tmp_path, model, lost):
    workspace = of_local_models.copy(tmp_path / "copy")
    before = shutil.copytree(workspace.folder / model, tmp_path / "before")
    replace_weights(workspace.folder / model)
    if lost:
        shutil.rmtree(workspace.results / "models")
    done = workspace.smoke("--dry-run", **LOCAL, targets__folds=6)
    assert done.returncode == 1
    made = "results/smoke/encoder_untrained" if model == "start" else TOKENS
    assert f"the model in {model} was replaced: " in done.stdout
    assert re.search(rf"{made} was made with content \w{{16}}, and the folder has content \w{{16}} now", done.stdout)
    assert "Put the earlier files back; or give the study of the new model another `run`." in done.stdout
    assert "Traceback" not in done.stdout
    if not lost:
        assert verify(workspace).returncode == 1
    # Both ways out.
    assert workspace.planned(**LOCAL, run="another")["tokenize_corpus"]
    shutil.rmtree(workspace.folder / model)
    shutil.copytree(before, workspace.folder / model)
    left = workspace.planned(**LOCAL)
    assert not {"init_encoder", "resolve_config"} & left.keys()


def test_a_local_model_that_was_only_touched_is_the_same(of_local_models, tmp_path):
    workspace = of_local_models.copy(tmp_path / "copy")
    (workspace.folder / "lm" / "README.md").write_text("of no meaning")
    (workspace.folder / "lm" / "model.safetensors").touch()
    done = workspace.smoke("--dry-run", *MADE, **LOCAL)
    assert "Nothing to be done" in done.stdout


def test_a_study_that_was_finished_before_models_had_a_record_is_not_run_again(of_local_models, tmp_path):
    workspace = of_local_models.copy(tmp_path / "copy")
    shutil.rmtree(workspace.results / "models")
    done = workspace.smoke("--dry-run", *MADE, **LOCAL)
    assert "Nothing to be done" in done.stdout
    # Its models are known from then on.
    replace_weights(workspace.folder / "lm")
    done = workspace.smoke("--dry-run", *MADE, **LOCAL)
    assert "the model in lm was replaced" in done.stdout


def test_a_model_that_is_replaced_while_the_study_runs_stops_the_next_job(of_local_models, tmp_path):
    workspace = of_local_models.copy(tmp_path / "copy")
    replace_weights(workspace.folder / "lm")
    # The job is one of a run that began before.
    script = (
        "import sys; from types import SimpleNamespace\n"
        "from workflow_scripts.core.stage import run_job\n"
        "run_job(SimpleNamespace(rule='finetune_shard', threads=1, log=['log'], input={}, output={}, resources={},\n"
        "    params=SimpleNamespace(spec={'version': 1, 'model': 'lm'})), print)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(workspace.folder),
        "AIRREP_MODEL_RECORDS": str(workspace.results / "models"),
    }
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=workspace.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error in finetune_shard: the model in lm was replaced" in done.stderr


def test_snakemake_of_a_path_with_a_space_says_so(finished, tmp_path):
    environment = tmp_path / "with a space"
    environment.symlink_to(sys.prefix, target_is_directory=True)
    command = [str(environment / "bin" / "python"), "-m", "snakemake", "--cores", "1", "--dry-run"]
    done = subprocess.run(
        [*command, "--configfile", "configs/smoke.yaml"],
        cwd=finished.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Snakemake starts no job by a Python whose path has a space" in done.stdout
    assert "Traceback" not in done.stdout
