"""A push of the release: what arrives on the hub, and what comes of a hub that refuses or is busy."""

import json
import shutil
from types import SimpleNamespace

import pytest
from hub_errors import hub_error
from huggingface_hub.utils import httpx
from model_hub import Fault

from workflow_scripts.core.errors import StudyError
from workflow_scripts.release.push_encoder import push_encoder


@pytest.fixture
def release(tiny, tmp_path):
    folder = shutil.copytree(tiny.untrained, tmp_path / "release")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nAn encoder.\n")
    return folder


def test_a_push_that_fails_says_what_to_do_and_names_no_token(release, tmp_path, monkeypatch, capfd):
    """The tests run offline, so the hub's own client refuses."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StudyError, match=r"'me/mine' can't be pushed to: .* Log in with `hf auth login`") as error:
        push_encoder(release, tmp_path / "pushed.json", hub="me/mine")
    assert not (tmp_path / "pushed.json").exists()
    assert "hf_secret" not in str(error.value) + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx.ConnectError("no route to host"), "can't be reached: ConnectError: no route to host"),
        (httpx.ReadTimeout("The read operation timed out"), "can't be reached: ReadTimeout"),
        (
            hub_error(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "hf_x"),
            "rejects the token",
        ),
        (hub_error(403, body={"error": "You don't have the rights"}), "forbids it .You don't have the rights"),
        (hub_error(500), "busy .500 Internal Server Error"),
    ],
)
@pytest.mark.parametrize("call", ["create_repo", "upload_folder"])
def test_a_hub_that_refuses_a_push_says_why(release, tmp_path, monkeypatch, call, error, message):
    def fail(api, *arguments, **options):
        raise error

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda api, *arguments, **options: None)
    monkeypatch.setattr(f"huggingface_hub.HfApi.{call}", fail)
    with pytest.raises(StudyError, match=f"'me/mine' can't be pushed to: .*{message}"):
        push_encoder(release, tmp_path / "pushed.json", hub="me/mine")


def test_a_push_waits_for_a_hub_that_is_busy(release, tmp_path, monkeypatch):
    waited, errors = [], [hub_error(429, {"Retry-After": "9"}), httpx.RemoteProtocolError("peer closed connection")]

    def upload_folder(api, **options):
        if errors:
            raise errors.pop(0)
        return SimpleNamespace(commit_url="https://hub/me/mine/commit/1")

    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda api, *arguments, **options: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    push_encoder(release, tmp_path / "pushed.json", hub="me/mine")
    assert waited == [9, 2]
    assert (tmp_path / "pushed.json").exists()


@pytest.fixture
def open_hub(hub, monkeypatch):
    """A hub that takes large files over HTTP, and a token that may write."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", hub.write_token)
    return hub


def test_the_files_of_a_push_arrive_in_a_private_repository(open_hub, release, tmp_path):
    (release / ".made_with").write_text("{}")
    push_encoder(release, tmp_path / "pushed.json", hub="me/mine")
    assert open_hub.visibility == {"me/mine": "private"}
    (commit, files) = list(open_hub.commits["me/mine"].items())[-1]
    assert files.pop(".gitattributes") == b""
    sent = {path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file()} - {".made_with"}
    assert files == {name: (release / name).read_bytes() for name in sent}
    pushed = json.loads((tmp_path / "pushed.json").read_text())
    assert pushed == {"hub": "me/mine", "commit": f"{open_hub.url}/me/mine/commit/{commit}"}


def test_a_push_to_a_repository_that_is_there_replaces_its_model_and_keeps_other_files(open_hub, release, tmp_path):
    # The earlier encoder had two folders, or a projection of its own.
    stale = ["prompt/model.safetensors", "response/config.json", "2_Dense/model.safetensors", "special_tokens_map.json"]
    kept = ["LICENSE", "eval/results.json", "requirements.txt"]
    there = {"README.md": b"", **dict.fromkeys(stale, b"stale"), **dict.fromkeys(kept, b"mine")}
    open_hub.commit_files("me/mine", there)
    push_encoder(release, tmp_path / "pushed.json", hub="me/mine")
    assert open_hub.visibility == {}
    files = list(open_hub.commits["me/mine"].values())[-1]
    own = {path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file()}
    assert files.keys() - own - {".gitattributes"} == set(kept)
    assert files["README.md"] == (release / "README.md").read_bytes()
    assert b"stale" not in files.values()


@pytest.mark.parametrize(
    ("token", "fault", "message"),
    [
        ("hf_other", None, "the hub rejects the token of HF_TOKEN .Invalid credentials in Authorization header"),
        ("", None, "the hub forbids it .Invalid username or password"),
        (None, Fault("/repos/create", 403, {"X-Error-Message": "No rights"}), "the hub forbids it .No rights"),
        (None, Fault("/preupload/", 403, {"X-Error-Message": "No rights"}), "the hub forbids it .No rights"),
        (None, Fault("/large/", 500), "the hub is busy .500 Internal Server Error"),
        (None, Fault("/commit/", 429), "the hub is busy .429 Too Many Requests"),
    ],
)
def test_a_push_that_the_hub_refuses_says_why_and_writes_nothing(
    open_hub, release, tmp_path, monkeypatch, capfd, token, fault, message
):
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    open_hub.faults = [fault] if fault else []
    with pytest.raises(StudyError, match=f"'me/mine' can't be pushed to: .*{message}") as error:
        push_encoder(release, tmp_path / "pushed.json", hub="me/mine")
    assert not (tmp_path / "pushed.json").exists()
    assert list(open_hub.commits.get("me/mine", {})) in ([], ["0" * 40])
    assert "hf_" not in str(error.value) + "".join(capfd.readouterr())


def test_a_push_goes_on_where_the_hub_was_busy(open_hub, release, tmp_path):
    open_hub.faults = [
        Fault("/repos/create", 429, {"Retry-After": "3"}, times=1),
        Fault("/preupload/", 503, times=1),
        Fault("/large/", 500, times=1),
        Fault("/commit/", 504, times=1),
    ]
    push_encoder(release, tmp_path / "pushed.json", hub="me/mine")
    assert not any(fault.times for fault in open_hub.faults)
    assert "model.safetensors" in list(open_hub.commits["me/mine"].values())[-1]


def test_a_push_makes_a_private_repository_and_records_the_commit(release, tmp_path, monkeypatch):
    asked = {}

    def create_repo(api, repo_id, **options):
        asked["repository"] = (repo_id, options)

    def upload_folder(api, *, repo_id, folder_path, **options):
        asked["upload"] = (repo_id, folder_path)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    push_encoder(release, tmp_path / "pushed.json", hub="me/mine")
    assert asked == {
        "repository": ("me/mine", {"private": True, "exist_ok": True}),
        "upload": ("me/mine", release),
    }
    pushed = json.loads((tmp_path / "pushed.json").read_text())
    assert pushed == {"hub": "me/mine", "commit": "https://hub/me/mine/commit/1"}
