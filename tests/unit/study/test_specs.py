"""A study's jobs and their specs; and a change of a stage's source asks whether its version must rise.

`python tests/unit/study/test_specs.py` records the sources that stand in the tree, after that question is answered.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml

from workflow_scripts.study.artifacts import artifacts
from workflow_scripts.study.config import Study, load_study
from workflow_scripts.study.method_costs import fitting_jobs
from workflow_scripts.study.methods import METHODS
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.resources import JobResources
from workflow_scripts.study.sections import Finetuning
from workflow_scripts.study.sources import is_hub_id
from workflow_scripts.study.specs import StageSpecs
from workflow_scripts.study.stage_versions import STAGE_VERSIONS

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "workflow_scripts"
RECORD = Path(__file__).with_name("stage_hashes.json")
MODULE_NAME = re.compile(r"^workflow_scripts(\.\w+)+$")
# They say what is run and how it is shown; what a stage computes comes from its spec.
WITHOUT_MEANING = {
    f"workflow_scripts.{name}"
    for name in (
        "core.errors",
        "core.gpus",
        "core.progress",
        "core.stage",
        "study.config",
        "study.plan",
        "study.messages",
        "study.resources",
        "study.sections",
        "study.specs",
        "study.stage_versions",
    )
}


def module_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def imported(tree: ast.AST) -> set[str]:
    """Names of the package's modules that a module imports, and of every method where it loads methods by name."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    if any(name.rpartition(".")[2] in ("load_module", "load_text_method") for name in names):
        modules = {method.own.module if method.own else name for name, method in METHODS.items()}
        names |= {f"workflow_scripts.methods.{module}" for module in modules | {"sentence_encoder"}}
    return {name for name in names if name.startswith("workflow_scripts.") and module_file(name)}


def stage_module(stage: str) -> str:
    (file,) = PACKAGE.rglob(f"{stage}.py")
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def sources(stage: str) -> dict[str, ast.AST]:
    """A stage's module and all that it imports of the package, directly or not."""
    found: dict[str, ast.AST] = {}
    waiting = {stage_module(stage)}
    while waiting:
        name = waiting.pop()
        found[name] = ast.parse(module_file(name).read_text(encoding="utf-8"))
        waiting |= imported(found[name]) - found.keys() - WITHOUT_MEANING
    return dict(sorted(found.items()))


def code_of(node: object) -> object:
    """A syntax tree without what has no meaning: docstrings, places, imports, the names of the package's modules, and
    empty fields, which differ between Python versions."""
    if isinstance(node, list):
        return [code_of(item) for item in node if not isinstance(item, ast.Import | ast.ImportFrom)]
    if not isinstance(node, ast.AST):
        return repr(MODULE_NAME.sub("workflow_scripts", node) if isinstance(node, str) else node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, []) and name != "kind"}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    return [type(node).__name__, [[name, code_of(value)] for name, value in sorted(fields.items())]]


def stage_hash(stage: str) -> str:
    """A hash of the statements that a stage reaches, whichever module they stand in."""
    statements = {json.dumps(code) for tree in sources(stage).values() for code in dict(code_of(tree)[1])["body"]}
    return hashlib.sha256(json.dumps(sorted(statements)).encode()).hexdigest()[:16]


@pytest.mark.parametrize("stage", STAGE_VERSIONS)
def test_a_changed_source_has_a_version(stage):
    recorded = json.loads(RECORD.read_text()).get(stage)
    now = {"version": STAGE_VERSIONS[stage], "source": stage_hash(stage)}
    assert recorded == now, (
        f"the code of {stage} changed, or of a module that it imports. If it computes something else now, raise "
        f"STAGE_VERSIONS[{stage!r}] in workflow_scripts/study/stage_versions.py, so that its results are recomputed. "
        "Then run `python tests/unit/study/test_specs.py` and commit stage_hashes.json."
    )


def test_docstrings_comments_and_layout_have_no_meaning():
    plain = 'def f(x):\n    """Say."""\n    return x + 1\n'
    same = "def f(\n    x,\n):  # why\n    return (x + 1)\n"
    other = "def f(x):\n    return x + 2\n"
    first, second, third = (code_of(ast.parse(text)) for text in (plain, same, other))
    assert first == second != third


def test_a_move_has_no_meaning():
    here = "from workflow_scripts.a import f\nJOB = 'workflow_scripts.a'\nf(1)\n"
    there = "from workflow_scripts.b.c import f\nJOB = 'workflow_scripts.b.c'\nf(1)\n"
    other = "from workflow_scripts.a import f\nJOB = 'workflow_scripts.a'\nf(2)\n"
    first, second, third = (code_of(ast.parse(text)) for text in (here, there, other))
    assert first == second != third


def test_sources_reach_through_imports():
    assert "workflow_scripts.models.packing" in sources("finetune_shard")
    assert "workflow_scripts.methods.bm25" in sources("score_pairs")
    assert "workflow_scripts.models.packing" not in sources("prepare_corpus")


def study(name: str = "smoke", **changes: object) -> Study:
    values = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        *sections, last = key.split("__")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return load_study(values)


def spec(plan: StudyPlan, stage: str, wildcards: dict[str, str]) -> dict[str, object]:
    return StageSpecs(plan).spec(stage, wildcards)


@pytest.mark.parametrize("name", ["paper_flan", "paper_ultrachat"])
def test_the_papers_studies_plan_its_subsets_and_targets(name):
    plan = StudyPlan(study(name))
    folds, subsets, seeds = plan.runs("train")
    assert (folds, subsets, seeds) == (100, 100, 1)
    assert folds * subsets * seeds * plan.measured_examples("train") == 10_000_000
    runs = []
    for block in plan.blocks("train"):
        values = spec(plan, "finetune_shard", {"pool": "train", "block": block})
        runs += [(fold, index) for fold in range(*values["folds"]) for index in range(*values["indexes"])]
    assert len(runs) == len(set(runs)) == 10_000


@pytest.mark.parametrize(("folds_per_job", "subsets_per_job"), [(1, 1), (3, 4), (100, 100), (2, 5)])
def test_blocks_cover_every_run_once(folds_per_job, subsets_per_job):
    plan = StudyPlan(study(targets__folds_per_job=folds_per_job, targets__subsets_per_job=subsets_per_job))
    runs = []
    for block in plan.blocks("train"):
        values = spec(plan, "finetune_shard", {"pool": "train", "block": block})
        runs += [(fold, index) for fold in range(*values["folds"]) for index in range(*values["indexes"])]
    assert sorted(runs) == [(fold, index) for fold in range(4) for index in range(6)]


def test_more_folds_add_blocks_and_change_no_full_one():
    few, many = StudyPlan(study()), StudyPlan(study(targets__folds=6))
    assert many.blocks("train")[: len(few.blocks("train"))] == few.blocks("train")
    for block in few.blocks("train"):
        wildcards = {"pool": "train", "block": block}
        assert spec(few, "finetune_shard", wildcards) == spec(many, "finetune_shard", wildcards)


def test_scores_alone_fine_tune_nothing():
    plan = StudyPlan(study("score_only"))
    assert plan.pools == plan.lds_evaluations == plan.tokenized_corpora() == []
    assert spec(plan, "sample_subsets", {"pool": "questions"})["subsets_per_fold"] == 0
    both = StudyPlan(study(evaluations__asked={"train": "pool", "test": "tests", "tests": 5, "subsets": 0}))
    assert both.pools == ["train", "heldout"]


def test_deterministic_is_in_a_spec_only_where_it_is_on_and_changes_a_number():
    off, on = StudyPlan(study()), StudyPlan(study(deterministic=True))
    block = {"pool": "train", "block": "f0000_s0000"}
    assert spec(on, "finetune_shard", block) == {**spec(off, "finetune_shard", block), "deterministic": True}
    assert spec(on, "sample_subsets", {"pool": "train"}) == spec(off, "sample_subsets", {"pool": "train"})
    # As it was before there was such a key.
    assert "deterministic" not in spec(off, "resolve_config", {})["study"]
    assert spec(on, "resolve_config", {})["study"]["deterministic"] is True


def test_a_tracker_is_in_no_spec():
    off, on = StageSpecs(StudyPlan(study())), StageSpecs(StudyPlan(study(track="tensorboard")))
    assert [one.spec for one in artifacts(on)] == [one.spec for one in artifacts(off)]


def test_a_section_s_spec_leaves_out_what_decides_nothing_and_what_came_later():
    plain = Finetuning()
    assert Finetuning(max_diverged_share=0.5).spec() == plain.spec()
    assert plain.spec().keys().isdisjoint({"compile", "engine", "zero_stage", "offload", "processes"})
    for section in (plain, Finetuning(compile=True), Finetuning(engine="deepspeed", zero_stage=2, processes=4)):
        made = Finetuning(**section.spec())
        assert made == section.model_copy(update={"processes": 1})
        assert made.spec() == section.spec()
    assert Finetuning(engine="deepspeed").spec() != Finetuning(engine="deepspeed", offload=True).spec()


def test_predicted_targets_change_nothing_of_the_measured_ones():
    surrogate = {"method": "ekfac_2048", "folds": 3, "subsets_per_fold": 50}
    changes = {"scoring__methods": ["airrep", "ekfac_2048"], "targets__surrogate": surrogate}
    off, on = StudyPlan(study()), StudyPlan(study(**changes, encoder_training__surrogate_share=0.5))
    for stage, wildcards in {
        "sample_subsets": {"pool": "train"},
        "finetune_shard": {"pool": "train", "block": "f0000_s0000"},
        "collect_targets": {"pool": "train"},
        "init_encoder": {},
    }.items():
        assert spec(on, stage, wildcards) == spec(off, stage, wildcards)
    assert on.runs("surrogate") == (3, 50, 1)
    drawn = spec(on, "sample_subsets", {"pool": "surrogate"})["sampling"]
    assert drawn == spec(on, "sample_subsets", {"pool": "train"})["sampling"] | {"pool": "surrogate"}
    # As it was before there were such keys.
    assert "surrogate" not in spec(off, "resolve_config", {})["study"]["targets"]
    assert "surrogate_share" not in spec(off, "train_encoder", {})["training"]
    assert spec(on, "train_encoder", {})["training"]["surrogate_share"] == 0.5


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_bits_are_stored_of_training_rows_alone_and_of_rotated_sketches(precision):
    binary = [name for name, method in METHODS.items() if method.own and method.own.binary]
    assert binary
    plan = StudyPlan(study(scoring__methods=binary, scoring__embedding_precision=precision))
    for name in binary:
        train, tests = (
            spec(plan, "embed_by_method", {"embedding": embedding, "corpus": "pool", "part": ""})
            for embedding in (plan.embedding_of(name), plan.embedding_of(name, for_tests=True))
        )
        assert (train["embedding_precision"], tests["embedding_precision"]) == ("binary", precision)
        assert train["settings"] == tests["settings"] == {"dimension": train["settings"]["dimension"], "rotated": True}
        assert str(train["settings"]["dimension"]) in name


@pytest.mark.parametrize(
    ("teacher", "embeddings"),
    [("ekfac_2048", ["ekfac_2048"]), ("ekfac_16384_binary", ["ekfac_16384_binary", "ekfac_16384_binary-tests"])],
)
def test_an_encoder_that_learns_from_predicted_targets_pays_for_them(teacher, embeddings):
    surrogate = {"method": teacher, "folds": 3, "subsets_per_fold": 50}
    changes = {"scoring__methods": ["airrep", "airrep@both", teacher], "targets__surrogate": surrogate}
    plan = StudyPlan(study(**changes, encoder_variants={"both": {"encoder_training": {"surrogate_share": 0.5}}}))
    alone, both = (set(fitting_jobs(plan, method)) for method in ("airrep", "airrep@both"))
    assert both - alone == {
        "warmup_lm/*.tsv",
        "fit_method/ekfac.tsv",
        *(f"embed_by_method/{embedding}/train.tsv" for embedding in embeddings),
        "sample_subsets/surrogate.tsv",
        "predict_targets/surrogate.tsv",
        "train_encoder/study@both.tsv",
    }
    made = {str(one.path): one.spec for one in artifacts(StageSpecs(plan))}
    assert {"results/smoke/targets/surrogate.parquet", "results/smoke/subsets/surrogate.parquet"} <= made.keys()
    assert {f"results/smoke/embeddings/{embedding}/train.parquet" for embedding in embeddings} <= made.keys()


def test_a_spec_is_sorted_and_carries_the_version():
    values = spec(StudyPlan(study()), "train_encoder", {})
    assert list(values) == sorted(values)
    assert values["version"] == STAGE_VERSIONS["train_encoder"]


def test_swapped_values_are_another_spec():
    one = StudyPlan(study(encoder_training__warmup_steps=3, encoder_training__validate_every=5))
    two = StudyPlan(study(encoder_training__warmup_steps=5, encoder_training__validate_every=3))
    assert repr(spec(one, "train_encoder", {})) != repr(spec(two, "train_encoder", {}))


def test_an_evaluation_whose_corpora_change_places_is_computed_again():
    methods, experiments = ["airrep", "tfidf"], {"detection": {"evaluation": "heldout"}}
    experiments["selection"] = {"evaluation": "heldout", "examples": 2, "methods": methods}
    experiments["leave_out"] = {"evaluation": "heldout", "base_examples": 8, "sizes": [1], "groups": 4}
    one, other = (
        StudyPlan(study(evaluations__heldout__train=train, evaluations__heldout__test=test, experiments=experiments))
        for train, test in (("pool", "tests"), ("tests", "pool"))
    )
    of_evaluation = {"evaluation": "heldout", "method": "airrep"}
    for stage, wildcards in {
        "sample_subsets": {"pool": "heldout"},
        "finetune_shard": {"pool": "heldout", "block": "f0_i0"},
        "score_pairs": of_evaluation,
        "score_part": {**of_evaluation, "part": ".1of2"},
        "draw_base": {"experiment": "leave_out"},
        "draw_selection": {},
        "finetune_runs": {"experiment": "selection", "job": "0"},
        "damage_pool": {},
    }.items():
        assert spec(one, stage, wildcards) != spec(other, stage, wildcards), stage
    assert "roles" not in spec(one, "sample_subsets", {"pool": "train"})


def test_other_differences_follow_another_first_method():
    def plan(*methods):
        experiments = {"selection": {"evaluation": "heldout", "examples": 2, "methods": list(methods)}}
        return StudyPlan(study(experiments=experiments))

    one, other = plan("airrep", "tfidf"), plan("tfidf", "airrep")
    assert spec(one, "draw_selection", {}) != spec(other, "draw_selection", {})


def test_memory_follows_the_size_in_the_models_name():
    small, large = (
        JobResources(StudyPlan(study(language_model__model=name))).memory_mb("finetune_shard")
        for name in ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B")
    )
    assert small < 20_000 < 100_000 < large


def test_methods_that_are_fitted_alike_share_a_file():
    plan = StudyPlan(study(scoring__methods=["ekfac", "ekfac_2048", "tracin"]))
    assert [plan.fit_of(name) for name in plan.study.scoring.methods] == ["ekfac", "ekfac", "tracin"]
    assert plan.fit_of("rds") is None
    assert "ekfac_2048" not in plan.fitted_methods()
    assert fitting_jobs(plan, "ekfac_2048") == fitting_jobs(plan, "ekfac") == ["fit_method/ekfac.tsv"]


@pytest.mark.parametrize("parts", [1, 3])
def test_scores_of_embeddings_that_are_not_stored_say_how_they_are_computed(parts):
    plan = StudyPlan(study(scoring__methods=["ekfac", "ekfac_2048", "tfidf"], scoring__parts=parts))
    assert plan.unstored_methods() == ["ekfac"]
    assert plan.embedding_of("ekfac") is None
    assert "ekfac" not in plan.own_embeddings()
    assert ("ekfac" in plan.methods_scored(in_parts=True)) == (parts > 1)
    wildcards = {"evaluation": "heldout", **({"part": ".2of3"} if parts > 1 else {})}
    stage = "score_part" if parts > 1 else "score_pairs"
    values, other = (spec(plan, stage, {"method": name, **wildcards}) for name in ("ekfac", "ekfac_2048"))
    assert values["unstored"]["module"] == "ekfac"
    assert values["unstored"]["lm_source"]["model"] == "builtin:tiny"
    assert values.get("part_numbers") == ([2, 3] if parts > 1 else None)
    assert not {"unstored", "part_numbers"} & other.keys()


def test_artifacts_name_the_rule_that_scores_by_an_lm():
    found = artifacts(StageSpecs(StudyPlan(study(scoring__methods=["ekfac", "ekfac_2048"]))))
    rules = {one.path.relative_to("results/smoke").as_posix(): one.rule for one in found}
    assert rules["scores/ekfac/heldout.parquet"] == "score_pairs_by_lm"
    assert rules["scores/ekfac_2048/heldout.parquet"] == "score_pairs"
    assert [path for path in rules if path.startswith(("fitted/", "language_model_warm"))] == [
        "language_model_warm",
        "fitted/ekfac.safetensors",
    ]
    assert not any(path.startswith("embeddings/ekfac/") for path in rules)


def test_models_are_of_the_hub_by_their_ids_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    of_the_hub = ["gpt2", "Qwen/Qwen2.5-0.5B", "models/theirs"]
    others = ["builtin:tiny", "models/mine", "results/other/encoder", "/somewhere/lm", "./lm", "~/lm", "../lm", ""]
    assert [name for name in [*of_the_hub, *others] if is_hub_id(name)] == of_the_hub


def test_each_model_of_the_hub_that_jobs_load_has_one_snapshot():
    plan = StudyPlan(
        study(
            language_model__model="owner/lm",
            language_model__revision="refs/pr/1",
            language_models={"idle": {"model": "owner/idle"}},
            encoder__model="owner/encoder",
            encoder_variants={"same": {"encoder": {"view": "split"}}},
            scoring__methods=["airrep", "airrep@same", "gte"],
            scoring__sentence_encoders={"gte": "owner/gte", "idle": "owner/idle-too"},
        )
    )
    loaded = {name for name, one in plan.hub_models.items() if one.is_loaded}
    assert loaded == {"owner--lm@refs--pr--1", "owner--encoder", "owner--gte"}
    assert plan.hub_models.keys() - loaded == {"owner--idle@refs--pr--1", "owner--idle-too"}
    assert spec(plan, "fetch_model", {"snapshot": "owner--lm@refs--pr--1"}) == {
        "model": "owner/lm",
        "revision": "refs/pr/1",
        "trust_remote_code": False,
        "version": 1,
    }
    assert plan.snapshot_of_lm("") == "owner--lm@refs--pr--1"
    assert plan.snapshot_of_encoder("@same") == "owner--encoder"
    assert plan.snapshot_of_embeddings("gte") == "owner--gte"


def test_a_study_without_models_of_the_hub_has_no_snapshots():
    plan = StudyPlan(study())
    assert plan.hub_models == {}
    assert (plan.snapshot_of_lm(""), plan.snapshot_of_encoder(""), plan.snapshot_of_embeddings("tfidf")) == (None,) * 3


if __name__ == "__main__":
    now = {stage: {"version": version, "source": stage_hash(stage)} for stage, version in STAGE_VERSIONS.items()}
    RECORD.write_text(json.dumps(now, indent=2) + "\n")
