"""Which stages reuse what is valid of the earlier version of their result."""

from pathlib import Path

import workflow_scripts
from workflow_scripts.study.artifacts import REUSING
from workflow_scripts.study.stage_versions import STAGE_VERSIONS


def test_every_stage_that_reuses_its_earlier_result_is_known():
    folder = Path(workflow_scripts.__file__).parent
    stages = [path for path in folder.rglob("*.py") if path.stem in STAGE_VERSIONS]
    reusing = {path.stem for path in stages if {"FinishedRuns(", "write_embeddings("} & _calls(path)}
    assert reusing == REUSING


def _calls(path):
    text = path.read_text(encoding="utf-8")
    return {call for call in ("FinishedRuns(", "write_embeddings(") if call in text}
