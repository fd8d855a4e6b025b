"""Resolve a dataset of the hub to a commit, once for all corpora of a study."""

import json
from collections.abc import Iterator
from pathlib import Path

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import atomic_path
from workflow_scripts.core.parquet import read_metadata
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.corpora.hub_files import commit_of


def resolve_dataset(resolved: Path, *, dataset: str, revision: str) -> None:
    """Write which commit of a dataset the study reads: id, revision and commit.

    It is the commit that the study's corpora (`corpora/`, beside the file's folder) were read from, if there are any;
    else the current one of `revision`, or the one in the hub's cache if the hub can't be reached.

    Parameters
    ----------
    resolved: JSON file to write.
    dataset: hub id.
    revision: commit, tag or branch.

    Raises
    ------
    StudyError: neither hub nor cache has it, or corpora were read from several commits of `revision`.
    """
    commit = commit_of(dataset, revision)
    read = dict(_corpora_read(resolved.parent.parent / "corpora", dataset, revision))
    kept = sorted(set(read.values()))
    if len(kept) > 1:
        files = ", ".join(f"{path} ({commit})" for path, commit in read.items())
        raise StudyError(
            f"corpora were read from several commits of {dataset}, {revision}: {files}. Delete those of all commits "
            "but one, or all of them; they are read again."
        )
    if kept and kept[0] != commit:
        say(
            f"resolve_dataset {dataset}: {revision} is at {commit} now, and this study keeps {kept[0]}, which "
            f"{', '.join(map(str, read))} were read from. To read everything again from the newer commit, delete "
            f"these files and {resolved}, or write `revision: {commit}`"
        )
        commit = kept[0]
    found = {"dataset": dataset, "revision": revision, "commit": commit}
    with atomic_path(resolved) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    say(f"resolve_dataset {dataset}: commit {commit}")


def _corpora_read(folder: Path, dataset: str, revision: str) -> Iterator[tuple[Path, str]]:
    """Yield the corpora that were read from a dataset's revision, and the commits."""
    for path in sorted(folder.glob("*.parquet")):
        try:
            entries = read_metadata(path)
        except StudyError:
            # Damaged files are read again.
            continue
        if (entries.get("dataset"), entries.get("revision")) == (dataset, revision):
            yield path, entries["commit"]


if __name__ == "__main__":
    run_stage(resolve_dataset)
