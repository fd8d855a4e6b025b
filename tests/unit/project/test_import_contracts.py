"""The contracts of .importlinter speak of every stage."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_stage_that_a_rule_runs_is_protected():
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter", encoding="utf-8")
    protected = contracts["importlinter:contract:stages"]["protected_modules"].split()
    rules = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.smk")))
    scripts = re.findall(r'"\.\./(workflow_scripts/\S+)\.py"', rules)
    assert sorted(script.replace("/", ".") for script in set(scripts)) == sorted(protected)
