"""Files and folders appear whole or not at all."""

import pytest

from workflow_scripts.core.files import atomic_folder, atomic_path, file_hash, folder_hash


def test_a_file_appears_when_the_block_ends_well(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_block_leaves_the_former_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("former")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_the_former_one_only_when_it_is_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "former.json").write_text("{}")

    def fail():
        with atomic_folder(folder) as temporary:
            (temporary / "half.json").write_text("{")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert [path.name for path in folder.iterdir()] == ["former.json"]
    with atomic_folder(folder) as temporary:
        (temporary / "config.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert list(tmp_path.iterdir()) == [folder]


def test_hashes_are_of_content(tmp_path):
    (tmp_path / "config.json").write_text("abc")
    (tmp_path / "weights.safetensors").write_text("def")
    config, weights = tmp_path / "config.json", tmp_path / "weights.safetensors"
    # SHA-256 of "abc".
    assert file_hash(config) == "ba7816bf8f01cfea"
    assert file_hash(config, weights) != file_hash(weights, config)
    assert folder_hash(tmp_path) == file_hash(config, weights)
    (tmp_path / "README.md").write_text("not part of the model")
    assert folder_hash(tmp_path) == file_hash(config, weights)
