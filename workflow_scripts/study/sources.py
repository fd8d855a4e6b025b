"""Which local files a corpus source names. Read while Snakemake parses, so nothing heavy is imported here."""

from __future__ import annotations

import glob
import os
from pathlib import Path


def local_files(source: str) -> list[Path]:
    """Return the files of a path or pattern, in the order of their paths; none where none is there.

    A file whose name has `*`, `?` or brackets in it is itself, and no pattern.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    return sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
