"""A disk that is full, or not writable, under each stage: the message says so, and the same command goes on."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from comparing import delete, results_of, wrong_results
from workspace import new_workspace

pytestmark = pytest.mark.slow

RESULTS = "results/smoke"
# What is deleted and asked for, so that a stage runs alone.
SMOKE = {
    "resolve_config": ["provenance.json", "config.resolved.yaml"],
    "prepare_corpus": ["corpora/pool.parquet", "corpora/pool.rejected.parquet"],
    "pretrain_base_lm": ["language_model"],
    "tokenize_corpus": ["tokens/pool.parquet", "tokens/pool.rejected.parquet"],
    "sample_subsets": ["subsets/heldout.parquet", "subsets/heldout.validation.parquet"],
    "finetune_shard": ["targets/heldout/f0000_s0000.parquet"],
    "collect_targets": ["targets/heldout.parquet"],
    "init_encoder": ["encoder_untrained"],
    "train_encoder": ["encoder", "encoder.log.parquet"],
    "embed_corpus": ["embeddings/trained/pool.parquet"],
    "score_pairs": ["scores/airrep/heldout.parquet", "groups/airrep/heldout.parquet"],
    "check_leaks": ["evaluation/leaks.parquet"],
    "evaluate_lds": ["evaluation/lds.parquet", "evaluation/differences.parquet"],
    "evaluate_label_influence": ["evaluation/label_influence.parquet", "evaluation/label_agreement.parquet"],
    "package_encoder": ["release"],
    "write_report": ["report.html"],
}
# Those that only a study with experiments, a gradient method and scores in parts has.
LARGER = {
    "warmup_lm": ["language_model_warm"],
    "fit_method": ["fitted/logra_4.safetensors"],
    "embed_by_method": ["embeddings/logra_4/tests.parquet"],
    # Its own outputs are gone as soon as they are merged.
    "score_part": ["scores/airrep/heldout.parquet", "groups/airrep/heldout.parquet"],
    "check_labels": ["evaluation/labels.parquet"],
    "draw_base": ["experiments/removal/base.parquet"],
    "draw_leave_out": ["experiments/leave_out/runs.parquet"],
    "draw_removal": ["experiments/removal/runs.parquet"],
    "draw_selection": ["experiments/selection/runs.parquet"],
    "finetune_runs": ["experiments/removal/measured/0.parquet"],
    "evaluate_leave_out": ["evaluation/loo.parquet"],
    "evaluate_removal": ["evaluation/removal.parquet"],
    "evaluate_selection": ["evaluation/selection.parquet"],
    "evaluate_classification": ["evaluation/classification.parquet"],
    "evaluate_amortisation": ["evaluation/amortisation.parquet"],
    "evaluate_transfer": ["evaluation/transfer.parquet"],
}
# The first never runs without `score_part`, which finds the disk full before it. The second is `score_pairs` by another
# name, and Snakemake keeps its temporary output where it runs alone.
UNTRIED = {"merge_scores", "score_base"}


@pytest.fixture(scope="session")
def larger_study(tmp_path_factory):
    """A study with every experiment, a gradient method and scores in parts, done without a fault."""
    values = yaml.safe_load((Path(__file__).parents[1] / "configs" / "experiments.yaml").read_text(encoding="utf-8"))
    values["run"] = "smoke"
    values["scoring"] |= {"methods": [*values["scoring"]["methods"], "logra_4"], "parts": 2}
    values["warmup"] = {"examples": 64, "epochs": 1, "measured_examples": 32}
    workspace = new_workspace(tmp_path_factory.mktemp("larger") / "workflow")
    (workspace.folder / "configs" / "smoke.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    done = workspace.smoke()
    assert done.returncode == 0, done.stdout
    return workspace


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", folder], check=False)
    subprocess.run(["umount", "--lazy", folder], check=True)


def moved_to(disk, straight, folder):
    """A copy of a finished study whose results lie on the disk."""
    workspace = straight.copy(folder)
    shutil.copytree(workspace.results, disk / "smoke")
    shutil.rmtree(workspace.results)
    workspace.results.symlink_to(disk / "smoke")
    return workspace


def fill(disk):
    with open(disk / "ballast", "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def test_every_stage_of_the_studies_is_tried(straight_study, larger_study):
    for study, tried in ((straight_study, SMOKE.keys()), (larger_study, SMOKE.keys() | LARGER.keys() | UNTRIED)):
        assert tried == {re.split("[.@]", path.name)[0] for path in (study.results / "logs").iterdir()}


@pytest.mark.parametrize("stage", [*SMOKE, *LARGER])
def test_disk_full(request, disk, tmp_path, fault_table, stage):
    straight = request.getfixturevalue("straight_study" if stage in SMOKE else "larger_study")
    names = (SMOKE | LARGER)[stage]
    workspace = moved_to(disk, straight, tmp_path / "workflow")
    delete(workspace, *names)
    others = results_of(workspace)
    targets = [f"{RESULTS}/{name}" for name in names]
    fill(disk)
    full = workspace.smoke(*targets)
    assert full.returncode == 1
    assert "No space left on device" in full.stdout
    assert f"error in {stage}" in full.stdout
    assert "Traceback" not in full.stdout.split("error in")[0]
    lost = len(others.keys() - results_of(workspace).keys())
    (disk / "ballast").unlink()
    again = workspace.smoke(*targets)
    assert again.returncode == 0, again.stdout
    assert not list(workspace.results.rglob("*.tmp"))
    told = full.stdout[full.stdout.index(f"error in {stage}") :].splitlines()[0]
    wrong = wrong_results(workspace, straight)
    fault_table.record(f"disk full in {stage}", 1, told.replace(str(disk), "..."), lost=lost, wrong=wrong)


@pytest.mark.parametrize(
    ("missing", "words"),
    [(["report.html"], "Write-protected output files"), (SMOKE["evaluate_lds"], "Read-only file system")],
    ids=["outputs stand there", "no output stands there"],
)
def test_read_only_results(straight_study, disk, tmp_path, fault_table, missing, words):
    """Snakemake itself tells of outputs that it could not replace, the stage of those that it can't write."""
    workspace = moved_to(disk, straight_study, tmp_path / "workflow")
    for name in missing:
        (workspace.results / name).unlink()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    targets = [f"{RESULTS}/{name}" for name in missing]
    done = workspace.smoke(*targets)
    assert done.returncode == 1
    assert words in done.stdout, done.stdout
    told = next(line for line in done.stdout.splitlines() if words in line)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert workspace.smoke(*targets).returncode == 0
    wrong = wrong_results(workspace, straight_study)
    fault_table.record("a read-only results folder", 1, told.strip().replace(str(disk), "..."), wrong=wrong)
