"""List the results of a study that its config and its models, as they are now, would not make.

Run: python -m workflow_scripts.provenance.verify [CONFIG]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.file_states import FileState, has_other_inputs, replaced_input
from workflow_scripts.core.files import stamp_of
from workflow_scripts.core.model_contents import (
    ModelContent,
    content_of,
    is_unknown,
    read_record,
    replaced_model,
    write_record,
)
from workflow_scripts.core.parquet import CONTENTS, read_metadata, spec_hash
from workflow_scripts.study.artifacts import Artifact, artifacts
from workflow_scripts.study.config_files import read_study
from workflow_scripts.study.plan import StudyPlan
from workflow_scripts.study.specs import StageSpecs

SHOWN_KEYS = 5
# Options of Snakemake.
_MAKE_NO_RESULTS = (
    *("unlock", "cleanup_metadata", "cleanup_shadow", "delete_all_output", "delete_temp_output", "lint", "report"),
    *("list_rules", "list_target_rules", "list_changes", "list_input_changes", "list_params_changes"),
    *("summary", "detailed_summary", "dag", "rulegraph", "filegraph", "d3dag"),
)


@dataclass(frozen=True)
class Mismatch:
    """A result that the study would not make.

    Parameters
    ----------
    artifact: the result.
    made_with: hash of the spec that it was made with.
    keys: values of the spec that differ, as far as that is known.
    models: models that it was made with in another content: path, that content, the content now.
    """

    artifact: Artifact
    made_with: str
    keys: list[str]
    models: list[tuple[str, str, str]]

    def __str__(self) -> str:
        expected = spec_hash(self.artifact.spec)
        if self.made_with != expected:
            more = f", and {len(self.keys) - SHOWN_KEYS} more" if len(self.keys) > SHOWN_KEYS else ""
            keys = f" (other: {', '.join(self.keys[:SHOWN_KEYS])}{more})" if self.keys else ""
            return f"made with spec {self.made_with}, and the config says {expected}{keys}"
        return "; ".join(
            f"made with content {then} of {model}, which has {now} now" for model, then, now in self.models
        )


def mismatches(found: Sequence[Artifact], results: Path) -> Iterator[Mismatch]:
    """Yield the artifacts that exist and that the study would not make; those that say nothing of it are passed over.

    Parameters
    ----------
    found: artifacts of the study.
    results: its results folder.
    """
    contents: dict[str, str] = {}
    earlier: dict[Path, dict[str, Any]] | None = None
    for artifact in found:
        made_with = read_made_with(artifact)
        if not made_with:
            continue
        models = []
        for model, content in json.loads(made_with.get(CONTENTS, "{}")).items():
            if model not in contents and Path(model).is_dir():
                contents[model] = _content_now(model, results)
            if model in artifact.models and contents.get(model, content) != content and not is_unknown(content):
                models.append((model, content, contents[model]))
        is_other = made_with["spec"] != spec_hash(artifact.spec)
        if is_other and earlier is None:
            earlier = _earlier_specs(results)
        if is_other or models:
            then = (earlier or {}).get(artifact.path, {})
            keys = list(_differences(then, artifact.spec)) if spec_hash(then) == made_with["spec"] else []
            yield Mismatch(artifact, made_with["spec"], keys, models)


def read_made_with(artifact: Artifact) -> Mapping[str, str] | None:
    """Return what an artifact says of the job that made it, with the hash of its `spec`.

    None if it doesn't exist, or was made before such artifacts said so; nothing of a damaged one.
    """
    if not artifact.path.exists():
        return None
    try:
        if artifact.path.suffix == ".parquet":
            entries = read_metadata(artifact.path)
        elif (stamp := stamp_of(artifact.path)).exists():
            entries = json.loads(stamp.read_text(encoding="utf-8"))
        elif artifact.stage == "resolve_config":
            specs = _specs(artifact.path)
            entries = {"spec": spec_hash(specs.spec("resolve_config", {}))}
        else:
            return None
    # Who reads it says so.
    except (StudyError, ValueError):
        return {}
    return entries if "spec" in entries else None


def matches_spec(artifact: Artifact) -> bool:
    """Return whether an artifact is there and doesn't say that it was made with another spec than its `spec`."""
    made_with = read_made_with(artifact)
    if made_with is None:
        return artifact.path.exists()
    return made_with.get("spec") == spec_hash(artifact.spec)


def refuse_mixed_results(found: Sequence[Artifact], results: Path, config: str, command: Command) -> None:
    """Check the models of a study, the user's files, and those of its artifacts that Snakemake has no record of.

    A local model that artifacts were made with and that has no record yet gets one.

    Parameters
    ----------
    found: the artifacts of the study.
    results: its results folder.
    config: name of its config, for the message.
    command: what Snakemake was asked for; jobs that it forces are run again, with all that follows from them.

    Raises
    ------
    StudyError: a model or an input was replaced, or an artifact was not made with this config: the message says
        which, and what can be done.
    """
    records = results / "models"
    for model in sorted({model for artifact in found for model in artifact.models}):
        _check_model(model, [one for one in found if model in one.models and one.path.exists()], records)
    states: dict[Path, FileState] = {}
    for artifact in found:
        # What another config made is made again anyway.
        if command.forces(artifact) or not has_other_inputs(artifact.path) or not matches_spec(artifact):
            continue
        if path := replaced_input(artifact.path, states):
            raise StudyError(
                f"{path} was replaced by an older file since {artifact.path} was made from it, and Snakemake goes by "
                f"times. To read it again, run `touch {shlex.quote(str(path))}`, or snakemake with `--forcerun "
                f"{artifact.rule}`; or put the earlier one back."
            )
    unrecorded = [artifact for artifact in found if artifact.path.exists() and not artifact.is_recorded()]
    if others := [one for one in mismatches(unrecorded, results) if not command.forces(one.artifact)]:
        raise StudyError(
            f"Snakemake has no record of {len(unrecorded)} results in {results} (`.snakemake` was deleted, or they "
            f"come from elsewhere), and {len(others)} of them don't belong to this config: {others[0].artifact.path} "
            f"was {others[0]}. To keep them, go back to the values that they were made with, or write another `run`. "
            f"To have them made again, with all that follows from them, run `{rerun_command(others, config)}`. "
            f"`make verify CONFIG={config}` lists them."
        )


@dataclass(frozen=True)
class Command:
    """What a command of Snakemake does, which tells the Snakefile only of what it has parsed before.

    Parameters
    ----------
    makes_results: whether it makes results; others unlock, list or delete.
    forces_all: whether it runs all jobs again.
    forced: rules whose jobs it runs again.
    """

    makes_results: bool = True
    forces_all: bool = False
    forced: frozenset[str] = frozenset()

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Command:
        """Return what Snakemake reads of its arguments; what an ordinary run does, where these are another program's.

        Parameters
        ----------
        arguments: the words of the command, without its name.
        """
        # Imported already, but in tests.
        from snakemake.cli import parse_args  # type: ignore[import-untyped]  # it has no types

        nowhere = io.StringIO()
        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                given = parse_args(list(arguments))[1]
        except (SystemExit, Exception):
            return cls()
        makes_none = any(getattr(given, name, None) for name in _MAKE_NO_RESULTS)
        return cls(not makes_none, bool(given.forceall), frozenset(given.forcerun or ()))

    def forces(self, artifact: Artifact) -> bool:
        """Return whether the job that makes an artifact runs again in any case."""
        return self.forces_all or artifact.rule in self.forced


def rerun_command(others: Sequence[Mismatch], config: str) -> str:
    """Return the command that makes results again, which deleting them doesn't: Snakemake needs only the last ones."""
    rules = dict.fromkeys(mismatch.artifact.rule for mismatch in others)
    return f"snakemake --cores all --configfile {config} --forcerun {' '.join(rules)}"


def _check_model(model: str, users: Sequence[Artifact], records: Path) -> None:
    known = read_record(records, model)
    if known.is_current() if known else not users:
        return
    found = content_of(model, known)
    if known and known.hash != found.hash:
        kept = [artifact for artifact in users if not _is_taken_again(artifact, found)]
        if kept:
            raise replaced_model(known, found, _names(kept))
    elif known is None:
        for artifact in users:
            made_with = read_made_with(artifact) or {}
            content = json.loads(made_with.get(CONTENTS, "{}")).get(model, found.hash)
            if content != found.hash and not is_unknown(content) and not _is_taken_again(artifact, found):
                raise replaced_model(content, found, str(artifact.path))
    write_record(records, found)


def _is_taken_again(artifact: Artifact, found: ModelContent) -> bool:
    """Return whether Snakemake sees that a local encoder has changed: it copies it again, and what follows from it."""
    if artifact.stage != "take_encoder":
        return False
    timestamp = artifact.path / ".snakemake_timestamp"
    made = (timestamp if timestamp.exists() else artifact.path).stat().st_mtime_ns
    return any(state.mtime_ns > made for state in found.files.values())


def _names(found: Sequence[Artifact]) -> str:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{found[0].path}{more}"


def _content_now(model: str, results: Path) -> str:
    known = read_record(results / "models", model)
    return content_of(model, known).hash


def _specs(config: Path) -> StageSpecs:
    return StageSpecs(StudyPlan(read_study(config)))


def _earlier_specs(results: Path) -> dict[Path, dict[str, Any]]:
    """Return the specs of the config that was resolved last, by artifact; nothing if it can't be read."""
    path = results / "config.resolved.yaml"
    try:
        return {one.path: one.spec for one in artifacts(_specs(path))}
    except (OSError, StudyError, ValueError):
        return {}


def _differences(then: Any, now: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted({*then, *now}):
            yield from _differences(then.get(key), now.get(key), f"{prefix}.{key}" if prefix else key)
    elif then != now:
        yield prefix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, default=Path("config.yaml"), help="the study's config")
    path = parser.parse_args().config
    try:
        specs = _specs(path)
        found = list(artifacts(specs))
        others = list(mismatches(found, specs.plan.results))
    except StudyError as error:
        sys.exit(f"error: {error}")
    existing = [artifact for artifact in found if artifact.path.exists()]
    silent = [artifact for artifact in existing if not read_made_with(artifact)]
    print(
        f"{specs.plan.results}: {len(existing)} of {len(found)} results are there, {len(others)} don't belong to {path}"
    )
    for mismatch in others:
        print(f"  {mismatch.artifact.path}\n    {mismatch.artifact.stage}: {mismatch}")
    if others:
        print(f"To have them made again, with all that follows from them:\n  {rerun_command(others, str(path))}")
    if silent:
        print(f"  {len(silent)} can't be judged, because they don't say what they were made with:")
        print("\n".join(f"    {artifact.path}" for artifact in silent))
    sys.exit(bool(others))


if __name__ == "__main__":
    main()
