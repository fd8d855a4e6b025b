"""A finished study that grows or changes on Slurm: only the touched jobs are sent."""

from __future__ import annotations

import re

import pyarrow.compute as pc
import pytest
from driving import GROWN, ROOT, SMOKE

OLD_BLOCKS = ["train/f0000_s0000", "train/f0001_s0000", "heldout/f0000_s0000"]


@pytest.fixture(scope="module")
def grown(smoke, tmp_path_factory):
    """The smoke study with two more folds and another evaluation set, run on top of the finished one."""
    checkout = smoke.checkout.copy(tmp_path_factory.mktemp("grown") / "clone")
    return checkout, checkout.run(*GROWN)


def test_two_folds_and_an_evaluation_set_more_send_only_new_fine_tuning(grown):
    _, driver = grown
    shards = re.findall(r"rule_finetune_shard/(\w+?)_(f\d+_s\d+)/", driver.screen())
    assert sorted(set(shards)) == [("second", "f0000_s0000"), ("train", "f0002_s0000")]
    untouched = {"prepare_corpus", "pretrain_base_lm", "tokenize_corpus", "init_encoder"}
    assert not untouched & set(driver.submitted())


def test_finished_targets_stay_as_they_are(grown, smoke):
    checkout, _ = grown
    for block in OLD_BLOCKS:
        name = f"targets/{block}.parquet"
        assert (checkout.results / name).stat().st_mtime == (smoke.checkout.results / name).stat().st_mtime
    old, new = smoke.checkout.table("targets/train.parquet"), checkout.table("targets/train.parquet")
    assert new.filter(pc.less(new["fold"], 4)).equals(old)
    assert pc.max(new["fold"]).as_py() == 5


def test_the_new_evaluation_set_is_in_the_table(grown):
    checkout, _ = grown
    assert set(checkout.table("evaluation/lds.parquet")["evaluation"].to_pylist()) == {"heldout", "second"}


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ("judging={bootstrap: 50}", {"evaluate_lds"}),
        ("scoring={top: 4}", {"score_pairs", "evaluate_lds"}),
        ("encoder_training={steps: 10}", {"train_encoder", "embed_corpus", "score_pairs", "evaluate_lds"}),
    ],
)
def test_one_changed_value_sends_only_the_stages_below_it(smoke, change, rules):
    driver = smoke.checkout.run("-n", "-q", "rules", *SMOKE, "--config", change, "--", "lds")
    assert planned_jobs(driver.screen()).keys() - {"lds", "resolve_config", "write_report", "total"} == rules


def planned_jobs(screen: str) -> dict[str, int]:
    """Return how many jobs of each rule a dry run plans, and the total."""
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", screen, flags=re.MULTILINE)}


@pytest.fixture(scope="module")
def paper_plan(smoke):
    """What a dry run of the paper's study prints under the profile."""
    return smoke.checkout.run("-n", "--configfile", "configs/paper_flan.yaml").screen()


def test_the_paper_preset_is_at_most_400_jobs(paper_plan):
    assert 200 < planned_jobs(paper_plan)["total"] <= 400


def test_the_readme_states_what_the_paper_preset_asks_for(paper_plan):
    readme = (ROOT / "slurm" / "README.md").read_text()
    jobs = planned_jobs(paper_plan)
    rows = re.findall(r"\| (\w+) \| (\d+) \| 1 \| (\d+) min", readme)
    stated = {rule: (int(count), minutes) for rule, count, minutes in rows}
    assert stated.keys() == {"finetune_shard", "train_encoder", "embed_corpus"}
    for rule, (count, minutes) in stated.items():
        asked = re.findall(rf"^rule {rule}:\n(?:    .*\n)*?    resources: (.*)$", paper_plan, re.MULTILINE)
        assert len(asked) == jobs[rule] == count
        assert all(f"runtime={minutes}," in resources and "gpu=1" in resources for resources in asked)
    others = jobs["total"] - jobs["all"] - sum(jobs[rule] for rule in stated)
    assert f"| all others | {others} |" in readme
