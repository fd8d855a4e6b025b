"""Results that Snakemake restored after their job failed."""

import re
from pathlib import Path

from workflow_scripts.core.files import earlier_of
from workflow_scripts.study.artifacts import UPDATING, Artifact, discard_restored

RULES = Path(__file__).parents[3] / "rules"


def test_a_restored_result_is_deleted_and_its_earlier_version_kept(tmp_path):
    def artifact(name, stage="finetune_shard"):
        path = tmp_path / name
        path.write_text(name)
        return Artifact(path, stage, {})

    restored, whole, other = artifact("restored"), artifact("whole"), artifact("other", "collect_targets")
    for one in (restored, other):
        earlier_of(one.path).write_text("earlier")
    discard_restored([restored, whole, other, Artifact(tmp_path / "absent", "finetune_shard", {})])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"whole", "other", earlier_of(restored.path).name, earlier_of(other.path).name}


def test_every_rule_that_updates_its_output_is_known():
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(RULES.glob("*.smk")))
    rules = re.split(r"^rule ", text, flags=re.MULTILINE)[1:]
    assert {rule.partition(":")[0] for rule in rules if "update(" in rule} == UPDATING
