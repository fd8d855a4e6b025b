"""What a model's local folder holds: a hash of its content, and the record that a study keeps of it.

A folder can be replaced in place, and its path says nothing of that. Read while Snakemake parses, so nothing heavy is
imported here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.file_states import FileState
from workflow_scripts.core.files import atomic_path

# Names the folder of the study's records; the Snakefile sets it, and jobs inherit it.
RECORDS_VARIABLE = "AIRREP_MODEL_RECORDS"
# What loading a model may read; not its README, nor the state of an optimiser.
READ_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model", ".tiktoken", ".jinja", ".py"})

# Folders of an encoder that embeds prompts and responses by two models.
SPLIT_FOLDERS = ("prompt", "response")


@dataclass(frozen=True)
class ModelContent:
    """The content of a model's folder.

    Parameters
    ----------
    model: path of the folder, as the config writes it.
    files: the files that loading may read, by their path within the folder.
    """

    model: str
    files: Mapping[str, FileState] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """16 hex digits of the names and bytes of all files."""
        listed = [[name, state.sha256] for name, state in sorted(self.files.items())]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]

    def is_current(self) -> bool:
        """Return whether the folder has the same files with the same sizes and times; no file is read."""
        found = model_files(self.model)
        return found.keys() == self.files.keys() and all(self.files[name].is_of(path) for name, path in found.items())


def model_files(model: str) -> dict[str, Path]:
    """Return the files of a model's folder that loading may read, by their path within it.

    They lie at its top and in the folders that a `modules.json` names, both of an encoder's folders `prompt` and
    `response` too; checkpoints of a training are not among them.
    """
    folder = Path(model)
    parts = [folder, *(folder / name for name in SPLIT_FOLDERS)]
    folders = {*parts, *(part / name for part in parts for name in _module_folders(part / "modules.json"))}
    files = [path for one in folders if one.is_dir() for path in one.iterdir() if path.suffix in READ_SUFFIXES]
    return {path.relative_to(folder).as_posix(): path for path in sorted(files) if path.is_file()}


def content_of(model: str, known: ModelContent | None = None) -> ModelContent:
    """Return what a model's folder holds.

    Parameters
    ----------
    model: path of the folder.
    known: what it held before: files with the same size and times aren't read again.
    """
    earlier = known.files if known else {}
    files = {
        name: earlier[name] if name in earlier and earlier[name].is_of(path) else FileState.of(path)
        for name, path in model_files(model).items()
    }
    return ModelContent(model, files)


def is_unknown(content: str) -> bool:
    """Return whether a recorded hash is that of no file, as those of encoders in two folders once were."""
    return content == ModelContent("").hash


def record_path(records: Path, model: str) -> Path:
    """Return the path of the record of a model's content in the folder `records`."""
    digest = hashlib.sha256(model.encode()).hexdigest()[:8]
    return records / f"{Path(model).name or 'model'}-{digest}.json"


def read_record(records: Path, model: str) -> ModelContent | None:
    """Return the recorded content of a model; None if there is no record, or it is damaged."""
    try:
        values = json.loads(record_path(records, model).read_text(encoding="utf-8"))
        files = {name: FileState(**state) for name, state in values["files"].items()}
        # Those of encoders in two folders were not looked for once.
        return ModelContent(values["model"], files) if files else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_record(records: Path, content: ModelContent) -> None:
    """Write the record of a model's content."""
    values = {"model": content.model, "content": content.hash}
    files = {name: asdict(state) for name, state in content.files.items()}
    with atomic_path(record_path(records, content.model)) as temporary:
        temporary.write_text(json.dumps({**values, "files": files}, indent=2) + "\n", encoding="utf-8")


def resolved_content(model: str) -> str:
    """Return the hash of a model's folder, which is the same for all jobs of a study.

    The first job records it. Where the study keeps no records, as outside Snakemake, the folder is hashed.

    Raises
    ------
    StudyError: the folder was replaced since.
    """
    folder = os.environ.get(RECORDS_VARIABLE)
    if folder is None:
        return content_of(model).hash
    records = Path(folder)
    known = read_record(records, model)
    if known and known.is_current():
        return known.hash
    found = content_of(model, known)
    if known is None:
        write_record(records, found)
    elif found.hash != known.hash:
        raise replaced_model(known, found, str(record_path(records, model)))
    return found.hash


def replaced_model(known: ModelContent | str, found: ModelContent, made: str) -> StudyError:
    """Return the error for a folder that was replaced: what was made with which content, and the two ways out.

    Parameters
    ----------
    known: what the folder held, or the hash of it.
    found: what it holds now.
    made: what was made with `known`, e.g. the path of an artifact.
    """
    then, files = (known, "") if isinstance(known, str) else (known.hash, _changed(known, found))
    return StudyError(
        f"the model in {found.model} was replaced: {made} was made with content {then}, and the folder has content "
        f"{found.hash} now{files}. One study can't mix two models. Put the earlier files back; or give the study of "
        "the new model another `run`."
    )


def _changed(known: ModelContent, found: ModelContent) -> str:
    then, now = ({name: state.sha256 for name, state in one.files.items()} for one in (known, found))
    changed = sorted({name for name, _ in then.items() ^ now.items()})
    return f" ({changed[0]}{f' and {len(changed) - 1} more' if len(changed) > 1 else ''} changed)"


def local_models(spec: Mapping[str, Any]) -> list[str]:
    """Return the local folders that a spec names as a `model`, at any depth, sorted.

    A whole study among its values doesn't count: that job loads no model.
    """
    return sorted({model for model in _models(spec) if os.path.isdir(model)})


def _models(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if name == "sentence_encoders":
            yield from value.values()
        elif isinstance(value, Mapping) and name != "study":
            yield from _models(value)
        elif name == "model" and isinstance(value, str):
            yield value


def _module_folders(modules: Path) -> list[str]:
    try:
        return [one["path"] for one in json.loads(modules.read_text(encoding="utf-8"))]
    # Who loads the model says what is wrong with it.
    except (OSError, ValueError, KeyError, TypeError):
        return []
