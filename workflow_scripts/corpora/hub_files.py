"""Datasets of the hub: their commits, the files of their splits, and these files on this machine."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, get_cached_repo_tree, hf_hub_download, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.hub import HUB_ERRORS, hub_trouble, is_out_of_reach, patiently, short_reason
from workflow_scripts.core.progress import say
from workflow_scripts.study.sources import HUB_FILE

if TYPE_CHECKING:
    import datasets

# Where a dataset says which files its splits have.
CARD_FILES = ("README.md", ".huggingface.yaml", "dataset_infos.json")
# Options of a config that change nothing in how a row is read here, or are copied to another.
_UNUSED_OPTIONS = {
    "name",
    "version",
    "data_dir",
    "data_files",
    "description",
    "features",
    "columns",
    "batch_size",
    "delimiter",
    "column_names",
}
_CONVERT = (
    "If its page has a Parquet copy, read that by `revision: refs/convert/parquet`; or download it, write its rows as "
    "JSON Lines and name that file as `source`."
)
_FILES_SHOWN = 8


def commit_of(dataset: str, revision: str) -> str:
    """Return the commit that `revision` is at; the one in the hub's cache if the hub can't be reached.

    Parameters
    ----------
    dataset: hub id.
    revision: commit, tag or branch.

    Raises
    ------
    StudyError: neither the hub nor its cache has it.
    """

    def ask() -> Path:
        # Where it fails, `snapshot_download` takes what is in the cache instead, however old that is.
        HfApi().dataset_info(dataset, revision=revision)
        return _card_folder(dataset, revision)

    try:
        return patiently(ask).name
    except HUB_ERRORS as error:
        if is_out_of_reach(error):
            try:
                commit = _card_folder(dataset, revision, local_files_only=True).name
            except HUB_ERRORS:
                raise _trouble(dataset, error) from None
            say(f"the hub is out of reach: {dataset} is read from its cache, at commit {commit}")
            return commit
        raise _trouble(dataset, error) from None


def files_of_split(
    dataset: str,
    commit: str,
    *,
    config_name: str | None,
    split: str,
    data_files: str | None,
    endings: Collection[str],
    compressions: Collection[str],
) -> list[str]:
    """Return the files of a split, as paths in the dataset, in the order in which `datasets` reads them.

    Parameters
    ----------
    dataset: hub id.
    commit: its commit.
    config_name: the config; None for the only one or the default.
    split: the split.
    data_files: a file or pattern in the dataset, or a file's `hf://` address, in place of config and split; None for
        those of the split.
    endings: endings of the files that can be read, e.g. `.jsonl`.
    compressions: endings that may follow them.

    Raises
    ------
    StudyError: there is no such config, split or file, or it can't be read.
    """
    try:
        card = patiently(lambda: _card_folder(dataset, commit))
        names = sorted(one.path for one in get_cached_repo_tree(dataset, repo_type="dataset", revision=commit))
    except HUB_ERRORS as error:
        raise _trouble(dataset, error) from None
    except CachedRepoTreeNotFoundError:
        raise StudyError(
            f"source: {dataset} can't be read from the hub's cache (HF_HOME): it doesn't hold the list of its files at "
            f"commit {commit}. Run once with the same cache where the hub can be reached."
        ) from None
    readable = [name for name in names if _is_readable(name, endings, compressions)]
    # The library finds the files of a split by their names and by what the card says, not by what is in them.
    with tempfile.TemporaryDirectory() as folder:
        skeleton = Path(folder).resolve() / dataset.rpartition("/")[2]
        for name in names:
            (skeleton / name).parent.mkdir(parents=True, exist_ok=True)
            content = (card / name).read_bytes() if name in CARD_FILES else b""
            (skeleton / name).write_bytes(content)
        if data_files is not None:
            _refuse_both(dataset, config_name, split)
            address = HUB_FILE.fullmatch(data_files)
            found = _files_of_pattern(dataset, skeleton, address[3] if address else data_files, readable)
        else:
            found = _files_of_split(dataset, skeleton, config_name, split, readable)
    if others := [name for name in found if name not in set(readable)]:
        raise StudyError(
            f"source: {dataset}: {others[0]} is of a kind that isn't read here; the name must end in one of "
            f"{', '.join(endings)}, or one of these with {' or '.join(compressions)} after it. {_CONVERT}"
        )
    return found


def downloaded(dataset: str, commit: str, file: str) -> Path:
    """Return where a file of a dataset lies on this machine, in the hub's cache; it is downloaded if it isn't there.

    Raises
    ------
    StudyError: the hub doesn't give it.
    """
    try:
        return Path(patiently(lambda: hf_hub_download(dataset, file, repo_type="dataset", revision=commit)))
    except HUB_ERRORS as error:
        raise _trouble(dataset, error) from None


def _card_folder(dataset: str, revision: str, local_files_only: bool = False) -> Path:
    """Download a dataset's card and the list of its files; return the folder of the card, named by the commit."""
    return Path(
        snapshot_download(
            dataset,
            repo_type="dataset",
            revision=revision,
            allow_patterns=list(CARD_FILES),
            local_files_only=local_files_only,
        )
    )


def _trouble(dataset: str, error: Exception) -> StudyError:
    not_local = "There is no local file of that name either."
    reason = hub_trouble(error, dataset, "dataset", not_local) or (
        f"{type(error).__name__}: {short_reason(error)} Check the id and revision. {not_local}"
    )
    return StudyError(f"source: {dataset} can't be read from the hub: {reason}")


def _is_readable(name: str, endings: Collection[str], compressions: Collection[str]) -> bool:
    stem, ending = os.path.splitext(name.lower())
    return (os.path.splitext(stem)[1] if ending in compressions else ending) in endings


def _refuse_both(dataset: str, config_name: str | None, split: str) -> None:
    if config_name is not None or split != "train":
        key = f"config_name: {config_name}" if config_name is not None else f"split: {split}"
        raise StudyError(f"source: {dataset}: data_files names the files, and {key} too; leave one of them out")


def _files_of_pattern(dataset: str, skeleton: Path, pattern: str, readable: Sequence[str]) -> list[str]:
    from datasets.data_files import resolve_pattern

    try:
        found = resolve_pattern(pattern, str(skeleton))
    except FileNotFoundError:
        found = []
    found = [name for name in found if Path(name).is_relative_to(skeleton)]
    if not found:
        raise StudyError(f"source: {dataset} has no file data_files: {pattern}; it has {_shown(readable)}")
    return [Path(name).relative_to(skeleton).as_posix() for name in found]


def _files_of_split(
    dataset: str, skeleton: Path, config_name: str | None, split: str, readable: Sequence[str]
) -> list[str]:
    import datasets

    script = skeleton / f"{skeleton.name}.py"
    if script.exists():
        raise StudyError(
            f"source: {dataset} has a loading script ({script.name}), which isn't run, as it could do anything. Name a "
            f"file by data_files: {_shown(readable)}. {_CONVERT}"
        )
    try:
        # Not in the user's cache: nothing is kept.
        config = datasets.load_dataset_builder(
            str(skeleton), name=config_name, cache_dir=str(skeleton.with_name("cache"))
        ).config
    # Of many libraries, which read the names and the card.
    except Exception as error:
        reason = short_reason(error).replace(f"{skeleton}/", "").replace(str(skeleton), dataset)
        raise StudyError(
            f"source: {dataset} can't be read: {reason} Check config_name and split, or name a file by data_files: "
            f"{_shown(readable)}."
        ) from None
    _refuse_options(dataset, config)
    splits = config.data_files or {}
    if split not in splits:
        raise StudyError(
            f"source: {dataset} has no split: {split}; it has {', '.join(map(str, splits)) or 'none'}. Write one of "
            f"them, or name a file by data_files: {_shown(readable)}"
        )
    return [Path(name).relative_to(skeleton).as_posix() for name in splits[split]]


def _refuse_options(dataset: str, config: datasets.BuilderConfig) -> None:
    """Raise `StudyError` if the card asks for a way to read the files that is none of the usual."""
    usual = type(config)()
    names = (field.name for field in dataclasses.fields(config) if field.name not in _UNUSED_OPTIONS)
    if changed := [name for name in names if getattr(config, name) != getattr(usual, name)]:
        said = ", ".join(f"{name}: {getattr(config, name)!r}" for name in changed)
        raise StudyError(
            f"source: {dataset}: its card asks to read the files with {said}, which isn't done here. {_CONVERT}"
        )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FILES_SHOWN:,} more" if len(names) > _FILES_SHOWN else ""
    return ", ".join(names[:_FILES_SHOWN]) + more if names else "none that can be read here"
