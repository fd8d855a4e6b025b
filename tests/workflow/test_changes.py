"""What runs: job counts of the studies, and which rules a change runs again."""

import json
import re
from collections import Counter

import pyarrow.parquet as pq
import pytest
import yaml

from workflow_scripts.study.config import load_study
from workflow_scripts.study.plan import StudyPlan

# Every change of a value stands in the resolved config, which the report and the encoder's card show.
ALWAYS = {"resolve_config": 1, "package_encoder": 1, "write_report": 1}
EVALUATED = {"evaluate_lds": 1, "evaluate_label_influence": 1}
BELOW_ENCODER = {"embed_corpus": 2, "score_pairs": 2, **EVALUATED}
BELOW_TARGETS = {"train_encoder": 1, **BELOW_ENCODER}
HELDOUT_AGAIN = {"sample_subsets": 1, "finetune_shard": 1, "collect_targets": 1, "check_leaks": 1, **EVALUATED}
OTHER = {"train": "pool", "test": "tests", "tests": 10, "subsets": 4, "subset_examples": 16, "subsets_per_job": 2}

EXPERIMENTS = ["leave_out", "removal", "selection", "classification", "amortisation", "transfer"]
STUDIES = {
    "configs/smoke.yaml": {"prepare_corpus": 4, "finetune_shard": 2 + 1, "score_pairs": 7, "embed_corpus": 4},
    # The untrained encoder chooses its pooling on the corpus of the targets.
    "config.yaml": {
        "prepare_corpus": 4,
        "finetune_shard": 4 + 2,
        "score_pairs": 7,
        "embed_corpus": 4 + 1,
        "choose_pooling": 1,
    },
    # Seventeen methods embed pool and tests by themselves, and sixteen of them are fitted, seven on one file with one
    # that stores no embeddings; three encoders, one of them with a start of its own; three evaluations with an LM each,
    # and every experiment.
    "configs/methods_mini.yaml": {
        "prepare_corpus": 4,
        "pretrain_base_lm": 3,
        "tokenize_corpus": 3 + 2 * 2,
        "sample_subsets": 4,
        "finetune_shard": 4 + 3 * 2,
        "collect_targets": 4,
        "init_encoder": 2,
        "train_encoder": 3,
        "warmup_lm": 1,
        "fit_method": 10,
        # All but four of them choose their pooling on the corpus of the targets, which `less` embeds in two ways.
        "embed_by_method": 17 * 2 + 15,
        # And two encoders before their training.
        "choose_pooling": 16 + 2,
        "choose_pooling_by_lm": 1,
        # And one of a blend's two methods, whose scores on that corpus are predicted.
        "embed_corpus": 5 * 2 + 2 + 1,
        "predict_held_back": 1,
        "predict_held_back_by_lm": 1,
        "weigh_blend": 1,
        "score_pairs": 28 * 3,
        "score_pairs_by_lm": 3,
        "check_labels": 1,
        "draw_base": 2,
        "score_base": 28 + 7,
        "score_base_by_lm": 1,
        "draw_leave_out": 1,
        "draw_removal": 1,
        "draw_selection": 1,
        "finetune_runs": 3 * 2,
        **{f"evaluate_{name}": 1 for name in EXPERIMENTS},
    },
}
PAPERS = ["paper_flan", "paper_ultrachat"]

CHANGES = {
    "report": ({"report__characters": 100}, {}),
    "bootstrap": ({"judging__bootstrap": 50}, EVALUATED),
    "near duplicates": ({"judging__near_duplicate": 0.8}, {"check_leaks": 1, **EVALUATED}),
    "top": ({"scoring__top": 3}, {"score_pairs": 7, **EVALUATED}),
    "methods": ({"scoring__methods": ["airrep", "tfidf"]}, EVALUATED),
    "a pooling to be chosen": (
        {"scoring__poolings": {"untrained": ["attention", "mean"], "tfidf": ["mean", "chosen"]}},
        {"choose_pooling": 1, "score_pairs": 1, **EVALUATED},
    ),
    "a blend": (
        {"scoring__blends": ["airrep+tfidf"]},
        {"embed_corpus": 1, "predict_held_back": 2, "weigh_blend": 1, "score_blend": 1, "evaluate_lds": 1},
    ),
    "labels that a method predicts": (
        {
            "targets__surrogate": {"method": "bm25", "folds": 3, "subsets_per_fold": 8},
            "encoder_training__surrogate_share": 0.5,
        },
        {"sample_subsets": 1, "predict_targets": 1, **BELOW_TARGETS},
    ),
    "embedding precision": (
        {"scoring__embedding_precision": "float32"},
        {"embed_corpus": 4, "score_pairs": 3, **EVALUATED},
    ),
    "encoder steps": ({"encoder_training__steps": 30}, BELOW_TARGETS),
    "encoder layers": (
        {"encoder__layers": 0},
        {"init_encoder": 1, "train_encoder": 1, "embed_corpus": 4, "score_pairs": 3, **EVALUATED},
    ),
    "diverged share": ({"finetuning__max_diverged_share": 0.5}, {"collect_targets": 2, **BELOW_TARGETS}),
    "learning rate": (
        {"finetuning__learning_rate": 2e-3},
        {"finetune_shard": 3, "collect_targets": 2, **BELOW_TARGETS},
    ),
    "LM": (
        {"language_model__pretraining__steps": 25},
        {"pretrain_base_lm": 1, "tokenize_corpus": 3, "sample_subsets": 2, "finetune_shard": 3, "collect_targets": 2}
        | BELOW_TARGETS
        | {"check_leaks": 1, "score_pairs": 7},
    ),
    "evaluation seeds": (
        {"evaluations__heldout__seeds": 3},
        {"finetune_shard": 1, "collect_targets": 1, **EVALUATED},
    ),
    "test corpus": (
        {"corpora__tests__limit": 41},
        {**HELDOUT_AGAIN, "prepare_corpus": 1, "tokenize_corpus": 1, "embed_corpus": 2, "score_pairs": 7},
    ),
    "two more folds": (
        {"targets__folds": 6},
        {"sample_subsets": 1, "finetune_shard": 1, "collect_targets": 1, **BELOW_TARGETS},
    ),
    "one more evaluation set": (
        {"evaluations__other": OTHER},
        {**HELDOUT_AGAIN, "finetune_shard": 2, "score_pairs": 7},
    ),
}


@pytest.mark.parametrize("config", STUDIES)
def test_job_counts_of_a_study(fresh, config):
    counts = fresh.planned(config)
    rest = dict.fromkeys(["pretrain_base_lm", "init_encoder", "train_encoder", "check_leaks", *EVALUATED], 1)
    expected = {"tokenize_corpus": 3, "sample_subsets": 2, "collect_targets": 2, **rest, **ALWAYS, **STUDIES[config]}
    assert counts == Counter(expected)


@pytest.mark.parametrize("name", PAPERS)
def test_job_counts_of_the_papers_studies(fresh, name):
    """That they are 10,000 subsets and 10,000,000 targets is tested in test_specs."""
    config = fresh.folder / "configs" / f"{name}.yaml"
    plan = StudyPlan(load_study(yaml.safe_load(config.read_text(encoding="utf-8"))))
    counts = fresh.planned(config)
    assert counts["finetune_shard"] == sum(len(plan.blocks(pool)) for pool in plan.pools)
    assert counts["score_pairs"] == len(plan.study.scoring.methods) * len(plan.study.evaluations)
    assert (counts["train_encoder"], counts["pretrain_base_lm"]) == (1, 0)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_runs_these_rules_again_and_no_other(finished, name):
    changes, expected = CHANGES[name]
    assert finished.planned(**changes) == Counter(expected | ALWAYS)


TRACKIO = """
import json

def init(**options):
    pass

def log(values, step):
    with open("curves.jsonl", "a") as file:
        file.write(json.dumps({"step": step, **values}) + "\\n")

def finish():
    pass
"""


def test_a_tracker_reruns_nothing_and_gets_the_curves_of_a_training(finished, tmp_path):
    workspace = finished.copy(tmp_path / "copy")
    missing = workspace.smoke("--dry-run", track="trackio")
    assert missing.returncode == 1
    assert "track is trackio, but trackio is not installed: run `pip install trackio`" in missing.stdout
    assert "Traceback" not in missing.stdout
    (workspace.folder / "trackio.py").write_text(TRACKIO)
    assert workspace.planned(track="trackio") == Counter()
    log = "results/smoke/encoder.log.parquet"
    done = workspace.smoke(log, "--forcerun", "train_encoder", track="trackio")
    assert done.returncode == 0, done.stdout
    curves = [json.loads(line) for line in (workspace.folder / "curves.jsonl").read_text().splitlines()]
    steps = pq.read_table(workspace.folder / log).to_pylist()
    assert [(row["step"], row.get("loss")) for row in curves] == [
        (row["step"], row["loss"] and pytest.approx(row["loss"], rel=1e-6)) for row in steps
    ]


def test_one_more_evaluation_set_needs_no_training_fold(finished):
    study = finished.study({"evaluations__other": OTHER})
    done = finished.snakemake("--dry-run", "--configfile", str(study))
    blocks = set(re.findall(r"output: results/smoke/targets/(\w+)/\w+\.parquet", done.stdout))
    assert blocks == {"other"}


def test_null_on_the_command_line_is_what_it_is_in_a_file(finished):
    done = finished.snakemake("--dry-run", "--config", "evaluations={heldout: {tests: null}}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rule finetune_shard" in done.stdout


def test_two_more_folds_fine_tune_theirs_alone(finished):
    done = finished.snakemake("--dry-run", "--configfile", str(finished.study({"targets__folds": 6})))
    assert re.findall(r"output: results/smoke/targets/(\w+/\w+)\.parquet", done.stdout) == ["train/f0002_s0000"]


def test_only_rows_appended_to_a_scored_corpus_are_embedded(finished, tmp_path):
    workspace = finished.copy(tmp_path / "copy")
    wanted = "results/smoke/embeddings/trained/pool.parquet"
    rows = pq.read_table(workspace.results / "corpora" / "pool.parquet", columns=["prompt", "response"]).to_pylist()
    local = {"corpora__pool": {"source": "pool.jsonl"}}
    before = pq.read_table(workspace.folder / wanted).to_pylist()

    def embedded():
        done = workspace.smoke(wanted, **local)
        assert done.returncode == 0, done.stdout
        assert "rule train_encoder" not in done.stdout
        return re.search(r"embed_corpus pool: (.*) new embeddings, (.*) kept", done.stdout).groups()

    source = workspace.folder / "pool.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert embedded() == ("0", "300")  # the same rows from another source
    with source.open("a") as file:
        file.write(json.dumps({"prompt": "Which colour is new?", "response": "This one."}) + "\n")
    assert embedded() == ("1", "300")
    assert pq.read_table(workspace.folder / wanted).to_pylist()[:300] == before


@pytest.mark.parametrize("fault", ["nonsense =", 'raise RuntimeError("a fault")'], ids=["at the start", "at work"])
def test_a_job_that_failed_runs_again_and_reuses_its_earlier_result(finished, tmp_path, fault):
    workspace = finished.copy(tmp_path / "copy")
    wanted = "results/smoke/embeddings/trained/tests.parquet"
    script = workspace.folder / "workflow_scripts" / "embeddings" / "embed_corpus.py"
    source = script.read_text(encoding="utf-8")
    # Other values, and other rows by the same values.
    changes = {"corpora__tests": {"source": "builtin:mini", "part": [0.9, 1.0], "limit": 39}}
    other = {"scoring__embedding_precision": "float32"}
    for values, kept in ((changes, "0 new embeddings, 39 kept"), (changes | other, "39 new embeddings, 0 kept")):
        script.write_text(source.replace("    model = load_encoder(", f"    {fault}\n    model = load_encoder("))
        failed = workspace.smoke(wanted, **values)
        assert failed.returncode == 1
        assert not (workspace.folder / wanted).exists()
        script.write_text(source)
        assert workspace.planned(**values)["embed_corpus"] >= 2
        done = workspace.smoke(wanted, **values)
        assert done.returncode == 0, done.stdout
        assert f"embed_corpus tests: {kept}" in done.stdout
    assert not list(workspace.results.rglob("*.earlier"))


def test_parts_split_the_jobs_of_training_corpora_alone(fresh):
    counts = fresh.planned(scoring__parts=8)
    # Trained and untrained: eight parts of the pool, and the tests in one piece. Three of seven methods embed.
    assert (counts["embed_corpus"], counts["score_part"]) == (2 * (8 + 1), 3 * 8)
    assert (counts["merge_scores"], counts["score_pairs"]) == (3, 4)


def test_parts_give_the_files_of_one_job(finished, tmp_path):
    workspace = finished.copy(tmp_path / "copy")
    wanted = [f"results/smoke/{folder}/airrep/heldout.parquet" for folder in ("scores", "groups")]
    done = workspace.smoke(*wanted, scoring__parts=2)
    assert done.returncode == 0, done.stdout
    for path in wanted:
        one, parts = (pq.read_table(where.folder / path) for where in (finished, workspace))
        assert parts.drop_columns("score").equals(one.drop_columns("score"))
        assert parts["score"].to_pylist() == pytest.approx(one["score"].to_pylist(), rel=1e-5, abs=1e-6)
    # What the parts left on the way to these files is gone.
    assert {path.name for path in (workspace.results / "scores" / "airrep").iterdir()} == {"heldout.parquet"}
    assert "Nothing to be done" in workspace.smoke(*wanted, scoring__parts=2).stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets__fold": 3}, "targets.fold: no such key; did you mean 'folds'?"),
        ({"targets__folds": "many"}, "targets.folds: Input should be a valid integer"),
        ({"targets__corpus": "other"}, "targets.corpus: there is no corpus 'other'"),
    ],
)
def test_a_wrong_config_is_one_clear_message(fresh, changes, message):
    done = fresh.smoke("--dry-run", **changes)
    assert done.returncode == 1
    assert message in done.stdout
    assert "study.yaml has 1 wrong key(s)" in done.stdout
    assert "Traceback" not in done.stdout


def test_cores_and_jobs_together_are_refused_on_one_machine(fresh):
    done = fresh.smoke("--jobs", "3")
    assert done.returncode != 0
    assert "--cores 2 and --jobs 3 were both given" in done.stdout
    assert "Finished jobid" not in done.stdout
    assert not fresh.results.exists()


def test_a_corpus_that_is_too_small_stops_with_a_clear_message(finished, tmp_path):
    workspace = finished.copy(tmp_path / "copy")
    done = workspace.smoke("results/smoke/subsets/heldout.parquet", evaluations__heldout__tests=4000)
    assert done.returncode == 1
    assert "error in sample_subsets: heldout: 4,000 test examples are needed, but the corpus has only 40" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_workflow_is_clean_for_the_linter(fresh):
    done = fresh.snakemake("--lint")
    assert done.returncode == 0, done.stdout


HOSTILE_NAME = 'it\'s; $(touch pwned) `touch pwned` "x" [1]* & %s \\ .jsonl'


def test_a_hostile_path_is_a_path_and_no_more(fresh):
    """Quotes, commands and patterns in a corpus's path, which leads out of the folder."""
    source = fresh.folder.parent / HOSTILE_NAME
    source.write_text("".join(json.dumps({"prompt": f"Why {i}?", "response": f"{i}."}) + "\n" for i in range(9)))
    before = set(fresh.folder.parent.rglob("*"))
    wanted = "results/smoke/corpora/tests.parquet"
    done = fresh.smoke(wanted, corpora__tests={"source": f"../{HOSTILE_NAME}"})
    assert done.returncode == 0, done.stdout
    assert pq.read_metadata(fresh.folder / wanted).num_rows == 9
    # Python's own bytecode appears wherever a module is imported for the first time.
    new = {path for path in set(fresh.folder.parent.rglob("*")) - before if "__pycache__" not in path.parts}
    made = {path.relative_to(fresh.folder).parts[0] for path in new}
    assert made <= {"results", ".snakemake", "study.yaml", ".cache"}
    assert not list(fresh.folder.parent.rglob("pwned"))
