"""Write the config reference and the JSON schema from the typed config.

Run: python -m workflow_scripts.study.document_config

`docs/config.md` is for people, `configs/schema.json` for editors. A test keeps both in step with the config.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from workflow_scripts.study.config import Study

ROOT = Path(__file__).parents[2]
TITLE = """# Config

Every key of a study, made from `config.py` and the sections in `sections.py`, `evaluation_sections.py`,
`experiment_sections.py` and `curation_section.py` of `workflow_scripts/study/` by `python -m
workflow_scripts.study.document_config`. A key that is not listed here is refused, with the nearest one that is.
`results/<run>/config.resolved.yaml` holds the values in force. A file under `configs/` stands alone: nothing of
`config.yaml` is mixed into it.
"""


def main() -> None:
    """Write both files."""
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")


def documents() -> dict[Path, str]:
    """Return the text of both files by path."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}
    return {
        ROOT / "configs/schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        ROOT / "docs/config.md": "\n".join([TITLE, *_tables("", Study)]),
    }


def _tables(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    """Yield the Markdown of a section and of those inside it."""
    title = f"`{prefix.rstrip('.')}`" if prefix else "The study"
    yield f"## {title}\n\n{' '.join((model.__doc__ or '').split())}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    inner = []
    for name, field in model.model_fields.items():
        key = prefix + name
        section = _section(field.annotation)
        if section:
            named = get_origin(field.annotation) is dict
            inner.append((f"{key}.<name>." if named else f"{key}.", section))
        yield f"| `{key}` | {_type(field)} | {_default(field)} | {_meaning(field, section)} |"
    yield ""
    for path, section in inner:
        yield from _tables(path, section)


def _section(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *get_args(annotation)]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _type(field: FieldInfo) -> str:
    if section := _section(field.annotation):
        return "sections by name" if get_origin(field.annotation) is dict else f"section {section.__name__}"
    return _type_name(field.annotation) + _bounds(field.metadata)


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0]) + _bounds(arguments[1:])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join("`null`" if one is NoneType else _type_name(one) for one in arguments)
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is tuple:
        return "[" + ", ".join(map(_type_name, arguments)) + "]"
    if origin is dict:
        return f"map from {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    return {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Any: "any value"}[annotation]


def _bounds(metadata: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    # Pydantic wraps the bounds of an annotated type in one FieldInfo.
    flat = [item for one in metadata for item in (one.metadata if isinstance(one, FieldInfo) else [one])]
    found = [f"{sign} {getattr(one, name)}" for one in flat for name, sign in signs.items() if hasattr(one, name)]
    return f" {' and '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _meaning(field: FieldInfo, section: type[BaseModel] | None) -> str:
    text = field.description or " ".join(((section.__doc__ or "") if section else "").split())
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
