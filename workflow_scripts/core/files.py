"""Files and folders that are either whole or absent, and the hashes that name their content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

# Written beside the files of a model that was fetched from the hub: `model`, `revision`, `commit`.
SNAPSHOT = "snapshot.json"


def file_hash(*paths: Path) -> str:
    """Return 16 hex digits of the bytes of the files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; it takes the name `path` only if the block ends well.

    The name is unique to the host and process, so that a twin of a job never writes into the same file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty sibling of `folder`; it takes the name `folder`, in the place of what stood there, only if the
    block ends well."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        publish_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, folder: Path) -> None:
    """Give the finished folder `temporary` the name `folder`, in the place of what stood there."""
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def folder_hash(folder: Path) -> str:
    """Return 16 hex digits of a model folder's weights, config and tokenizer; of a snapshot's, its commit's."""
    if (snapshot := Path(folder) / SNAPSHOT).exists():
        return file_hash(snapshot)
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in {".safetensors", ".json", ".txt"})
    return file_hash(*files)
