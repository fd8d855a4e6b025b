"""Which local files a corpus source names, and which models lie on the hub.

Read while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

# A name, or owner/name; what a path begins with (/, ~, .) never begins an id.
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


def local_files(source: str) -> list[Path]:
    """Return the files of a path or pattern, in the order of their paths; none where none is there.

    A file whose name has `*`, `?` or brackets in it is itself, and no pattern.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    return sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))


def broken_links(source: str) -> list[Path]:
    """Return what a path or pattern matches that is a link to nothing."""
    names = glob.glob(str(Path(source).expanduser()), recursive=True)
    return sorted(Path(name) for name in names if os.path.islink(name) and not os.path.exists(name))


def is_hub_id(model: str) -> bool:
    """Return whether a model is one of the hub: it is written as an id, and no local folder has that name."""
    return bool(HUB_ID.fullmatch(model)) and not os.path.isdir(model)


def snapshot_name(model: str, revision: str | None) -> str:
    """Return the name of the folder that holds a hub model at one commit: `Qwen--Qwen2.5-0.5B@main`."""
    return f"{model}@{revision}".replace("/", "--") if revision else model.replace("/", "--")
