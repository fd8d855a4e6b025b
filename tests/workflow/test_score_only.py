"""Scores alone: a trained encoder, a corpus and questions of one's own; nothing is trained, no LM is needed."""

import json
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from workflow_scripts.corpora.templates import encoder_texts

EXAMPLES, QUESTIONS = 40, 7


@pytest.fixture(scope="module")
def scored(finished, tmp_path_factory):
    """`configs/score_only.yaml` on two small files, with the encoder of the smoke study."""
    workspace = finished.copy(tmp_path_factory.mktemp("scored") / "copy")
    for name, corpus, rows in (("my_corpus", "pool", EXAMPLES), ("my_questions", "tests", QUESTIONS)):
        table = pq.read_table(workspace.results / "corpora" / f"{corpus}.parquet", columns=["prompt", "response"])
        lines = [json.dumps(row) + "\n" for row in table.slice(0, rows).to_pylist()]
        (workspace.folder / f"{name}.jsonl").write_text("".join(lines))
    values = yaml.safe_load((workspace.folder / "configs" / "score_only.yaml").read_text())
    values["encoder"] = {"model": "results/smoke/encoder"}
    (workspace.folder / "mine.yaml").write_text(yaml.safe_dump(values))
    planned = workspace.planned("mine.yaml")
    done = workspace.snakemake("--configfile", "mine.yaml")
    assert done.returncode == 0, done.stdout
    return workspace, planned


def test_nothing_is_trained_and_nothing_fine_tuned(scored):
    _, planned = scored
    once = dict.fromkeys(
        ["take_encoder", "sample_subsets", "resolve_config", "evaluate_label_influence", "write_report"], 1
    )
    assert planned == Counter(once | {"prepare_corpus": 2, "embed_corpus": 2, "score_pairs": 2})


@pytest.mark.parametrize(
    ("without", "expected", "absent"),
    [
        (
            ["targets", "subsets"],
            {"take_encoder": 1, "score_pairs": 1},
            ["tokenize_corpus", "finetune_shard", "check_leaks", "package_encoder", "evaluate_lds"],
        ),
        (["targets"], {"take_encoder": 1, "finetune_shard": 1, "evaluate_lds": 1}, ["train_encoder", "check_leaks"]),
        (["subsets"], {"train_encoder": 1, "finetune_shard": 2, "check_leaks": 1}, ["take_encoder", "evaluate_lds"]),
    ],
    ids=" and ".join,
)
def test_a_study_runs_what_it_has(fresh, without, expected, absent):
    values = yaml.safe_load((fresh.folder / "configs" / "smoke.yaml").read_text())
    values["scoring"]["methods"] = ["airrep"]
    if "targets" in without:
        del values["targets"]
        values["encoder"] = {"model": "somebody/AirRep"}
    if "subsets" in without:
        values["evaluations"]["heldout"]["subsets"] = 0
    (fresh.folder / "mine.yaml").write_text(yaml.safe_dump(values))
    planned = fresh.planned("mine.yaml")
    assert {rule: planned[rule] for rule in expected} == expected
    assert not planned.keys() & absent


def test_every_question_has_its_examples_by_the_encoders_vectors(scored):
    workspace, _ = scored
    results = workspace.folder / "results" / "score_only"
    texts = {
        name: [text for (text,) in encoder_texts(pq.read_table(results / "corpora" / f"{name}.parquet"), 256, "joint")]
        for name in ("questions", "examples")
    }
    encoder = SentenceTransformer(str(workspace.results / "encoder"), device="cpu")
    dense = encoder.encode(texts["questions"]) @ encoder.encode(texts["examples"]).T
    rows = pq.read_table(results / "scores" / "airrep" / "questions.parquet").to_pylist()
    best = {row["test_id"]: row for row in rows if (row["sign"], row["rank"]) == ("helpful", 1)}
    assert sorted(best) == list(range(QUESTIONS))
    for test, row in best.items():
        assert row["score"] == pytest.approx(dense[test].max(), rel=5e-3)  # embeddings are stored as float16


def test_the_table_and_the_explorer_are_what_the_user_reads(scored):
    workspace, _ = scored
    command = [sys.executable, "-m", "workflow_scripts.report.show_results", "mine.yaml"]
    shown = subprocess.run(command, cwd=workspace.folder, capture_output=True, text=True, check=True).stdout
    assert f"Most helpful training examples on questions by airrep ({QUESTIONS} tests" in shown
    report = (workspace.folder / "results" / "score_only" / "report.html").read_text(encoding="utf-8")
    assert "Pick a test example" in report
    assert "How right that is was not measured" in report


def test_another_encoder_in_the_folder_is_taken_again(scored):
    workspace, _ = scored
    assert not workspace.planned("mine.yaml")
    with (workspace.results / "encoder" / "model.safetensors").open("ab") as file:
        file.write(b"changed")
    again = workspace.planned("mine.yaml")
    assert (again["take_encoder"], again["embed_corpus"], again["prepare_corpus"]) == (1, 2, 0)
