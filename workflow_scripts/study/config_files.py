"""Config files as Snakemake reads them, but for keys that stand twice: there the last one would win unseen.

Read while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from workflow_scripts.core.errors import StudyError
from workflow_scripts.study.config import Study, load_study


def read_config(path: Path) -> dict[str, Any]:
    """Return the values of a config file.

    Raises
    ------
    StudyError: there is no such file, it isn't YAML with keys, or a key stands twice.
    """
    if not path.is_file():
        raise StudyError(f"there is no config {path}; write the path of a study's YAML file")
    refuse_repeated_keys([path])
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise StudyError(f"{path} isn't YAML: {place}{error.problem}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"{path} isn't YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise StudyError(f"{path} has no keys; docs/config.md lists those of a study")
    return values


def read_study(path: Path) -> Study:
    """Return the study of a config file; raises `StudyError` if it can't be read or a value is wrong."""
    return load_study(read_config(path), origin=str(path))


def with_nulls(values: Any) -> Any:
    """Return values of the command line with None for each `null`: Snakemake leaves whatever is nested as text.

    Numbers and switches need no such help: a study's keys take them as text too.
    """
    if isinstance(values, Mapping):
        return {key: with_nulls(value) for key, value in values.items()}
    if isinstance(values, list):
        return [with_nulls(value) for value in values]
    return None if values in ("null", "~") else values


def refuse_repeated_keys(paths: Iterable[Path]) -> None:
    """Raise `StudyError` if a key stands twice in one mapping of a file; a later file may well set it anew."""
    for path in paths:
        try:
            tree = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        # Whatever is no YAML is told by the reader whose values are used.
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        lines = [
            f"  {key}: in lines {first} and {second}; keep one of them" for key, first, second in _repeated(tree, "")
        ]
        if lines:
            raise StudyError(f"{path} has {len(lines)} key(s) twice:\n" + "\n".join(lines))


def _repeated(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int, int]]:
    """Yield each key that stands twice, as it is reached from the top, with both lines."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            name = f"{prefix}.{key.value}" if prefix else str(key.value)
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    yield name, seen[key.tag, key.value], line
                seen.setdefault((key.tag, key.value), line)
            yield from _repeated(value, name)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _repeated(value, f"{prefix}[{number}]")
