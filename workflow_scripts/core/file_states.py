"""What a file held when it was read, and whether it still does; it is read again only where size or times changed.

Read while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from workflow_scripts.core.files import atomic_path


@dataclass(frozen=True)
class FileState:
    """A file when it was hashed.

    Parameters
    ----------
    size: bytes.
    mtime_ns: time of its last change, in nanoseconds since the epoch.
    ctime_ns: the same for its entry in the file system, which a copy with an earlier mtime changes too.
    sha256: hash of its bytes; empty where it wasn't read.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Return the state of a file, which is read."""
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return replace(cls.unread(path), sha256=digest)

    @classmethod
    def unread(cls, path: Path) -> FileState:
        """Return the state of a file without its hash."""
        now = path.stat()
        return cls(now.st_size, now.st_mtime_ns, now.st_ctime_ns, "")

    def is_of(self, path: Path) -> bool:
        """Return whether a file has the same size and times; it is not read."""
        return self.unread(path) == replace(self, sha256="")


def record_inputs(artifact: Path, inputs: Mapping[Path, FileState]) -> None:
    """Write beside an artifact what the files held that it was made from, for `replaced_input`; no file for none.

    Parameters
    ----------
    artifact: what was made.
    inputs: the files, in the state from before they were read, without a hash. One that has changed since is recorded
        as it was then, so that it is noticed.
    """
    _write(artifact, {path: FileState.of(path) if state.is_of(path) else state for path, state in inputs.items()})


def has_other_inputs(artifact: Path) -> bool:
    """Return whether a recorded input of an artifact has another size or time; none is read."""
    return any(path.exists() and not state.is_of(path) for path, state in _recorded(artifact).items())


def replaced_input(artifact: Path, now: dict[Path, FileState]) -> Path | None:
    """Return an input of an artifact whose content has changed but whose time of change is earlier; None if none has.

    Snakemake goes by times, so it notices any other change itself. Where times alone have changed, they are recorded.

    Parameters
    ----------
    artifact: what was made.
    now: states of files that have been read already; those that are read are added.
    """
    recorded = _recorded(artifact)
    current = dict(recorded)
    for path, state in recorded.items():
        if not path.exists() or state.is_of(path) or _changed_at(path) > artifact.stat().st_mtime_ns:
            continue
        now[path] = current[path] = now.get(path) or FileState.of(path)
        if current[path].sha256 != state.sha256:
            return path
    if current != recorded:
        # Whoever may only read the results goes on without.
        with suppress(OSError):
            _write(artifact, current)
    return None


def _changed_at(path: Path) -> int:
    # A link that leads elsewhere is a change too.
    return max(path.stat().st_mtime_ns, path.lstat().st_mtime_ns)


def _write(artifact: Path, states: Mapping[Path, FileState]) -> None:
    record = _record_of(artifact)
    if not states:
        record.unlink(missing_ok=True)
        return
    with atomic_path(record) as temporary:
        values = {str(path): asdict(state) for path, state in states.items()}
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _record_of(artifact: Path) -> Path:
    return artifact.with_name(f".{artifact.name}.inputs")


def _recorded(artifact: Path) -> dict[Path, FileState]:
    try:
        values = json.loads(_record_of(artifact).read_text(encoding="utf-8"))
        return {Path(path): FileState(**state) for path, state in values.items()}
    # Without a record nothing is known.
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
