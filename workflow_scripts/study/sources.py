"""Which local files a corpus source names, and which datasets and models are on the hub.

Imported while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

# A name, or owner/name; what a path begins with (/, ~, .) never begins an id.
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)

# What local data is called; no id of the hub ends so.
FILE_NAME = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|pq)(\.gz|\.zst)?$", re.IGNORECASE)
# Sources that name a format instead of a dataset; `data_files` is then the address of a file.
FORMATS = ("json", "csv", "parquet")
HUB_FILE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?/(.+)")
MAIN = "main"


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset of the hub.

    Parameters
    ----------
    name: its hub id.
    revision: a commit, tag or branch.
    """

    name: str
    revision: str = MAIN


def local_files(source: str) -> list[Path]:
    """Return the files that a path or glob matches, sorted; an empty list if there are none.

    A name with `*`, `?` or brackets in it is not a glob if a file has exactly that name.
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
    """Return whether a model is on the hub: it is written as an id, and no local folder has that name."""
    return bool(HUB_ID.fullmatch(model)) and not os.path.isdir(model)


def snapshot_name(model: str, revision: str | None) -> str:
    """Return the name of a hub model's snapshot folder, e.g. `Qwen--Qwen2.5-0.5B@main`; without a revision, no `@`."""
    return f"{model}@{revision}".replace("/", "--") if revision else model.replace("/", "--")


def hub_dataset(source: str, revision: str | None, data_files: str | None) -> HubDataset | None:
    """Return the dataset of the hub that a corpus is read from; None for a local or builtin corpus."""
    if source in FORMATS and (address := HUB_FILE.fullmatch(data_files or "")):
        return HubDataset(address[1], unquote(address[2] or revision or MAIN))
    is_named_otherwise = source in FORMATS or FILE_NAME.search(source) or not HUB_ID.fullmatch(source)
    if is_named_otherwise or os.path.isdir(source) or local_files(source) or broken_links(source):
        return None
    return HubDataset(source, revision or MAIN)
