"""The config reference and the JSON schema are those of the typed model, and every study obeys them."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from workflow_scripts.core.errors import StudyError
from workflow_scripts.study.config import load_study
from workflow_scripts.study.document_config import ROOT, documents
from workflow_scripts.study.plan import StudyPlan

STUDIES = [ROOT / "config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_the_files_are_those_of_the_model(path):
    assert path.read_text(encoding="utf-8") == documents()[path], (
        "run `python -m workflow_scripts.study.document_config`"
    )


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_a_study_names_its_schema_and_obeys_it(path: Path):
    first_line, text = path.read_text(encoding="utf-8").split("\n", 1)
    named = path.parent / first_line.removeprefix("# yaml-language-server: $schema=")
    jsonschema.validate(yaml.safe_load(text), json.loads(named.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_what_trains_the_encoder_is_not_what_judges_it(path: Path):
    study = load_study(yaml.safe_load(path.read_text(encoding="utf-8")), path.name)
    if study.targets is None:
        return  # its encoder was trained elsewhere
    train = study.corpora[study.targets.corpus]
    # Without subsets nothing is evaluated on what is scored.
    pools = {one.train for one in study.evaluations.values() if one.subsets}
    for name in pools | {one.test for one in study.evaluations.values()}:
        test = study.corpora[name]
        apart = train.part[1] <= test.part[0] or test.part[1] <= train.part[0]
        assert name in train.without or apart


@pytest.mark.parametrize("name", ["paper_flan", "paper_ultrachat", "released_flan"])
def test_a_preset_of_the_paper_plans_its_subsets_and_targets(name):
    study = load_study(yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text()), name)
    plan = StudyPlan(study)
    folds, subsets, seeds = plan.runs("train")
    assert folds * subsets * seeds == 10_000
    assert folds * subsets * seeds * plan.measured_examples("train") == 10_000_000
    assert 100 <= sum(len(plan.blocks(pool)) for pool in plan.pools) <= 400
    for evaluation in study.evaluations:
        assert plan.runs(evaluation) == (1, 100, 2)


def test_corpora_that_leave_each_other_out_are_refused():
    values = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    values["corpora"]["pool"]["without"] = ["tests"]
    values["corpora"]["tests"]["without"] = ["pool"]
    with pytest.raises(StudyError, match="leave each other out"):
        load_study(values)
