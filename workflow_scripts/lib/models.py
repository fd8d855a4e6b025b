"""Model folders, whole or absent, and the hash that names their content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from workflow_scripts.lib.tables import file_hash


def save_folder(folder: Path, *parts: Any) -> None:
    """Write models and tokenizers (`save_pretrained`) to `folder`, which appears only when it is whole."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for part in parts:
        part.save_pretrained(temporary)
    publish_folder(temporary, folder)


def publish_folder(temporary: Path, folder: Path) -> None:
    """Give the finished folder `temporary` the name `folder`, in the place of what stood there."""
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def folder_hash(folder: Path) -> str:
    """Return 16 hex digits of a model folder's weights, config and tokenizer."""
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in {".safetensors", ".json", ".txt"})
    return file_hash(*files)
