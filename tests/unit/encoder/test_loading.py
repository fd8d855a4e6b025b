"""Folders that are no encoder are refused."""

import shutil

import pytest
import torch

from workflow_scripts.core.errors import StudyError
from workflow_scripts.encoder.loading import load_encoder


def test_parts_with_different_transformers_are_refused(tiny, split_folder, tmp_path):
    shutil.copytree(split_folder, tmp_path / "mixed")
    shutil.copy(tiny.untrained / "model.safetensors", tmp_path / "mixed" / "response" / "model.safetensors")
    with torch.no_grad():
        changed = load_encoder(tiny.untrained, 64)
        changed.transformer.embeddings.word_embeddings.weight += 1
    changed.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "mixed" / "response" / "model.safetensors")
    with pytest.raises(StudyError, match="different transformers"):
        load_encoder(tmp_path / "mixed", 64)
