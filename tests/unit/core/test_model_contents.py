"""The content of a model's folder: hashed once, read again only where a file changed, and never mixed with another."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.file_states import FileState
from workflow_scripts.core.model_contents import (
    RECORDS_VARIABLE,
    ModelContent,
    content_of,
    is_unknown,
    local_models,
    model_files,
    read_record,
    resolved_content,
    write_record,
)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder with a model, named by a relative path, and a study that keeps records."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RECORDS_VARIABLE, "records")
    folder = tmp_path / "lm"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "checkpoint-10").mkdir()
    for name in ("model.safetensors", "config.json", "README.md", "1_Pooling/config.json", "checkpoint-10/a.json"):
        (folder / name).write_text(name)
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    return folder


def test_the_content_is_what_loading_may_read(model):
    expected = {"model.safetensors", "config.json", "modules.json", "1_Pooling/config.json"}
    assert model_files("lm").keys() == expected


def test_an_encoder_of_two_folders_is_looked_into(tmp_path):
    for part in ("prompt", "response"):
        (tmp_path / part / "2_Dense").mkdir(parents=True)
        (tmp_path / part / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "2_Dense"}]))
        for name in ("model.safetensors", "2_Dense/model.safetensors"):
            (tmp_path / part / name).write_text(part)
    before = content_of(str(tmp_path))
    assert len(before.files) == 6
    (tmp_path / "response/2_Dense/model.safetensors").write_text("other weights")
    assert not before.is_current()
    assert content_of(str(tmp_path)).hash != before.hash


def test_a_record_of_no_file_is_none(model):
    write_record(Path("records"), ModelContent("lm"))
    assert read_record(Path("records"), "lm") is None
    assert is_unknown(ModelContent("lm").hash)
    assert not is_unknown(content_of("lm").hash)


def test_other_bytes_of_one_size_and_age_are_another_content(model):
    before = content_of("lm")
    file = model / "model.safetensors"
    times = file.stat()
    file.write_text(file.read_text()[::-1])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not before.is_current()
    assert content_of("lm", before).hash != before.hash
    assert content_of("lm", before).hash == content_of("lm").hash


def test_only_files_that_changed_are_read_again(model, monkeypatch):
    before = content_of("lm")
    read = []
    state = FileState.of
    monkeypatch.setattr(FileState, "of", lambda path: read.append(path.name) or state(path))
    assert content_of("lm", before) == before
    assert read == []
    (model / "config.json").write_text("other")
    content_of("lm", before)
    assert read == ["config.json"]


def test_a_record_is_what_was_written(model, tmp_path):
    content = content_of("lm")
    write_record(tmp_path / "records", content)
    assert read_record(tmp_path / "records", "lm") == content
    (record,) = (tmp_path / "records").iterdir()
    assert json.loads(record.read_text())["content"] == content.hash
    record.write_text("{")
    assert read_record(tmp_path / "records", "lm") is None


def test_a_job_keeps_to_the_recorded_content(model):
    first = resolved_content("lm")
    (model / "config.json").touch()
    assert resolved_content("lm") == first
    (model / "config.json").write_text("other")
    with pytest.raises(StudyError, match=r"the model in lm was replaced: .* \(config.json changed\)"):
        resolved_content("lm")


def test_local_models_of_a_spec_are_the_folders_that_it_names(model):
    assert local_models({"model": "lm"}) == ["lm"]
    assert local_models({"settings": {"model": "lm"}, "lm_source": {"model": "owner/name"}}) == ["lm"]
    assert local_models({"scoring": {"sentence_encoders": {"mine": "lm"}}}) == ["lm"]
    assert local_models({"study": {"language_model": {"model": "lm"}}}) == []
