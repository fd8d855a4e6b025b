"""Inputs that were replaced by older files, which Snakemake doesn't notice."""

import os

import pytest

from workflow_scripts.core.file_states import FileState, has_other_inputs, record_inputs, replaced_input


@pytest.fixture
def files(tmp_path):
    """An artifact, and the file that it was made from an hour before."""
    source, artifact = tmp_path / "mine.jsonl", tmp_path / "corpora" / "pool.parquet"
    source.write_text("first")
    os.utime(source, (1_000_000, 1_000_000))
    artifact.parent.mkdir()
    artifact.write_text("made")
    os.utime(artifact, (1_003_600, 1_003_600))
    record_inputs(artifact, {source: FileState.unread(source)})
    return source, artifact


def replace(source, text, seconds):
    """Replace a file as `mv` does, by one that was written at `seconds` since the epoch."""
    other = source.with_name("other")
    other.write_text(text)
    os.utime(other, (seconds, seconds))
    other.replace(source)


def test_nothing_has_changed(files):
    assert not has_other_inputs(files[1])
    assert replaced_input(files[1], {}) is None


@pytest.mark.parametrize("text", ["other", "another"])
def test_another_file_with_an_earlier_time_is_noticed(files, text):
    replace(files[0], text, 900_000)
    assert has_other_inputs(files[1])
    assert replaced_input(files[1], {}) == files[0]


def test_the_same_content_with_another_time_is_recorded(files, monkeypatch):
    replace(files[0], "first", 900_000)
    assert has_other_inputs(files[1])
    assert replaced_input(files[1], {}) is None
    monkeypatch.setattr(FileState, "of", lambda path: pytest.fail("it is read"))
    assert not has_other_inputs(files[1])
    assert replaced_input(files[1], {}) is None


def test_a_newer_file_and_one_that_is_gone_are_left_to_snakemake(files):
    replace(files[0], "other", 2_000_000)
    assert replaced_input(files[1], {}) is None
    files[0].unlink()
    assert not has_other_inputs(files[1])
    assert replaced_input(files[1], {}) is None


def test_nothing_is_known_without_a_record(files):
    (record,) = files[1].parent.glob(".*.inputs")
    record.write_text("{")
    replace(files[0], "other", 900_000)
    assert not has_other_inputs(files[1])
    record.unlink()
    assert replaced_input(files[1], {}) is None


def test_a_link_that_leads_elsewhere_is_left_to_snakemake(files):
    """It takes the time of the link, which is new."""
    older = files[0].with_name("older.jsonl")
    older.write_text("other")
    os.utime(older, (900_000, 900_000))
    files[0].unlink()
    files[0].symlink_to(older)
    assert has_other_inputs(files[1])
    assert replaced_input(files[1], {}) is None


def test_a_file_that_changes_while_it_is_read_is_noticed(files):
    before = FileState.unread(files[0])
    replace(files[0], "other", 1_000_001)
    record_inputs(files[1], {files[0]: before})
    assert replaced_input(files[1], {}) == files[0]


def test_each_file_is_read_once_and_no_other(files, tmp_path, monkeypatch):
    beside = tmp_path / "beside.jsonl"
    beside.write_text("beside")
    os.utime(beside, (1_000_000, 1_000_000))
    record_inputs(files[1], {path: FileState.unread(path) for path in (files[0], beside)})
    files[0].chmod(0o600)
    os.link(files[0], tmp_path / "a second name")  # its ctime changes, and nothing else
    read, of = [], FileState.of
    monkeypatch.setattr(FileState, "of", lambda path: read.append(path) or of(path))
    now = {}
    assert replaced_input(files[1], now) is None
    assert replaced_input(files[1], now) is None
    assert read == [files[0]]


def test_results_that_may_only_be_read_stop_nothing(files, monkeypatch):
    replace(files[0], "first", 900_000)

    def refuse(*arguments):
        raise PermissionError

    monkeypatch.setattr("workflow_scripts.core.file_states.atomic_path", refuse)
    assert replaced_input(files[1], {}) is None


def test_a_record_of_no_file_goes(files):
    record_inputs(files[1], {})
    assert list(files[1].parent.iterdir()) == [files[1]]
