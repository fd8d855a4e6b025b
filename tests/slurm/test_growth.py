"""A finished study that grows or changes on Slurm: only the touched jobs are sent."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from driving import APPENDED, GROWN, SMOKE

OLD_BLOCKS = ["train/f0000_s0000", "train/f0001_s0000", "heldout/f0000_s0000"]
SCORED = "results/smoke/embeddings/trained/pool.parquet"

# One value of each stage, and the rules that it decides, besides those that every change reaches.
ALWAYS = {"resolve_config", "package_encoder", "write_report"}
EVALUATED = {"evaluate_lds", "evaluate_label_influence"}
BELOW_ENCODER = {"embed_corpus", "score_pairs", *EVALUATED}
BELOW_TARGETS = {"train_encoder", *BELOW_ENCODER}
BELOW_LM = {"tokenize_corpus", "sample_subsets", "finetune_shard", "collect_targets", "check_leaks", *BELOW_TARGETS}
CHANGES = {
    "corpora={pretraining: {limit: 299}}": {"prepare_corpus", "pretrain_base_lm", *BELOW_LM},
    "language_model={pretraining: {steps: 25}}": {"pretrain_base_lm", *BELOW_LM},
    "targets={subset_examples: 15}": {"sample_subsets", "finetune_shard", "collect_targets", *BELOW_TARGETS},
    "finetuning={learning_rate: 2e-3}": {"finetune_shard", "collect_targets", *BELOW_TARGETS},
    "finetuning={max_diverged_share: 0.5}": {"collect_targets", *BELOW_TARGETS},
    "encoder={layers: 0}": {"init_encoder", *BELOW_TARGETS},
    "encoder_training={steps: 10}": BELOW_TARGETS,
    "scoring={embedding_precision: float32}": BELOW_ENCODER,
    "scoring={top: 4}": {"score_pairs", *EVALUATED},
    "judging={near_duplicate: 0.8}": {"check_leaks", *EVALUATED},
    "judging={bootstrap: 50}": EVALUATED,
    "report={characters: 100}": set(),
}


@pytest.fixture(scope="module")
def appending(smoke, tmp_path_factory):
    """A driver that embeds the scored corpus again, from a file with the same rows and one more."""
    checkout = smoke.checkout.copy(tmp_path_factory.mktemp("appended") / "clone")
    rows = pq.read_table(checkout.results / "corpora/pool.parquet", columns=["prompt", "response"]).to_pylist()
    rows.append({"prompt": "Which colour is new?", "response": "This one."})
    (checkout.folder / "pool.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return checkout, checkout.start(*APPENDED, "--", SCORED)


@pytest.fixture(scope="module")
def grown(smoke, appending, tmp_path_factory):
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


def test_only_an_appended_row_is_embedded(appending, smoke):
    checkout, driver = appending
    assert driver.wait() == 0, driver.screen()[-5000:]
    assert sorted(driver.submitted()) == ["embed_corpus", "prepare_corpus"]
    assert "embed_corpus pool: 1 new embeddings, 300 kept" in checkout.log("embed_corpus/trained/pool")
    old, new = (study.table("embeddings/trained/pool.parquet") for study in (smoke.checkout, checkout))
    assert new.slice(0, 300).equals(old)
    assert len(new) == 301


@pytest.fixture(scope="module")
def planned(smoke):
    """For each change, the rules whose jobs a dry run would send."""

    def rules(change: str) -> set[str]:
        screen = smoke.checkout.run("-n", "-q", "rules", *SMOKE, "--config", change).screen()
        return set(re.findall(r"^(\w+) +\d+$", screen, flags=re.MULTILINE)) - {"all", "total"}

    with ThreadPoolExecutor(os.cpu_count()) as at_once:
        return dict(zip(CHANGES, at_once.map(rules, CHANGES), strict=True))


@pytest.mark.parametrize("change", CHANGES)
def test_one_changed_value_sends_only_the_stages_below_it(planned, change):
    assert planned[change] == CHANGES[change] | ALWAYS
