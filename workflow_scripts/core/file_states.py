"""What a file held when it was read, and whether it still does; it is read again only where size or times changed.

Read while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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
    sha256: hash of its bytes.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Return the state of a file, which is read."""
        now = path.stat()
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(now.st_size, now.st_mtime_ns, now.st_ctime_ns, digest)

    def is_of(self, path: Path) -> bool:
        """Return whether a file has the same size and times; it is not read."""
        now = path.stat()
        return (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (self.size, self.mtime_ns, self.ctime_ns)


def record_inputs(artifact: Path, inputs: Iterable[Path]) -> None:
    """Write beside an artifact what the files held that it was made from, for `replaced_input`."""
    states = {str(path): asdict(FileState.of(path)) for path in inputs if path.is_file()}
    with atomic_path(_record_of(artifact)) as temporary:
        temporary.write_text(json.dumps(states, indent=2) + "\n", encoding="utf-8")


def has_other_inputs(artifact: Path) -> bool:
    """Return whether a recorded input of an artifact has another size or time; none is read."""
    return any(path.exists() and not state.is_of(path) for path, state in _recorded(artifact).items())


def replaced_input(artifact: Path) -> Path | None:
    """Return an input of an artifact whose content has changed but whose time of change is earlier; None if none has.

    Snakemake goes by times, so it notices any other change itself. Where times alone have changed, they are recorded.
    """
    recorded = _recorded(artifact)
    now = dict(recorded)
    for path, state in recorded.items():
        if path.exists() and not state.is_of(path) and path.stat().st_mtime_ns <= artifact.stat().st_mtime_ns:
            now[path] = FileState.of(path)
            if now[path].sha256 != state.sha256:
                return path
    if now != recorded:
        record_inputs(artifact, now)
    return None


def _record_of(artifact: Path) -> Path:
    return artifact.with_name(f".{artifact.name}.inputs")


def _recorded(artifact: Path) -> dict[Path, FileState]:
    try:
        values = json.loads(_record_of(artifact).read_text(encoding="utf-8"))
        return {Path(path): FileState(**state) for path, state in values.items()}
    # Without a record nothing is known.
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
