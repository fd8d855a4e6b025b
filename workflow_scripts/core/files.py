"""Files and folders that are either whole or absent, and the hashes that name their content."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from workflow_scripts.core.progress import say

# Written beside the files of a model that was fetched from the hub: `model`, `revision`, `commit`.
SNAPSHOT = "snapshot.json"


def file_hash(*paths: Path) -> str:
    """Return 16 hex digits: a hash of the files' bytes, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file is renamed to `path` only if the block raises nothing.

    The name is unique to the host and process, so that two runs of one job never write into the same file. Missing
    folders above `path` are created.
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
    """Yield an empty folder beside `folder`; it replaces `folder` only if the block raises nothing."""
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
    """Rename the finished folder `temporary` to `folder`, which it replaces."""
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def folder_hash(folder: Path) -> str:
    """Return 16 hex digits: a hash of a model folder's weights, config and tokenizer, or of a snapshot's commit."""
    if (snapshot := Path(folder) / SNAPSHOT).exists():
        return file_hash(snapshot)
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in {".safetensors", ".json", ".txt"})
    return file_hash(*files)


def begun_folder(artifact: Path, key: str, kind: str) -> Path:
    """Return the hidden folder where a job keeps what it has done of `artifact`, until it is complete.

    Parameters
    ----------
    artifact: what the job will write.
    key: 16 hex digits, the hash of everything that decides it, so that only a job with the same values goes on from it.
    kind: what the folder holds, e.g. `runs`.
    """
    return artifact.with_name(f".{artifact.stem}.{key}.{kind}")


def delete_begun(folder: Path) -> None:
    """Delete the `begun_folder` of a job that is complete, and those that jobs with other values left of the same."""
    name, _, kind = folder.name.rsplit(".", 2)
    for other in folder.parent.glob(f"{glob.escape(name)}.*.{kind}"):
        # A name with more in it is of another artifact, e.g. a part of a corpus.
        if other.name.rsplit(".", 2)[0] == name:
            shutil.rmtree(other, ignore_errors=True)


def earlier_of(artifact: Path) -> Path:
    """Return where the earlier version of a file lies until the job that makes it again has succeeded.

    That of a fine-tuning job stays until a job has read all of them (`core.stage`).
    """
    return artifact.with_name(f".{artifact.name}.earlier")


def keep_earlier(artifact: Path) -> None:
    """Give a file that will be deleted and made again a second name, `earlier_of`; without links, copy it.

    Where neither can be done, nothing is kept, and a line says so: all of it is computed again.
    """
    if not artifact.exists():
        return
    kept = earlier_of(artifact)
    try:
        kept.unlink(missing_ok=True)
        try:
            os.link(artifact, kept)
        except OSError:
            with atomic_path(kept) as temporary:
                shutil.copyfile(artifact, temporary)
    except OSError as error:
        say(f"{artifact} can't be kept ({error.strerror}), so nothing of it is reused")


def stamp_of(artifact: Path) -> Path:
    """Return the hidden file that says what an artifact was made with: in a folder, beside a file that is no table.

    It is no part of a model: neither `folder_hash` nor a release has it.
    """
    return artifact / ".made_with" if artifact.is_dir() else artifact.with_name(f".{artifact.name}.made_with")
