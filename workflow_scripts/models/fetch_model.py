"""Fetch a model of the hub at one commit into a folder, once for all jobs of a study."""

import json
import os
import shutil
from pathlib import Path

from huggingface_hub.utils import filter_repo_objects

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import SNAPSHOT, atomic_folder
from workflow_scripts.core.progress import say
from workflow_scripts.core.stage import run_stage
from workflow_scripts.models.loading import (
    CONVERT,
    MODEL_FILES,
    UNUSED_FILES,
    load_tokenizer,
    model_folder,
)


def fetch_model(snapshot: Path, *, model: str, revision: str | None, trust_remote_code: bool) -> None:
    """Write the files that a model of the hub has at one commit.

    The commit is the current one of `revision`, or the one in the hub's cache if the hub can't be reached;
    `snapshot.json` names it. The files are hard links into the cache, or copies if the cache is on another disk, so the
    folder stays complete when the cache is emptied.

    Parameters
    ----------
    snapshot: folder to write.
    model: hub id.
    revision: commit, tag or branch; None for the main branch.
    trust_remote_code: whether code that comes with the model may run to test its tokenizer.

    Raises
    ------
    StudyError: neither hub nor cache has the complete model, or its tokenizer has special tokens only.
    """
    cached = model_folder(model, revision)
    files = [path.relative_to(cached).as_posix() for path in sorted(cached.rglob("*")) if path.is_file()]
    files = list(filter_repo_objects(files, allow_patterns=MODEL_FILES, ignore_patterns=UNUSED_FILES))
    _require_weights(cached, files, model)
    # Sentence encoders without a transformer have none here.
    if "config.json" in files:
        load_tokenizer(cached, trust_remote_code=trust_remote_code)
    with atomic_folder(snapshot) as folder:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy((cached / name).resolve(), folder / name)
        # A file of the cache is named by its commit.
        found = {"model": model, "revision": revision, "commit": cached.name}
        (folder / SNAPSHOT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    say(f"fetch_model {model}: commit {cached.name}, {len(files)} files")


def _require_weights(folder: Path, files: list[str], model: str) -> None:
    """Raise `StudyError` if safetensors are missing: the cache may hold only a part of a model."""
    weights = {name for name in files if name.endswith(".safetensors")}
    indexes = [name for name in files if name.endswith(".safetensors.index.json")]
    listed = {
        (Path(index).parent / name).as_posix()
        for index in indexes
        for name in json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
    }
    if missing := sorted(listed - weights) or ([] if weights else ["*.safetensors"]):
        raise StudyError(
            f"{model}: {missing[0]} is missing. {CONVERT} If it has them, run the same command again when this "
            "machine can reach the hub."
        )


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


if __name__ == "__main__":
    run_stage(fetch_model)
