"""The check for known vulnerabilities: what it makes of each answer that pip-audit gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[3] / "envs" / "audit.py"
SOUND = {"name": "numpy", "version": "2.0", "vulns": []}
FLAWED = {"name": "jinja2", "version": "2.10", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.11"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}


@pytest.fixture
def audit(tmp_path):
    """Run the check with an answer of pip-audit: of its packages, or the words that it ends with."""

    def run(answer):
        said = json.dumps({"dependencies": answer}) if isinstance(answer, list) else ""
        words = answer if isinstance(answer, str) else ""
        (tmp_path / "pip_audit.py").write_text(f"import sys\nprint({said!r})\nprint({words!r}, file=sys.stderr)\n")
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run([sys.executable, AUDIT], env=environment, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    return run


def test_a_known_vulnerability_fails(audit):
    code, said = audit([SOUND, FLAWED])
    assert code == 1
    assert said == [
        "jinja2 2.10: PYSEC-1, mended in 2.11",
        "2 of 2 locked versions checked: 1 known vulnerabilities.",
    ]


def test_none_known_is_well(audit):
    assert audit([SOUND]) == (0, ["1 of 1 locked versions checked: 0 known vulnerabilities."])


def test_what_could_not_be_asked_is_told(audit):
    code, (said,) = audit("requests.exceptions.ConnectionError: no route")
    assert code == 0
    assert said.startswith("NOT CHECKED")
    assert "no route" in said


def test_an_index_that_knows_nothing_is_no_clean_bill(audit):
    code, (said,) = audit([UNKNOWN])
    assert code == 0
    assert said.startswith("NOT CHECKED")
    code, said = audit([SOUND, UNKNOWN])
    assert code == 0
    assert said[0].startswith("torch: NOT CHECKED")
    assert said[1].startswith("1 of 2 locked versions checked")
