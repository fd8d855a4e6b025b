"""No token is written: on the screen, in a log, a message or the provenance, in whatever form it comes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, quote_plus

import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.progress import say
from workflow_scripts.core.redaction import redacted
from workflow_scripts.core.stage import run_job
from workflow_scripts.provenance.resolve_config import resolve_config

PLAIN = "hf_markerofthistest"
TOKENS = [PLAIN, PLAIN + "\n", f"\t{PLAIN} \r\n", 'hf_"marker\\of=this/test', "hf_markér of\nthistest"]
FORMS = {
    "plain": str,
    "escaped": repr,
    "bytes": lambda token: repr(f"Bearer {token}".encode()),
    "JSON": json.dumps,
    "quoted": lambda token: quote(token, safe=""),
    "of a form": quote_plus,
    "in an address": lambda token: f"https://me:{token}@huggingface.co",
}


def is_told(text, token):
    """Whether anything that is longer than a few letters is left of a token."""
    return any(part in text for part in ("marker", "thistest", token.strip()))


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_token_is_left_out(monkeypatch, token, form):
    monkeypatch.setenv("HF_TOKEN", token)
    written = f"before {FORMS[form](token)} after"
    assert not is_told(redacted(written), token)
    assert redacted(written).startswith("before ")
    assert redacted(written).endswith(" after")
    assert not is_told(str(StudyError(written)), token)


def test_a_saved_token_is_left_out(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert redacted(PLAIN) == PLAIN
    (tmp_path / "token").write_text(PLAIN + "\n")
    assert redacted(f"a {PLAIN} b") == "a *** b"


@pytest.mark.parametrize("value", ["", " ", "1", "on"])
def test_what_is_no_token_changes_nothing(monkeypatch, value):
    monkeypatch.setenv("HF_TOKEN", value)
    assert redacted("1 of 10, on and on") == "1 of 10, on and on"


def job(folder):
    return SimpleNamespace(
        input={},
        output={},
        params=SimpleNamespace(spec={"version": 1}),
        threads=1,
        resources={},
        log=[str(folder / "stage.log")],
        rule="some_stage",
    )


@pytest.mark.parametrize("failure", [None, RuntimeError, StudyError, OSError])
def test_neither_log_nor_screen_are_told_a_token(monkeypatch, tmp_path, capfd, failure):
    monkeypatch.setenv("HF_TOKEN", PLAIN + "\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    header = f"Illegal header value {FORMS['bytes'](PLAIN + chr(10))}"

    def stage():
        say(f"a stage that says {header}")
        if failure:
            raise failure(header)

    if failure:
        with pytest.raises((failure, SystemExit)):
            run_job(job(tmp_path), stage)
    else:
        run_job(job(tmp_path), stage)
    log = (tmp_path / "stage.log").read_text()
    assert "Illegal header value" in log
    assert not is_told(log + "".join(capfd.readouterr()), PLAIN)


def test_no_traceback_and_no_record_of_a_library_tells_a_token():
    code = (
        "import logging, os; from workflow_scripts.core.redaction import redact_output\n"
        "logging.basicConfig(); redact_output(); token = os.environ['HF_TOKEN']\n"
        "logging.getLogger('huggingface_hub').warning('%s thrown', f'Illegal header {token!r}')\n"
        "logging.getLogger('huggingface_hub').warning('%s and %s', 'too few')\n"
        "raise RuntimeError(f'Bearer {token!r}')"
    )
    root = Path(__file__).parents[3]
    environment = {"HF_TOKEN": PLAIN + "\n", "PYTHONPATH": str(root), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "thrown" in done.stderr
    assert "RuntimeError: Bearer '***" in done.stderr
    assert not is_told(done.stderr, PLAIN)


def test_the_provenance_holds_no_token(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", PLAIN)
    study = {"language_model": {"model": FORMS["in an address"](PLAIN)}}
    resolve_config([], tmp_path / "config.yaml", tmp_path / "provenance.json", study=study, stages={})
    assert "huggingface.co" in (tmp_path / "config.yaml").read_text()
    assert not is_told("".join(path.read_text() for path in tmp_path.iterdir()), PLAIN)
