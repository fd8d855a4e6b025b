"""What the hub's errors mean, and how long a hub that is busy is waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hub_errors import hub_error
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from workflow_scripts.core.hub import WAITS, hub_trouble, patiently

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
REJECTED = {"X-Error-Message": "Invalid credentials in Authorization header"}
GATED = {"X-Error-Code": "GatedRepo"}


@pytest.fixture
def waited(monkeypatch):
    """The seconds that were slept."""
    seconds = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


class Busy:
    """A call that fails until `errors` are used up."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def __call__(self):
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def within(error):
    """The same, as the client passes it on where the cache has nothing."""
    outer = LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [
        *(hub_error(status) for status in (408, 429, 500, 502, 503, 504)),
        httpx.ConnectError("no route"),
        httpx.ReadTimeout("The read operation timed out"),
        httpx.RemoteProtocolError("peer closed connection without sending complete message body"),
        within(hub_error(500)),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:3]}",
)
def test_what_passes_is_tried_again_with_growing_waits(waited, error, capsys):
    assert patiently(Busy(error, error, error)) == "done"
    assert waited == [1, 2, 4]
    assert capsys.readouterr().err.count("trying again") == 3
    with pytest.raises(type(error)):
        patiently(Busy(*[error] * (len(WAITS) + 1)))


@pytest.mark.parametrize(
    "error", [hub_error(401), hub_error(403, GATED), hub_error(404), OfflineModeIsEnabled("offline"), ValueError("no")]
)
def test_what_stays_is_not_tried_again(waited, error):
    with pytest.raises(type(error)):
        patiently(Busy(error))
    assert waited == []


def test_the_hub_says_how_long_to_wait(waited):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    limits = {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    answers = [{"Retry-After": "17"}, {"Retry-After": later}, limits, {"Retry-After": "soon"}]
    assert patiently(Busy(*(hub_error(429, headers) for headers in answers))) == "done"
    assert waited[0] == 17
    assert 30 < waited[1] <= 40
    assert waited[2:] == [55, WAITS[3]]
    with pytest.raises(httpx.HTTPError):
        patiently(Busy(hub_error(429, {"Retry-After": "86400"})))
    assert len(waited) == 4


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (hub_error(401, GATED), ["gated", "aren't logged in", "licence on https://huggingface.co/owner/lm", LOGIN]),
        (hub_error(403, GATED, "hf_x"), ["gated, and your account has no access", "licence", LOGIN]),
        (hub_error(401, REJECTED, "hf_x"), ["rejects the token", "Invalid credentials", "expired, revoked", LOGIN]),
        (hub_error(401), ["no model of that name, or it is private", LOGIN]),
        (hub_error(404, {"X-Error-Code": "RepoNotFound"}), ["no model of that name, or it is private", LOGIN]),
        (hub_error(404, {"X-Error-Code": "RevisionNotFound"}), ["no such `revision`"]),
        (hub_error(403, body={"error": "You have no rights to write"}), ["no rights to write", LOGIN]),
        (hub_error(429), ["busy (429 Too Many Requests)", "again later"]),
        (hub_error(500), ["busy (500 Internal Server Error)", "again later"]),
        (hub_error(400, body={"error": "no such thing"}), ["400 Bad Request", "no such thing"]),
        (httpx.ConnectError("[Errno -2] Name or service not known"), ["can't be reached", "ConnectError", "not known"]),
        (httpx.ReadTimeout(""), ["can't be reached", "ReadTimeout", "proxy"]),
        (httpx.LocalProtocolError("Illegal header value b'Bearer hf_a\\nhf_b'"), ["token of `hf auth login`", "line"]),
        (OfflineModeIsEnabled("offline"), ["HF_HUB_OFFLINE is set", "HF_HOME"]),
    ],
)
def test_a_message_says_why_and_what_to_do(monkeypatch, error, words):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for raised in (error, within(error)):
        told = hub_trouble(raised, "owner/lm", "model")
        assert [word for word in words if word not in told] == [], told
        assert told.endswith(".")
        assert "\n" not in told


def test_errors_of_others_are_not_the_hubs():
    # Asked for and not there: a file that needn't be, as e.g. a README.
    missing = hub_error(404, {"X-Error-Code": "EntryNotFound"})
    for error in (ValueError("no"), OSError("disk"), within(missing)):
        assert hub_trouble(error, "owner/lm", "model") is None


def test_offline_is_told_only_where_it_is_on(tmp_path):
    """`HF_HUB_OFFLINE=0` is off, so the hub is asked, and what its connection said is told."""
    code = "from workflow_scripts.models.loading import model_folder; model_folder('owner/lm')"
    told = {}
    for value in ("0", "1"):
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": value,
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HOME": str(tmp_path),
        }
        patient = f"import workflow_scripts.core.hub as hub; hub.WAITS = ()\n{code}"
        done = subprocess.run([sys.executable, "-c", patient], env=environment, capture_output=True, text=True)
        told[value] = done.stderr.strip().splitlines()[-1]
    assert "HF_HUB_OFFLINE" not in told["0"]
    assert "http://127.0.0.1:9" in told["0"]
    assert "ConnectError" in told["0"]
    assert "HF_HUB_OFFLINE is set" in told["1"]
